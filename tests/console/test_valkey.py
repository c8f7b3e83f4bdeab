"""The private Valkey of `runserver`, `rqworker` and `keeper`: shared, ours alone, and gone after the last of them."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
from django.conf import settings

from console import processes, valkey
from tests.processes import wait_until

USER = """
import sys
from pathlib import Path
from console import valkey
valkey.ensure(Path(sys.argv[1]), Path(sys.argv[2]))
print("ready", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def sockets(tmp_path: Path) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="sf-") as directory:  # tmp_path is too long for a socket
        yield Path(directory) / "s"


def user(sockets: Path, data: Path) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", USER, str(sockets), str(data)],
        cwd=settings.BASE_DIR,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout
    assert process.stdout.readline() == "ready\n"
    return process


def leave(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.communicate()


def test_it_lives_from_its_first_user_to_its_last(sockets, tmp_path):
    first, second = user(sockets, tmp_path), user(sockets, tmp_path)
    socket = sockets / "valkey.sock"
    leave(first)
    assert valkey.answers(socket)
    leave(second)
    wait_until(lambda: not valkey.answers(socket))


def test_a_killed_keeper_of_it_leaves_no_server(sockets, tmp_path):
    using = user(sockets, tmp_path)
    with redis.Redis(unix_socket_path=str(sockets / "valkey.sock")) as client:
        server = client.info()["process_id"]
    status = Path("/proc", str(server), "status").read_text()
    processes.kill([int(status.partition("PPid:")[2].split()[0])])
    wait_until(lambda: not valkey.answers(sockets / "valkey.sock"))
    leave(using)


def test_it_listens_on_no_network(private_redis):
    assert private_redis.config_get("port") == {"port": "0"}


def test_it_enters_no_directory_that_others_can_enter(tmp_path):
    theirs = tmp_path / "theirs"
    theirs.mkdir(mode=0o755)
    with pytest.raises(valkey.NoValkey, match="not a private directory"):
        valkey.socket_directory(theirs)
    (tmp_path / "link").symlink_to(tmp_path)
    with pytest.raises(valkey.NoValkey, match="not a private directory"):
        valkey.socket_directory(tmp_path / "link")

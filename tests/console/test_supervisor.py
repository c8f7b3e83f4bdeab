"""`make run` after set-up, on plain files: up, repaired while it runs, stopped without trace, and up again."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from django.conf import settings

from compute.engines.processes import is_stopped, name_of
from console import processes
from tests.processes import slow_region, wait_until

MIB = 1 << 20


class Console:
    """One installation: its directories, its port, and the supervisor while it runs."""

    def __init__(self, data: Path, sockets: Path) -> None:
        self.data, self.sockets = data, sockets
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]

    def environment(self) -> dict[str, str]:
        inherited = {name: value for name, value in os.environ.items() if name not in ("REDIS_URL", "DATABASE_URL")}
        return inherited | {
            "DJANGO_SETTINGS_MODULE": "console.settings",
            "ENGINE": "folder",
            "PORT": str(self.port),
            "STILLFRAME_DATA": str(self.data),
            "STILLFRAME_ENV": "demo",
            "STILLFRAME_SOCKETS": str(self.sockets),
        }

    @contextmanager
    def running(self, *how: str, **more: str) -> Iterator[subprocess.Popen[str]]:
        process = subprocess.Popen(
            [sys.executable, *(how or ("-m", "console.supervisor"))],
            cwd=settings.BASE_DIR,
            env=self.environment() | more,
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            yield process
        finally:
            processes.kill({process.pid, *self.processes()})
            process.communicate()

    def processes(self) -> set[int]:
        return processes.marked([self.data, self.sockets])

    def called(self, words: str) -> set[int]:
        return {pid for pid in self.processes() if words in processes.command_line(pid)}

    def replaced(self, words: str) -> set[int]:
        """Kill the processes called so; those that have come in their place."""
        before = self.called(words)
        assert before
        processes.kill(before)
        came: set[int] = wait_until(lambda: self.called(words) - before, what=f"a new {words}")
        return came

    def tell(self, code: str, **more: str) -> None:
        """Run Python in the console's own environment."""
        command = [sys.executable, "manage.py", "shell", "--no-imports", "-c", code]
        subprocess.run(command, cwd=settings.BASE_DIR, env=self.environment() | more, check=True)

    def operation(self) -> dict[str, Any] | None:
        """The row of the first operation."""
        with closing(sqlite3.connect(self.data / "stillframe.sqlite3", timeout=10)) as database:
            database.row_factory = sqlite3.Row
            row = database.execute("SELECT * FROM compute_operation").fetchone()
            return dict(row) if row else None

    def page(self) -> str:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/", timeout=10) as answer:
            return str(answer.read().decode())


@pytest.fixture
def console(tmp_path: Path) -> Iterator[Console]:
    with tempfile.TemporaryDirectory(prefix="sf-") as directory:  # tmp_path is too long for a socket
        yield Console(tmp_path / "data", Path(directory) / "s")


def read_until(process: subprocess.Popen[str], words: str) -> str:
    assert process.stdout
    told = ""
    for line in process.stdout:
        told += line
        if words in line:
            return told
    raise AssertionError(f"it ended before it said {words!r}:\n{told}")


def test_from_start_to_start(console):
    with console.running() as supervisor:
        told = read_until(supervisor, "Logs:")
        assert f"http://127.0.0.1:{console.port}/" in told
        assert "alice" in told
        assert "Stillframe" in console.page()

        # Each role killed in turn comes back, and the page with it.
        for role in ("rqworker short", "manage.py keeper", "valkey-server", "gunicorn"):
            assert console.replaced(role)
        wait_until(lambda: answers(console), what="the page")

        # And one that is stopped goes on: a keeper that stands still would watch nobody.
        (keeper,) = console.called("manage.py keeper")
        os.kill(keeper, signal.SIGSTOP)
        read_until(supervisor, f"Process {keeper} was stopped: it goes on.")
        wait_until(lambda: not is_stopped(name_of(keeper)), what="the keeper at work")

        supervisor.send_signal(signal.SIGINT)
        assert supervisor.wait(30) == 0
        assert console.processes() == set()

    with console.running() as supervisor:
        told = read_until(supervisor, "Logs:")
        assert "making" not in told, "the demo's machines are made once"
        # As after a crash: what the dead one left behind does not stand in the way.
        supervisor.kill()
        supervisor.wait()

    with console.running() as supervisor:
        read_until(supervisor, "Logs:")
        supervisor.send_signal(signal.SIGTERM)
        assert supervisor.wait(30) == 0
        assert console.processes() == set()


def test_neither_its_logs_nor_its_terminal_are_needed(console):
    """The window is closed, the logs are put away, and somebody dies: it is started again, and all stops in order."""
    with console.running() as supervisor:
        read_until(supervisor, "Logs:")
        assert supervisor.stdout
        supervisor.stdout.close()
        supervisor.stdout = None
        shutil.rmtree(console.data / "log")
        assert console.replaced("manage.py keeper")
        wait_until((console.data / "log" / "keeper.log").exists, what="its log")
        supervisor.send_signal(signal.SIGHUP)
        assert supervisor.wait(30) == 0
        assert console.processes() == set()


def answers(console: Console) -> bool:
    try:
        return "Stillframe" in console.page()
    except OSError:
        return False


# As `make run`, but operations get one second to end instead of ten.
HASTY = "import sys; from console import supervisor; supervisor.OPERATIONS_GET = 1.0; sys.exit(supervisor.main())"


def test_an_operation_that_does_not_end_is_let_go_of_without_a_strike(console, tmp_path):
    """A killed work-horse would leave one, and after three of them the operation is given up (R24)."""
    slow = slow_region(tmp_path, console.data / "folder", rate=MIB // 8)
    with console.running("-c", HASTY, **slow) as supervisor:
        read_until(supervisor, "Logs:")
        place = console.data / "folder" / "instances" / "slow-1"
        place.mkdir()
        (place / "vda.raw").write_bytes(os.urandom(64 * MIB))
        disks = [{"device": "vda", "file": "vda.raw", "medium": "cloud"}]
        (place / "instance.json").write_text(
            json.dumps({"name": "slow-1", "vcpus": 1, "memory_mib": 256, "os": "", "disks": disks})
        )
        console.tell(ADOPT_AND_CAPTURE, **slow)
        wait_until(lambda: (console.operation() or {}).get("step") == "capture", what="the copy")
        supervisor.send_signal(signal.SIGINT)
        assert supervisor.wait(40) == 0
        assert console.processes() == set()
    left = console.operation()
    assert (left["status"], left["holder"], left["strikes"]) == ("running", "", 0)


ADOPT_AND_CAPTURE = """
from django.contrib.auth import get_user_model
from compute import inventory
from compute.models import Disk, Instance
from images.actions import create_image
inventory.sync("folder-1")
alice = get_user_model().objects.get(username="alice")
row = Instance.objects.get(external_id="slow-1")
Instance.objects.filter(pk=row.pk).update(owner=alice)
row.refresh_from_db()
create_image(by=alice, instance=row, name="slow-1-v1", description="", disks=[])
"""


def test_a_step_that_fails_is_told_and_everything_stops(console):
    console.data.mkdir(parents=True)
    (console.data / "stillframe.sqlite3").write_text("this is no database, and longer than its header of 100 bytes" * 9)
    with console.running() as supervisor:
        told, _ = supervisor.communicate(timeout=60)
        assert supervisor.returncode == 1
        assert "prepare failed" in told
        assert "not a database" in told
        assert console.processes() == set()

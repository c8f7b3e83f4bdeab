"""The whole product as `make run` starts it, in a directory, on a port and under a libvirtd of its own."""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from contextlib import suppress
from pathlib import Path

from django.conf import settings

from tests.processes import wait_until

FIRST_START = 180  # seconds, downloads included
LATER_START = 15


class Console:
    """Supervisor, workers, keeper, web, libvirtd and the demo's machines. ``chosen``: of the user's environment."""

    def __init__(self, home: Path, packages: Path, **chosen: str) -> None:
        self.data = home / "data"
        self.data.mkdir(parents=True)
        # What the guests are made of was fetched once for all tests.
        (self.data / "guest").symlink_to(packages)
        name = hashlib.sha256(str(home).encode()).hexdigest()[:6]
        self.sockets = Path(tempfile.gettempdir()) / f"sf-t{name}"
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.process: subprocess.Popen[bytes] | None = None
        self.chosen = {"ENGINE": "libvirt"} | chosen

    def start(self, seconds: float) -> None:
        """Start it: the page has to answer within so many seconds, and the demo to be there within FIRST_START."""
        env = {name: value for name, value in os.environ.items() if not name.startswith(("STILLFRAME_", "REDIS_"))}
        env |= self.chosen | {
            "DJANGO_SETTINGS_MODULE": "console.settings",
            "STILLFRAME_ENV": "demo",
            "STILLFRAME_DATA": str(self.data),
            "STILLFRAME_SOCKETS": str(self.sockets),
            "PORT": str(self.port),
        }
        told = self.said().count("Sign in as")
        with (self.data / "console.out").open("ab") as out:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "console.supervisor"],
                cwd=settings.BASE_DIR,
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                start_new_session=True,
            )
        wait_until(lambda: self.answers() or self.process.poll() is not None, seconds=seconds, what="the page")
        assert self.answers(), self.said()
        ready = f"{told + 1} times the sign-ins"
        wait_until(lambda: self.said().count("Sign in as") > told, seconds=FIRST_START, what=ready)

    def answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}/sign-in/", timeout=2) as answer:
                return answer.status == 200
        except OSError:
            return False

    def said(self) -> str:
        out = self.data / "console.out"
        return out.read_text(errors="replace") if out.exists() else ""

    def interrupt(self) -> int:
        """Ctrl-C; its exit code."""
        self.process.send_signal(signal.SIGINT)
        return self.process.wait(timeout=90)

    def pids(self, *words: str) -> list[int]:
        """Processes of this console whose command line has all of these words."""
        marks = (str(self.data).encode(), str(self.sockets).encode())
        found = []
        for place in Path("/proc").glob("[0-9]*"):
            try:
                line = (place / "cmdline").read_bytes()
                whose = line + (place / "environ").read_bytes()
            except OSError:
                continue
            if any(mark in whose for mark in marks) and all(word.encode() in line for word in words):
                found.append(int(place.name))
        return sorted(found)

    def remove(self) -> None:
        if self.process and self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        for pid in self.pids():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        shutil.rmtree(self.sockets, ignore_errors=True)

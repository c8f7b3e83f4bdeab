"""Processes of ours are found, tied to their parent, and ended."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from django.conf import settings

from console import processes
from tests.processes import wait_until

SLEEP = "import time; time.sleep(600)"


def alive(pid: int) -> bool:
    return processes.command_line(pid) != ""


def test_all_that_is_below_a_process_is_found_and_ended():
    script = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', '{SLEEP}']).wait()"
    parent = subprocess.Popen([sys.executable, "-c", script])
    below = wait_until(lambda: processes.descendants(parent.pid))
    assert below <= processes.descendants(os.getpid())
    processes.end([parent.pid, *below], seconds=5)
    parent.wait()
    wait_until(lambda: not any(map(alive, below)))


def test_a_process_that_ignores_the_request_is_killed():
    script = f"import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('deaf', flush=True); {SLEEP}"
    deaf = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE)
    assert deaf.stdout
    assert deaf.stdout.readline() == b"deaf\n"
    processes.end([deaf.pid], seconds=0.2)
    assert deaf.wait() == -9


def test_ours_are_known_by_their_environment_and_a_users_shell_is_not(tmp_path):
    def start(**environment: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen([sys.executable, "-c", SLEEP], env=os.environ | environment)

    mine = start(STILLFRAME_SOCKETS=str(tmp_path))
    machine = start(XDG_CONFIG_HOME=str(tmp_path / "l/c"))
    neighbour = start(STILLFRAME_SOCKETS=f"{tmp_path}2")
    shell = start(PWD=str(tmp_path))
    try:
        wait_until(lambda: {mine.pid, machine.pid} <= processes.marked([tmp_path]))
        assert not {neighbour.pid, shell.pid} & processes.marked([tmp_path])
    finally:
        for process in (mine, machine, neighbour, shell):
            process.kill()
            process.wait()


def test_a_child_dies_with_its_parent(tmp_path: Path):
    script = (
        "import signal, subprocess, sys\n"
        "from console import processes\n"
        f"child = subprocess.Popen([sys.executable, '-c', '{SLEEP}'],"
        " preexec_fn=lambda: processes.child_setup(signal.SIGKILL))\n"
        "print(child.pid, flush=True)\n"
        "child.wait()\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", script], cwd=settings.BASE_DIR, stdout=subprocess.PIPE)
    assert parent.stdout
    child = int(parent.stdout.readline())
    assert alive(child)
    parent.kill()
    parent.wait()
    wait_until(lambda: not alive(child))

"""Naming a process so that another one can tell whether exactly that one still lives, and signal it.

A name is ``boot/pid namespace/pid/start time``: a pid alone is used again by the next process.
"""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from pathlib import Path


def name_of(pid: int) -> str:
    """The name of a process of this machine. Raises ``FileNotFoundError`` when there is none."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    space = str(Path(f"/proc/{pid}/ns/pid").readlink()).strip("pid:[]")
    return f"{boot}/{space}/{pid}/{_fields(pid)[19]}"


def is_local(name: str) -> bool:
    """Does it belong to this boot of this machine, so that it can be looked up?"""
    return name.split("/")[:2] == name_of(os.getpid()).split("/")[:2]


def is_alive(name: str) -> bool:
    """Is exactly that process still there, and not a zombie? Only for local names."""
    return _state(name) not in ("", "Z", "X")


def is_stopped(name: str) -> bool:
    """Is exactly that process there, and stopped by a signal? Only for local names."""
    return _state(name) == "T"


def kill(name: str) -> None:
    """SIGKILL exactly that process, if it is local, alive, and not another user's."""
    _send(name, signal.SIGKILL)


def go_on(name: str) -> None:
    """SIGCONT exactly that process, if it is local and alive."""
    _send(name, signal.SIGCONT)


def _send(name: str, number: signal.Signals) -> None:
    if not is_local(name):
        return
    with suppress(ProcessLookupError, PermissionError):
        process = os.pidfd_open(int(name.split("/")[2]))
        try:
            if is_alive(name):  # the descriptor now names the process that was looked at, or it is gone
                signal.pidfd_send_signal(process, number)
        finally:
            os.close(process)


def _state(name: str) -> str:
    """The letter of /proc for exactly that process; "" when it has gone."""
    pid, started = name.split("/")[2:]
    try:
        fields = _fields(int(pid))
    except (FileNotFoundError, ProcessLookupError):
        return ""
    return fields[0] if fields[19] == started else ""


def _fields(pid: int) -> list[str]:
    """Of /proc/PID/stat, from the state on: the command before it may hold any character."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()

"""Processes of ours: tied to their parent, found again, ended. Standard library only; Linux only."""

from __future__ import annotations

import ctypes
import os
import signal
import time
from collections.abc import Collection, Iterable, Iterator
from contextlib import suppress
from pathlib import Path

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_libc = ctypes.CDLL(None, use_errno=True)

# A process of ours has one of these below a directory of ours. QEMU gets the latter from libvirtd. Not PWD: a shell
# of the user's that stands in our directories is no process of ours.
_MARKS = ("STILLFRAME_SOCKETS", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME", "XDG_RUNTIME_DIR")


def _prctl(option: int, value: int) -> None:
    if _libc.prctl(option, value, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl")


def child_setup(death_signal: signal.Signals) -> None:
    """In a child before its exec: no inherited signal mask, and ``death_signal`` when the parent dies."""
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    _prctl(_PR_SET_PDEATHSIG, death_signal)


def adopt_orphans() -> None:
    """What a descendant leaves behind becomes our child: we see it end, and nothing needs an init to be reaped."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def _parents() -> Iterator[tuple[int, int]]:
    """(pid, parent) of every process that is not a zombie."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with suppress(OSError):
                stat = (entry / "stat").read_text()
                # The name, in parentheses, may hold anything: the fields begin after the last one.
                state, parent = stat.rpartition(")")[2].split()[:2]
                if state not in "ZX":
                    yield int(entry.name), int(parent)


def children(pid: int) -> set[int]:
    """Every living process that ``pid`` itself has started."""
    return {child for child, parent in _parents() if parent == pid}


def descendants(pid: int) -> set[int]:
    """Every living process below ``pid``."""
    started: dict[int, list[int]] = {}
    for child, parent in _parents():
        started.setdefault(parent, []).append(child)
    found: set[int] = set()
    waiting = [pid]
    while waiting:
        below = started.get(waiting.pop(), [])
        found.update(below)
        waiting += below
    return found


def marked(directories: Collection[Path]) -> set[int]:
    """Every living process whose environment says that it belongs to one of these directories, less our ancestors."""
    prefixes = tuple(f"{name}={directory}".encode() for name in _MARKS for directory in directories)
    parent_of = dict(_parents())
    found = set()
    for pid in parent_of:
        with suppress(OSError):  # gone, or not ours to read
            for variable in Path("/proc", str(pid), "environ").read_bytes().split(b"\0"):
                if any(variable == prefix or variable.startswith(prefix + b"/") for prefix in prefixes):
                    found.add(pid)
    pid = os.getpid()
    while pid in parent_of:
        found.discard(pid)
        pid = parent_of[pid]
    return found


def ask(pids: Iterable[int]) -> None:
    """SIGTERM; those that are gone are fine."""
    _signal(pids, signal.SIGTERM)


def end(pids: Iterable[int], seconds: float) -> None:
    """SIGTERM, and SIGKILL for those that live after ``seconds``."""
    left = set(pids)
    ask(left)
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and (left := left & {pid for pid, _ in _parents()}):
        time.sleep(0.05)
    kill(left)


def kill(pids: Iterable[int]) -> None:
    """SIGKILL, in this order; those that are gone are fine."""
    _signal(pids, signal.SIGKILL)


def command_line(pid: int) -> str:
    """Its words, or "" when it is gone."""
    try:
        return Path("/proc", str(pid), "cmdline").read_text(errors="replace").replace("\0", " ")
    except OSError:
        return ""


def _signal(pids: Iterable[int], number: signal.Signals) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, number)

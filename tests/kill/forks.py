"""Processes of the matrix's own: forked, since starting Python for each would take most of the time."""

from __future__ import annotations

import os
import pickle
import signal
import traceback
from collections.abc import Callable
from typing import TypeVar

from django.db import connections

from console import processes

T = TypeVar("T")


def forked(work: Callable[[], object]) -> int:
    """The pid of one that ends when ``work`` does, or we do: nothing outlives its cell, not even what was stopped."""
    connections.close_all()
    pid = os.fork()
    if pid:
        return pid
    try:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        processes.child_setup(signal.SIGKILL)
        work()
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(0)


def aside(work: Callable[[], T]) -> T:
    """What ``work`` answers in a process of its own: nobody may be forked from one in which libvirt was used."""
    reading, writing = os.pipe()

    def answer() -> None:
        with os.fdopen(writing, "wb") as out:
            pickle.dump(work(), out)

    pid = forked(answer)
    os.close(writing)
    with os.fdopen(reading, "rb") as told:
        answered = told.read()
    os.waitpid(pid, 0)
    if not answered:
        raise RuntimeError("there was no answer")
    return pickle.loads(answered)

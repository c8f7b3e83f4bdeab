"""Processes that begin at one moment: forked, each with a connection of its own, let go together."""

from __future__ import annotations

import os
import pickle
import signal
import traceback
from collections.abc import Callable
from typing import Any, NoReturn

from django.db import connection, connections

from compute.refusals import Refused
from console import processes

Runner = Callable[[], Any]


def race(*runners: Runner) -> list[Any]:
    """What each of them returned. One that raises fails the test; a refusal is an answer: its code."""
    connections.close_all()  # what is open now is ours, and no child's
    ready, at_the_line = os.pipe()
    start, gate = os.pipe()
    results = []
    pids = []
    for runner in runners:
        result, tell = os.pipe()
        pid = os.fork()
        if not pid:
            os.close(gate)
            _run(runner, at_the_line, start, tell)
        os.close(tell)
        results.append(result)
        pids.append(pid)
    os.close(at_the_line)
    os.close(start)
    for _ in runners:
        assert os.read(ready, 1), "a racer died before the start"
    os.close(gate)
    told = [_read(result) for result in results]
    for pid in pids:
        os.waitpid(pid, 0)
    os.close(ready)
    failed = [what for went_well, what in told if not went_well]
    assert not failed, "\n".join(failed)
    return [what for _, what in told]


def _run(runner: Runner, at_the_line: int, start: int, tell: int) -> NoReturn:
    try:
        processes.child_setup(signal.SIGKILL)
        connection.ensure_connection()
        os.write(at_the_line, b".")
        os.read(start, 1)  # ends when the gate opens
        try:
            told = True, runner()
        except Refused as refused:
            told = True, refused.code
        connection.close()
    except BaseException:
        told = False, traceback.format_exc()
    with os.fdopen(tell, "wb") as out:
        pickle.dump(told, out)
    os._exit(0)


def _read(result: int) -> tuple[bool, Any]:
    with os.fdopen(result, "rb") as file:
        told = file.read()
    return pickle.loads(told) if told else (False, "a racer died")

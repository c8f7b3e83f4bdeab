"""What is made to happen at a point, inside the process that has reached it."""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Callable
from contextlib import suppress
from typing import NoReturn

from django.db import OperationalError, connection

from compute import operations
from compute.engines.base import EngineError, Unreachable
from compute.models import Operation
from tests.kill.points import Points
from tests.kill.world import World, alice

Action = Callable[[Points, World], None]


def _engine(points: Points, world: World) -> NoReturn:
    raise EngineError("injected")


def _silence(points: Points, world: World) -> NoReturn:
    raise Unreachable(said="injected")


def _database(points: Points, world: World) -> NoReturn:
    raise OperationalError("injected")


def _disk(points: Points, world: World) -> NoReturn:
    raise OSError(errno.EIO, "injected")


def _disconnect(points: Points, world: World) -> None:
    if world.server and connection.connection is not None:
        world.server.end_connection(connection.connection.info.backend_pid)


def _die(points: Points, world: World) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _stop(points: Points, world: World) -> None:
    os.kill(os.getpid(), signal.SIGSTOP)
    # Here it is revived: from now on a ghost must not change a row.
    points.writes.clear()
    world.mark("revived")


def _signal_of(name: str, number: signal.Signals) -> Action:
    def send(points: Points, world: World) -> None:
        if pid := world.marked(name):
            with suppress(ProcessLookupError):
                os.kill(int(pid), number)

    return send


def _die_together(points: Points, world: World) -> None:
    _signal_of("worker", signal.SIGKILL)(points, world)
    _die(points, world)


def _cancel(points: Points, world: World) -> None:
    operations.cancel(_row(points, world), alice())


def _taken_away(points: Points, world: World) -> None:
    row = _row(points, world)
    assert operations.take_away(row.pk, attempt=row.attempt, beats=row.beats)


def _row(points: Points, world: World) -> Operation:
    return Operation.objects.get(pk=points.operation)


def _signal_copier(number: signal.Signals) -> Action:
    def send(points: Points, world: World) -> None:
        copiers = world.copiers()
        if not copiers:
            world.mark("no-copier")
        for pid in copiers:
            with suppress(ProcessLookupError):
                os.kill(pid, number)

    return send


def _copier_and_horse(points: Points, world: World) -> None:
    _signal_copier(signal.SIGKILL)(points, world)
    _die(points, world)


ACTIONS: dict[str, Action] = {
    "engine": _engine,
    "silence": _silence,
    "database": _database,
    "disk": _disk,
    "disconnect": _disconnect,
    "die": _die,
    "stop": _stop,
    "die together": _die_together,
    "keeper dies": _signal_of("keeper", signal.SIGKILL),
    "keeper stops": _signal_of("keeper", signal.SIGSTOP),
    "cancel": _cancel,
    "taken away": _taken_away,
    "copier dies": _signal_copier(signal.SIGKILL),
    "copier stops": _signal_copier(signal.SIGSTOP),
    "copier and horse die": _copier_and_horse,
    "nothing": lambda points, world: None,
}

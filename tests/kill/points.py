"""The places in the product at which something can die, found by running it, and what is made to happen there.

A point is a place in the code: the lines of the product that are on the stack when a step calls its engine, writes to
the database or changes the disk. Nothing in the product knows of it: steps and the engine are wrapped, SQL is seen by
Django's ``execute_wrapper``, the disk by Python's audit events.
"""

from __future__ import annotations

import os
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from types import FrameType
from typing import Any

from django.conf import settings
from django.db import connection

from compute import operations
from compute.engines.base import Engine, EngineError
from compute.operations import Attempt

PRODUCT = tuple(f"{settings.BASE_DIR}/{app}/" for app in ("compute", "images"))
ENGINES = f"{settings.BASE_DIR}/compute/engines/"
# Lines through which everything goes say less than those that called them.
PASSAGES = {"Attempt.hold", "Attempt.beat", "Stateful.move"}
WRITES = re.compile(r'(?:INSERT INTO|UPDATE|DELETE FROM) "?(\w+)|BEGIN')
DISK = {"os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.chmod", "subprocess.Popen", "open"}
# Engine verbs that change something: also their return is a point, with the work done and the answer not yet heard.
CHANGING = {"start", "stop", "thaw", "make_room", "begin", "end", "seal", "discard", "erase"}
TIMES = 2  # a place inside a loop is a point the first time, and once more


@dataclass(frozen=True)
class Point:
    """Where something can happen. Two runs of the same code have the same points."""

    phase: str  # "claim", a step's name, "turn", "undo <step>", "settle"; "click" in the web process
    what: (
        str  # "before" and "after" the do or undo; "engine begin", "engine begin returned", "sql …", "disk …", "queue"
    )
    # File and line of each frame of the product, innermost first. None: wherever it is, for a cell written by hand.
    where: tuple[tuple[str, int], ...] | None
    nth: int = 1

    @property
    def category(self) -> str:
        return self.what.split()[0]


@dataclass(frozen=True)
class Seen:
    """A point as a dry run met it."""

    point: Point
    label: str  # for people
    inside: bool  # a transaction is open
    step: str  # the step that the row names


class Points:
    """In one process: follows where the product is, and calls ``reached`` at each point. It sees the row's attempt."""

    def __init__(self, phase: str, operation: str, reached: Callable[[Seen, Points], None]) -> None:
        self.phase = phase
        self.operation = operation  # id of the one that is being walked
        self.reached = reached
        self.counts: Counter[tuple[Any, ...]] = Counter()
        self.attempt: Attempt | None = None
        self.quiet = False
        self.writes: list[str] = []  # statements that changed rows

    def meet(self, what: str, frame: FrameType) -> None:
        if self.quiet:
            return
        frames = list(_product(frame))
        where = tuple((name, line) for name, line, _ in frames)
        if what.startswith("disk") and not any(name.startswith("compute/engines/") for name, _ in where):
            return
        place = (self.phase, what, where)
        self.counts[place] += 1
        named = next((f"{who}:{line}" for _, line, who in frames if who not in PASSAGES), "")
        point = Point(*place, self.counts[place])
        label = f"{what} at {named}" if named and what not in ("before", "after") else what
        label += " again" if point.nth > 1 else ""
        step = self.attempt.operation.step if self.attempt else ""
        self.quiet = True
        try:
            # Django calls itself outside of a transaction when it is about to commit it.
            inside = connection.in_atomic_block or what == "sql COMMIT"
            self.reached(Seen(point, label, inside, step), self)
        finally:
            self.quiet = False

    def install(self) -> None:
        """For the rest of this process. Each is made for one operation, so nothing is ever taken out again."""
        global here  # noqa: PLW0603 - the engine's wrapper looks for it
        here = self
        connection.execute_wrappers.append(self._sql)
        if connection.vendor == "postgresql":
            self._wrap_transactions()
        sys.addaudithook(self._audit)
        for job in operations.jobs().values():
            for step in job.steps:
                self._wrap_step(step)
        self._wrap_attempt()

    def _sql(self, execute: Any, sql: str, params: Any, many: bool, context: Any) -> Any:
        match = WRITES.match(sql)
        if match and not self.quiet:
            self.meet(f"sql {match[0].replace(chr(34), '')}", sys._getframe(1))
        result = execute(sql, params, many, context)
        if match and match[1] and context["cursor"].rowcount:
            self.writes.append(sql)
        return result

    def _wrap_transactions(self) -> None:
        """psycopg begins and ends them by itself: no ``execute_wrapper`` sees it."""
        set_autocommit, commit = connection.set_autocommit, connection.commit

        def beginning(autocommit: bool, *args: Any, **kwargs: Any) -> None:
            if not autocommit:
                self.meet("sql BEGIN", sys._getframe(1))
            set_autocommit(autocommit, *args, **kwargs)

        def committing() -> None:
            self.meet("sql COMMIT", sys._getframe(1))
            commit()

        connection.set_autocommit, connection.commit = beginning, committing

    def _audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event not in DISK or self.quiet:
            return
        if event == "open" and not arguments[2] & (os.O_CREAT | os.O_TRUNC):
            return
        self.meet(f"disk {event.removeprefix('os.')}", sys._getframe(1))

    def _wrap_step(self, step: Any) -> None:
        do, undo = step.do, step.undo

        def doing(attempt: Attempt) -> None:
            self.meet("before", sys._getframe(1))
            do(attempt)
            self.meet("after", sys._getframe(1))

        def undoing(attempt: Attempt) -> bool:
            self.phase = f"undo {step.name}"
            self.meet("before", sys._getframe(1))
            gone: bool = undo(attempt)
            if gone:
                self.meet("after", sys._getframe(1))
            return gone

        step.do, step.undo = doing, undoing

    def _wrap_attempt(self) -> None:
        points = self

        def following(verb: str, phase: Callable[..., str]) -> None:
            original = getattr(Attempt, verb)

            @wraps(original)
            def wrapped(attempt: Attempt, *args: Any, **kwargs: Any) -> Any:
                points.attempt = attempt
                points.phase = phase(*args)
                return original(attempt, *args, **kwargs)

            setattr(Attempt, verb, wrapped)

        following("enter", lambda step: step.name)
        following("turn", lambda *_: "turn")
        following("observe", lambda *_: "settle")


here: Points | None = None
# Engine verbs that fail in every process until the file is there.
broken: tuple[str, Path] | None = None


def _product(frame: FrameType | None) -> Iterator[tuple[str, int, str]]:
    while frame is not None:
        name = frame.f_code.co_filename
        if name.startswith(PRODUCT):
            yield name.removeprefix(f"{settings.BASE_DIR}/"), frame.f_lineno, frame.f_code.co_qualname
        frame = frame.f_back


def watched(engine: type[Engine]) -> type[Engine]:
    """The same engine, each call of which is a point."""
    verbs = {verb: _watched(verb, engine) for verb in sorted(Engine.__abstractmethods__)}
    return type(f"Watched{engine.__name__}", (engine,), verbs)


def _watched(verb: str, engine: type[Engine]) -> Callable[..., Any]:
    original = getattr(engine, verb)

    def call(*args: Any, **kwargs: Any) -> Any:
        if here:
            here.meet(f"engine {verb}", sys._getframe(1))
        if broken and verb == broken[0] and not broken[1].exists():
            raise EngineError("injected", verb=verb)

    def heard() -> None:
        if here and verb in CHANGING:
            here.meet(f"engine {verb} returned", sys._getframe(1))

    if verb == "seal":

        @wraps(original)
        def generator(*args: Any, **kwargs: Any) -> Any:
            call()
            result = yield from getattr(engine, verb)(*args, **kwargs)
            heard()
            return result

        return generator

    @wraps(original)
    def plain(*args: Any, **kwargs: Any) -> Any:
        call()
        result = getattr(engine, verb)(*args, **kwargs)
        heard()
        return result

    return plain

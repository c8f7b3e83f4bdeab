"""One cell: a worker, a keeper and work-horses of its own, the fault, and what has to be true afterwards.

Every process is forked, since starting Python for each would take most of the time. What runs in them is the product:
``operations.run`` in a horse and ``Keeper.run`` in the keeper. Only what reaches other processes is exchanged: a
wake-up call is a datagram to the worker, and the keeper's child is a fork.
"""

from __future__ import annotations

import logging
import os
import pickle
import select
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, NoReturn

from django.conf import settings
from django.db import OperationalError, connections

from compute import keeper, operations, wakeup
from compute.engines import processes as names
from compute.models import Litter, Operation, Region
from compute.states import LIVE
from console import processes
from images.doctor import examine
from images.models import Image
from tests.kill import ablations, points
from tests.kill.cells import Cell
from tests.kill.faults import ACTIONS
from tests.kill.forks import forked
from tests.kill.points import TIMES, Points, Seen
from tests.kill.world import RATE, SCENARIOS, Scenario, World, alice, image_again

SPEED = 10  # the keeper's clock runs so much faster: its seconds are the product's, a cell's are fewer
MISSED = ("the fault did not happen", "there was no copier")


class Fast:
    """``time`` for the keeper."""

    monotonic = staticmethod(lambda: time.monotonic() * SPEED)


@dataclass(frozen=True)
class Pace:
    """Seconds: the product's limits, and how long a cell waits."""

    silence: float = 3.0
    stall: float = 4.0
    maximum: float = 5.0
    thaw_after: float = 0.5
    inventory_every: float = 0.5
    settled: float = 3.0  # for the slate to be clean after the end
    deadline: float = 30.0  # for the end


@dataclass
class Result:
    ended: str
    seconds: float
    wrong: list[str]

    @property
    def missed(self) -> bool:
        """The fault found nothing to happen to, on a machine that was too slow or too fast: it says nothing."""
        return any(what in self.wrong for what in MISSED)


class Director:
    pace = Pace()

    def __init__(self, cell: Cell, world: World, without: frozenset[str]) -> None:
        self.cell = cell
        self.world = world
        self.without = without
        self.scenario = self.scenario_of(cell)
        self.control, self.keepers_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.address = str(world.root / "worker.sock")
        self.pids: dict[str, int] = {}

    def scenario_of(self, cell: Cell) -> Scenario:
        return SCENARIOS[cell.kind]

    def complaints(self) -> list[str]:
        return self.world.complaints()

    def diagnosis(self) -> list[str]:
        return [f"doctor: {finding}" for finding in examine(queues=False)]

    def run(self) -> Result:
        processes.adopt_orphans()
        self._set_up()
        began = time.monotonic()
        try:
            ended, wrong = self._play()
        finally:
            connections.close_all()
            while left := processes.descendants(os.getpid()):
                processes.kill(left)
                self._reap(restart=False)
        return Result(ended, time.monotonic() - began, wrong)

    def _set_up(self) -> None:
        pace = self.pace
        settings.LIMIT_SILENCE, settings.LIMIT_STALL, settings.LIMIT_MAXIMUM = pace.silence, pace.stall, pace.maximum
        operations.LOOK_EVERY = operations.UNDO_EVERY = 0.05
        wakeup.send = self._send
        if self.cell.broken:
            points.broken = (self.cell.broken, self.world.root / "lifted")
        ablations.take_out(self.without)
        self.world.enter(self.scenario.engine, RATE)
        self.world.prepare(self.scenario)
        self.start("worker", self._worker)
        self.start("keeper", self._keeper)

    # Processes -------------------------------------------------------------------------------------------------------

    def start(self, name: str, play: Callable[[], None]) -> None:
        self.pids[name] = pid = forked(play)
        (self.world.root / f"{name}.new").write_text(str(pid))
        (self.world.root / f"{name}.new").rename(self.world.root / name)

    def _send(self, queue: str, operation: str) -> None:
        if points.here:
            points.here.meet("queue", sys._getframe(1))
        if self.cell.deaf:
            raise ConnectionRefusedError(self.address)
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as out:
            out.setblocking(False)
            out.sendto(operation.encode(), self.address)

    def _worker(self) -> None:
        """As RQ's: one horse after another."""
        with suppress(FileNotFoundError):
            Path(self.address).unlink()
        inbox = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        inbox.bind(self.address)
        while True:
            operation = inbox.recv(100).decode()
            os.waitpid(forked(lambda: self._horse(operation)), 0)  # noqa: B023 - called at once

    def _keeper(self) -> None:
        keeper.time = Fast
        keeper.TICK, keeper.INVENTORY_EVERY, keeper.THAW_EVERY = 0.1, self.pace.inventory_every, 0.5
        keeper.THAW_AFTER = timedelta(seconds=self.pace.thaw_after * SPEED)
        settings.LIMIT_SILENCE = self.pace.silence * SPEED
        director = self

        def start_child(writer: keeper.Writer, row: Operation) -> None:
            director.keepers_end.send(row.pk.encode())
            pid = int(director.keepers_end.recv(20))
            writer.children[row.pk] = (operations.queue_of(row), Child(names.name_of(pid)))

        keeper.Writer._start_child = start_child
        ablations.take_out_of_keeper(self.without)
        keeper.Keeper().run()

    def _horse(self, operation: str) -> None:
        cell = self.cell
        over = self.world.marked("over") is not None
        armed = not over and self.world.marked("fired") is None
        if over:
            self.world.enter(self.scenario.engine)
        seen: list[Seen] = []
        here = Points("claim", operation, lambda one, points: self._reached(one, points, seen))
        if not over:
            here.install()
        if armed and cell.foreign:
            operations.identity = lambda: f"another-boot/1/{os.getpid()}/1"
        if armed and not cell.alarmed:
            operations.Attempt._arm = lambda attempt: None
        operations.run(operation)
        if cell.record and not over:
            self._recorded(seen)
        if self.world.marked("revived") is not None and armed and here.writes:
            self.world.mark("ghost-wrote", "; ".join(here.writes))

    def _recorded(self, seen: list[Seen]) -> None:
        with (self.world.root / "points").open("ab") as file:
            pickle.dump([one for one in seen if one.point.nth <= TIMES], file)

    def _reached(self, one: Seen, here: Points, seen: list[Seen]) -> None:
        seen.append(one)
        for number, shot in enumerate(self.cell.shots):
            if not shot.hits(one.point):
                continue
            if shot.always:
                self.world.mark("fired", str(os.getpid()))
                with (self.world.root / "fires").open("a") as file:
                    file.write(".")
            else:
                last = number == len(self.cell.shots) - 1
                if not self.world.mark("fired" if last else f"fired {number}", str(os.getpid())):
                    continue
            ACTIONS[shot.action](here, self.world)

    # The play --------------------------------------------------------------------------------------------------------

    def turn(self) -> None:
        """What goes on around: supervising, and forking for the keeper."""
        if select.select([self.control], [], [], 0.03)[0]:
            operation = self.control.recv(100).decode()
            pid = forked(lambda: self._horse(operation))
            with suppress(BrokenPipeError):
                self.control.send(str(pid).encode())
        self._reap(restart=True)

    def _reap(self, *, restart: bool) -> None:
        with suppress(ChildProcessError):
            while pid := os.waitpid(-1, os.WNOHANG)[0]:
                for name, play in (("worker", self._worker), ("keeper", self._keeper)):
                    if restart and self.pids.get(name) == pid:
                        self.start(name, play)

    def until(self, ready: Callable[[], Any], seconds: float) -> Any:
        deadline = time.monotonic() + seconds
        while not (answer := ready()):
            if time.monotonic() > deadline:
                return answer
            self.turn()
        return answer

    def _play(self) -> tuple[str, list[str]]:
        cell, world = self.cell, self.world
        if cell.victim == "keeper":
            # Stopped before it has looked, it would leave a region that nobody has seen since the template was made.
            self.until(lambda: Region.objects.filter(seen_at__gt=world.began).exists(), self.pace.deadline)
        self._clicked(forked(self._click))
        if cell.end == "nothing":
            self.until(lambda: False, 0.3)
            if world.operation(cell.kind) is not None:
                return "something", ["an operation that nobody asked for"]
            return "nothing", self._aftermath([], None)
        row = world.operation(cell.kind)
        if row is None:
            return "nothing", ["there is no operation"]
        if not self.until(lambda: self._ended(row), self.pace.deadline):
            row.refresh_from_db()
            return f"{row.status}…", [
                f"still {row.status} at {row.step!r}, attempt {row.attempt}, held by {row.holder!r}"
            ]
        wrong = []
        if row.status != self._legal_end():
            wrong.append(f"ended {row.status}: {row.reason}")
        if cell.litters and not Litter.objects.exists():
            wrong.append("no litter")
        return row.status, self._aftermath(wrong, row)

    def _click(self) -> None:
        seen: list[Seen] = []
        here = Points("click", "", lambda one, points: self._reached(one, points, seen))
        here.install()
        self.scenario.click()
        if self.cell.record:
            self._recorded(seen)

    def _clicked(self, web: int) -> None:
        """One that was stopped is killed once it has been so for longer than the limits, when nobody waits for it."""
        stopped = self.cell.victim == "web" and self.cell.shots[0].action == "stop"
        if not self.until(lambda: not _lives(web), 2 * self.pace.silence if stopped else self.pace.deadline):
            Litter.objects.filter(key="").update(key="")  # blocked, when it holds the database
            row = self.world.operation(self.cell.kind)
            assert row is None or row.status == "done", f"{row} is {row.status} while the web process is stopped"
            os.kill(web, signal.SIGKILL)

    def _legal_end(self) -> str:
        """As the cell says; poison is what goes wrong every time, and not every attempt comes by every point again."""
        cell = self.cell
        always = any(shot.always for shot in cell.shots) and cell.end == "failed" and cell.victim == "horse"
        fires = len(self.world.marked("fires") or "")
        return "done" if always and fires < operations.STRIKES else cell.end

    def _ended(self, row: Operation) -> bool:
        row.refresh_from_db()
        if (ghost := self._ghost()) is not None:
            if self.cell.cancelled_meanwhile and self.world.mark("cancelled meanwhile"):
                operations.cancel(row, alice())
            if self.cell.revive == "early" and row.holder and str(ghost) not in row.holder.split("/"):
                self._revive(ghost)
        return row.status not in LIVE

    def _ghost(self) -> int | None:
        """The stopped holder, once it is one."""
        if not self.cell.revive:
            return None
        fired = self.world.marked("fired")
        return int(fired) if fired else None

    def _revive(self, ghost: int) -> None:
        with suppress(ProcessLookupError):
            os.kill(ghost, signal.SIGCONT)

    def _aftermath(self, wrong: list[str], row: Operation | None) -> list[str]:
        """The slate, the ghost, and a new image of the same instance."""
        cell, world = self.cell, self.world
        if (cell.shots or cell.broken) and world.marked("fired") is None:
            wrong.append(MISSED[0])
        if world.marked("no-copier") is not None and "copier" in cell.victim and not cell.shots[-1].always:
            wrong.append(MISSED[1])
        world.mark("lifted")
        # Litter goes by the keeper, and what is shown of an instance comes by its inventory: soon.
        self.until(lambda: not self.complaints(), self.pace.settled + (2.0 if cell.litters else 0.0))
        wrong += self.complaints()
        self.until(lambda: not world.copiers(), 2.0)
        wrong += [f"copier {pid} lives" for pid in world.copiers()]
        if (ghost := self._ghost()) is not None:
            before = world.everything()
            self._revive(ghost)
            if not self.until(lambda: not _lives(ghost), self.pace.deadline):
                wrong.append("the ghost still lives")
            after = world.everything()
            wrong += [
                f"the ghost changed {name}: {before[name]} → {after[name]}"
                for name in before
                if before[name] != after[name]
            ]
            if (wrote := world.marked("ghost-wrote")) is not None:
                wrong.append(f"the ghost wrote {wrote}")
        wrong += self.diagnosis()
        world.mark("over")
        return wrong or self._again(row)

    def _again(self, row: Operation | None) -> list[str]:
        """At once: what was asked for, where it did not come about, and a new image of the same instance."""
        try:
            if self.cell.kind == "delete_image" and self.cell.end in ("failed", "cancelled"):
                self.scenario.click()
                if not self.until(lambda: not Image.objects.filter(name="old").exists(), self.pace.deadline):
                    return ["it could not be deleted again"]
            if self.cell.goes_on:
                self.until(lambda: False, self.pace.silence)
            image = image_again(self.scenario.instance)
            if self.cell.goes_on:
                os.kill(self.pids["keeper"], signal.SIGCONT)
        except Exception as error:
            return [f"a new image was refused: {type(error).__name__} {error}"]
        if not self.until(lambda: Image.objects.get(pk=image.pk).status == "available", self.pace.deadline):
            return [f"a new image is {Image.objects.get(pk=image.pk).status}"]
        self.until(lambda: not self.complaints() and not self.world.copiers(), self.pace.settled)
        return [f"after a new image: {what}" for what in self.complaints()]


@dataclass
class Child:
    """What the keeper sees of a process that was forked for it."""

    name: str

    def poll(self) -> int | None:
        return None if names.is_alive(self.name) else 0


def _lives(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state not in "ZX"


def direct(director: Callable[[], Director], root: Path) -> NoReturn:
    """In a process of its own: play a cell in ``root``; the result is pickled there."""
    with (root.with_name(f"{root.name}.log")).open("wb", buffering=0) as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    logging.disable(logging.NOTSET)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    processes.child_setup(signal.SIGKILL)
    try:
        result = director().run()
    except OperationalError as error:
        result = Result("blocked", 0.0, [f"the database did not answer: {error}"])
    except BaseException:
        result = Result("?", 0.0, [traceback.format_exc()])
    (root / "result").write_bytes(pickle.dumps(result))
    os._exit(0)

"""What must happen although nobody asked: one process that needs neither Redis nor workers.

* The **judge** only reads: it finds holders that died or fell silent, and kills silent ones of this machine. A stopped
  writer blocks every other writer of SQLite; it cannot block the judge, who kills it also when no row says who it is.
* The **writer** takes operations away from those holders, and sees to it that what nobody holds is begun: it wakes the
  workers again and, when nobody comes, starts a child that does what a worker does.
* Each **region** has two threads of its own: inventory and litter, and thaw. One that does not answer holds up nobody
  else.

Every act is a compare-and-set, so a second keeper is harmless.
"""

from __future__ import annotations

import logging
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import NamedTuple

from django.conf import settings
from django.db import DatabaseError, connection
from django.utils import timezone

from compute import inventory, operations, writelock
from compute.engines import processes
from compute.engines.base import EngineError, Unreachable
from compute.models import Instance, Litter, Operation, Pulse, Region
from compute.regions import engine_for
from compute.states import LIVE

log = logging.getLogger(__name__)

TICK = 0.5  # seconds between two rounds of judge and writer
WAKE_AFTER = 2.0  # unheld for so long: the wake-up call may have been lost
WAKES_GET = 1.0  # seconds of a round
CHILD_AFTER = 5.0  # still unheld: nobody listens
CHILDREN_PER_QUEUE = 2
WAKE_AT_MOST_EVERY = 60.0
INVENTORY_EVERY = 10.0
THAW_EVERY = 2.0  # an agent that hangs costs seconds each time it is asked
THAW_AFTER = timedelta(seconds=5)
PULSE_EVERY = 5.0


class Verdict(NamedTuple):
    """An operation whose holder is no more, as it was when that was seen."""

    pk: str
    attempt: int
    beats: int


class Judge:
    """Finds holders that are no more, of operations and of SQLite's write lock. Reads only."""

    def __init__(self) -> None:
        self.pulses: dict[str, tuple[int, int, float]] = {}
        self.stopped_writer: tuple[str, float] | None = None  # and since when

    def round(self) -> list[Verdict]:
        now = time.monotonic()
        held = Operation.objects.filter(status__in=LIVE).exclude(holder="")
        rows = list(held.values_list("pk", "attempt", "beats", "holder"))
        self.pulses = {pk: pulse for pk, pulse in self.pulses.items() if pk in {row[0] for row in rows}}
        verdicts = []
        for pk, attempt, beats, holder in rows:
            pulse = self.pulses.get(pk)
            if pulse is None or pulse[:2] != (attempt, beats):
                pulse = self.pulses[pk] = (attempt, beats, now)
            silent = now - pulse[2] > settings.LIMIT_SILENCE
            if processes.is_local(holder):
                if not processes.is_alive(holder):
                    verdicts.append(Verdict(pk, attempt, beats))
                elif silent:
                    log.warning("operation %s: its holder fell silent, killing it (%s)", pk, holder)
                    processes.kill(holder)  # the verdict follows once it is dead
                    # One that hangs in the kernel runs no more; one of another user is fenced off.
                    if now - pulse[2] > 2 * settings.LIMIT_SILENCE:
                        verdicts.append(Verdict(pk, attempt, beats))
            elif silent:
                verdicts.append(Verdict(pk, attempt, beats))
        self._free_write_lock(now)
        return verdicts

    def _free_write_lock(self, now: float) -> None:
        writer = writelock.holder()
        if writer is None or not processes.is_stopped(writer):
            self.stopped_writer = None
        elif self.stopped_writer is None or self.stopped_writer[0] != writer:
            self.stopped_writer = (writer, now)
        elif now - self.stopped_writer[1] > settings.LIMIT_SILENCE:
            log.warning("%s was stopped while it wrote to the database and holds up everybody: killing it", writer)
            processes.kill(writer)


@dataclass
class Unheld:
    """One live operation that nobody holds, as this keeper has been seeing it."""

    attempt: int
    since: float
    woken: float
    interval: float = WAKE_AFTER


class Writer:
    """Takes away, wakes, and starts children."""

    def __init__(self, verdicts: queue.SimpleQueue[Verdict]) -> None:
        self.verdicts = verdicts
        self.unheld: dict[str, Unheld] = {}
        self.patience = float("-inf")
        self.children: dict[str, tuple[str, subprocess.Popen[bytes]]] = {}  # by operation, with their queue

    def round(self) -> None:
        self._reap()
        while not self.verdicts.empty():
            verdict = self.verdicts.get()
            if operations.take_away(verdict.pk, attempt=verdict.attempt, beats=verdict.beats):
                log.warning("operation %s: taken from attempt %s, whose holder is no more", verdict.pk, verdict.attempt)
        self._begin_unheld(time.monotonic())

    def _wake(self, row: Operation) -> bool:
        """Not while a Redis that hangs has already cost a second of this round: the others wait for the next."""
        if time.monotonic() > self.patience:
            return False
        operations.wake(row)
        return True

    def _begin_unheld(self, now: float) -> None:
        self.patience = time.monotonic() + WAKES_GET
        unreachable = set(Region.objects.exclude(unreachable_since=None).values_list("pk", flat=True))
        known = Operation.objects.filter(kind__in=operations.jobs(), region__in=settings.ENGINES)
        rows = [
            row
            for row in known.filter(status__in=LIVE, holder="").order_by("created_at")
            if not (row.waiting_since and row.region_id in unreachable) and operations.has_place(row)
        ]
        self.unheld = {row.pk: self.unheld[row.pk] for row in rows if row.pk in self.unheld}
        for row in rows:
            seen = self.unheld.get(row.pk)
            if seen is None or seen.attempt != row.attempt:
                # A new attempt after a strike waits a little longer each time.
                since = now + (2.0**row.strikes if row.strikes else 0.0)
                seen = self.unheld[row.pk] = Unheld(row.attempt, since, now)
                if row.attempt and not row.strikes:
                    self._wake(row)
            if now - seen.since < WAKE_AFTER:
                continue
            if now - seen.woken > seen.interval and self._wake(row):
                seen.woken, seen.interval = now, min(2 * seen.interval, WAKE_AT_MOST_EVERY)
            if now - seen.since > CHILD_AFTER and self._may_start_child(row):
                self._start_child(row)

    def _may_start_child(self, row: Operation) -> bool:
        if row.pk in self.children:
            return False
        # As workers do, children of each queue keep to themselves: a start never waits behind a copy.
        siblings = sum(queue == operations.queue_of(row) for queue, _ in self.children.values())
        return siblings < CHILDREN_PER_QUEUE

    def _start_child(self, row: Operation) -> None:
        log.warning("operation %s: nobody came, starting a child for it", row.pk)
        command = [sys.executable, str(settings.BASE_DIR / "manage.py"), "perform", row.pk]
        self.children[row.pk] = (operations.queue_of(row), subprocess.Popen(command, stdin=subprocess.DEVNULL))

    def _reap(self) -> None:
        self.children = {pk: child for pk, child in self.children.items() if child[1].poll() is None}

    def stop(self) -> None:
        """Ask the children to let go, and wait for them."""
        for _, child in self.children.values():
            child.terminate()
        for _, child in self.children.values():
            try:
                child.wait(timeout=5)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()


class RegionWatch:
    """One region: what it shows becomes rows, what is litter is discarded; and, in threads of their own, who is frozen
    is thawed.
    """

    def __init__(self, region: str) -> None:
        self.region = region
        self.owing: dict[str, tuple[datetime, float]] = {}  # since when by the row, and first seen by our own clock
        self.asking: dict[str, threading.Thread] = {}

    def look(self) -> None:
        try:
            inventory.sync(self.region)
        except Unreachable as error:
            row, _ = Region.objects.get_or_create(name=self.region)
            if Region.objects.filter(pk=row.pk, unreachable_since=None).update(unreachable_since=timezone.now()):
                log.warning("region %s does not answer: %s", self.region, error)
            return
        for litter in Litter.objects.filter(region=self.region):
            try:
                if engine_for(self.region).discard(litter.key, litter.handle):
                    litter.delete()
                    log.info("litter %s: gone", litter.key)
            except EngineError:
                log.warning("litter %s: still there", litter.key, exc_info=True)

    def thaw(self) -> None:
        """Ask every guest that still owes a thaw, each in a thread: one that hangs must keep no other frozen.

        Whether the region answers is the inventory's to say.
        """
        now, seen = time.monotonic(), {}
        for row in Instance.objects.filter(region=self.region).exclude(thaw_owed=None):
            assert row.thaw_owed is not None
            owed, first = self.owing.get(row.pk, (None, now))
            seen[row.pk] = row.thaw_owed, first if owed == row.thaw_owed else now
            # By the row's time, for a keeper just started; by our own clock, for the system's may step back.
            age = max(timezone.now() - row.thaw_owed, timedelta(seconds=now - seen[row.pk][1]))
            due = age > THAW_AFTER
            if due and not (row.pk in self.asking and self.asking[row.pk].is_alive()):
                self.asking[row.pk] = threading.Thread(target=self._thaw, args=(row,), daemon=True)
                self.asking[row.pk].start()
        self.owing = seen

    def _thaw(self, row: Instance) -> None:
        try:
            if not engine_for(self.region).thaw(row.external_id):
                return
            # While someone is at work on it, a freeze may still be on its way: asked, but not yet paid.
            if row.operations.live().filter(holding=True).exclude(holder="").exists():
                return
            # A capture that began meanwhile owes a thaw of its own: only the one that was seen is paid.
            if Instance.objects.filter(pk=row.pk, thaw_owed=row.thaw_owed).update(thaw_owed=None):
                log.warning("instance %s: thawed, since whoever froze it did not say that it was", row.pk)
        except (EngineError, DatabaseError) as error:
            log.info("instance %s: not thawed: %s", row.pk, error)
        finally:
            connection.close()


class Keeper:
    """All of it, until told to stop."""

    def __init__(self) -> None:
        self.stopped = threading.Event()
        self.verdicts: queue.SimpleQueue[Verdict] = queue.SimpleQueue()
        self.judge = Judge()
        self.writer = Writer(self.verdicts)
        self.judged = self.beaten = float("-inf")

    def run(self) -> None:
        rounds: list[tuple[str, float, Callable[[], None]]] = [
            ("judge", TICK, self._judge),
            ("writer", TICK, self._write),
        ]
        for name in settings.ENGINES:
            watch = RegionWatch(name)
            rounds += [(f"look {name}", INVENTORY_EVERY, watch.look), (f"thaw {name}", THAW_EVERY, watch.thaw)]
        threads = {
            name: threading.Thread(target=self._repeat, args=(every, round), name=name, daemon=True)
            for name, every, round in rounds
        }
        for thread in threads.values():
            thread.start()
        self.stopped.wait()
        threads["writer"].join(timeout=5)
        self.writer.stop()

    def stop(self) -> None:
        self.stopped.set()

    def _judge(self) -> None:
        for verdict in self.judge.round():
            self.verdicts.put(verdict)
        self.judged = time.monotonic()

    def _write(self) -> None:
        self.writer.round()
        now = time.monotonic()
        # Only as long as the judge makes its rounds, too: it does not write.
        if now - self.beaten > PULSE_EVERY and now - self.judged < PULSE_EVERY:
            Pulse.objects.update_or_create(name=Pulse.KEEPER, defaults={"at": timezone.now()})
            self.beaten = now

    def _repeat(self, every: float, round: Callable[[], None]) -> None:
        while not self.stopped.is_set():
            try:
                connection.close_if_unusable_or_obsolete()
                round()
            except DatabaseError:
                log.warning("%s: the database did not answer", threading.current_thread().name, exc_info=True)
            except Exception:
                # The last line of defence: whatever one round meets, the next one is made.
                log.exception("%s: a round went wrong", threading.current_thread().name)
            self.stopped.wait(every)
        connection.close()

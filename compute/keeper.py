"""What must happen although nobody asked: one process that needs neither Redis nor workers.

* The **judge** only reads: it finds holders that died or fell silent, and kills silent ones of this machine. A stopped
  writer can block every other writer of SQLite; it cannot block the judge.
* The **writer** takes operations away from those holders, and sees to it that what nobody holds is begun: it wakes the
  workers again and, when nobody comes, starts a child that does what a worker does.
* Each **region** has a thread of its own: inventory, thaw, litter. One that does not answer holds up nobody else.

Every act is a compare-and-set, so a second keeper is harmless.
"""

from __future__ import annotations

import logging
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import NamedTuple

from django.conf import settings
from django.db import DatabaseError, connection
from django.utils import timezone

from compute import inventory, operations
from compute.engines.base import EngineError, Unreachable
from compute.models import Instance, Litter, Operation, Region
from compute.regions import engine_for
from compute.states import LIVE

log = logging.getLogger(__name__)

TICK = 0.5  # seconds between two rounds of judge and writer
WAKE_AFTER = 2.0  # unheld for so long: the wake-up call may have been lost
CHILD_AFTER = 5.0  # still unheld: nobody listens
CHILDREN_PER_REGION = 2
WAKE_AT_MOST_EVERY = 60.0
INVENTORY_EVERY = 10.0
THAW_EVERY = 2.0  # an agent that hangs costs seconds each time it is asked
THAW_AFTER = timedelta(seconds=5)


class Verdict(NamedTuple):
    """An operation whose holder is no more, as it was when that was seen."""

    pk: str
    attempt: int
    beats: int


def is_local(holder: str) -> bool:
    """Does it belong to this boot of this machine, so that its process can be looked up?"""
    return holder.split("/")[:2] == operations.identity().split("/")[:2]


def is_alive(holder: str) -> bool:
    """Is that very process (pid and start time) still there, and not a zombie? Only for local holders."""
    pid, started = holder.split("/")[2:]
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return fields[19] == started and fields[0] not in ("Z", "X")


def kill(holder: str) -> None:
    """SIGKILL exactly that process; its open transaction dies with it."""
    with suppress(ProcessLookupError):
        process = os.pidfd_open(int(holder.split("/")[2]))
        try:
            if is_alive(holder):  # the descriptor now names the process that was looked at, or it is gone
                signal.pidfd_send_signal(process, signal.SIGKILL)
        finally:
            os.close(process)


class Judge:
    """Finds holders that are no more. Reads only."""

    def __init__(self) -> None:
        self.pulses: dict[str, tuple[int, int, float]] = {}

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
            if is_local(holder):
                if not is_alive(holder):
                    verdicts.append(Verdict(pk, attempt, beats))
                elif silent:
                    log.warning("operation %s: its holder fell silent, killing it (%s)", pk, holder)
                    kill(holder)  # the verdict follows once it is dead
            elif silent:
                verdicts.append(Verdict(pk, attempt, beats))
        return verdicts


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
        self.children: dict[str, tuple[str, subprocess.Popen[bytes]]] = {}

    def round(self) -> None:
        self._reap()
        while not self.verdicts.empty():
            verdict = self.verdicts.get()
            if operations.take_away(verdict.pk, attempt=verdict.attempt, beats=verdict.beats):
                log.warning("operation %s: taken from attempt %s, whose holder is no more", verdict.pk, verdict.attempt)
        self._begin_unheld(time.monotonic())

    def _begin_unheld(self, now: float) -> None:
        unreachable = set(Region.objects.exclude(unreachable_since=None).values_list("pk", flat=True))
        rows = [
            row
            for row in Operation.objects.filter(status__in=LIVE, holder="").order_by("created_at")
            if row.region_id in settings.ENGINES and not (row.waiting_since and row.region_id in unreachable)
        ]
        self.unheld = {row.pk: self.unheld[row.pk] for row in rows if row.pk in self.unheld}
        for row in rows:
            seen = self.unheld.get(row.pk)
            if seen is None or seen.attempt != row.attempt:
                # A new attempt after a strike waits a little longer each time.
                since = now + (2.0**row.strikes if row.strikes else 0.0)
                seen = self.unheld[row.pk] = Unheld(row.attempt, since, now)
                if row.attempt and not row.strikes:
                    operations.wake(row)
            if now - seen.since < WAKE_AFTER:
                continue
            if now - seen.woken > seen.interval:
                operations.wake(row)
                seen.woken, seen.interval = now, min(2 * seen.interval, WAKE_AT_MOST_EVERY)
            if now - seen.since > CHILD_AFTER and self._may_start_child(row):
                self._start_child(row)

    def _may_start_child(self, row: Operation) -> bool:
        if row.pk in self.children:
            return False
        siblings = sum(region == row.region_id for region, _ in self.children.values())
        return siblings < CHILDREN_PER_REGION and operations.has_place(row)

    def _start_child(self, row: Operation) -> None:
        log.warning("operation %s: nobody came, starting a child for it", row.pk)
        command = [sys.executable, str(settings.BASE_DIR / "manage.py"), "perform", row.pk]
        self.children[row.pk] = (row.region_id, subprocess.Popen(command, stdin=subprocess.DEVNULL))

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
    """One region: what it shows becomes rows, who is frozen is thawed, what is litter is discarded."""

    def __init__(self, region: str) -> None:
        self.region = region
        self.looked = self.thawed = float("-inf")

    def round(self) -> None:
        try:
            now = time.monotonic()
            if now - self.thawed >= THAW_EVERY:
                self._thaw()
                self.thawed = time.monotonic()
            if now - self.looked >= INVENTORY_EVERY:
                self.looked = now
                inventory.sync(self.region)
                self._discard_litter()
        except Unreachable as error:
            row, _ = Region.objects.get_or_create(name=self.region)
            if Region.objects.filter(pk=row.pk, unreachable_since=None).update(unreachable_since=timezone.now()):
                log.warning("region %s does not answer: %s", self.region, error)
        except EngineError:
            log.exception("region %s could not be looked at", self.region)

    def _thaw(self) -> None:
        owing = Instance.objects.filter(region=self.region, thaw_owed__lt=timezone.now() - THAW_AFTER)
        for pk, external_id, owed in owing.values_list("pk", "external_id", "thaw_owed"):
            if engine_for(self.region).thaw(external_id):
                # A capture that began meanwhile owes a thaw of its own: only the one that was seen is paid.
                Instance.objects.filter(pk=pk, thaw_owed=owed).update(thaw_owed=None)
                log.warning("instance %s: thawed, since whoever froze it did not say that it was", pk)

    def _discard_litter(self) -> None:
        for litter in Litter.objects.filter(region=self.region):
            try:
                if engine_for(self.region).discard(litter.key, litter.handle):
                    litter.delete()
                    log.info("litter %s: gone", litter.key)
            except EngineError:
                log.warning("litter %s: still there", litter.key, exc_info=True)


class Keeper:
    """All of it, until told to stop."""

    def __init__(self) -> None:
        self.stopped = threading.Event()
        self.verdicts: queue.SimpleQueue[Verdict] = queue.SimpleQueue()
        self.judge = Judge()
        self.writer = Writer(self.verdicts)

    def run(self) -> None:
        rounds: list[tuple[str, Callable[[], None]]] = [("judge", self._judge), ("writer", self.writer.round)]
        rounds += [(f"region {name}", RegionWatch(name).round) for name in settings.ENGINES]
        threads = [
            threading.Thread(target=self._repeat, args=(round,), name=name, daemon=True) for name, round in rounds
        ]
        for thread in threads:
            thread.start()
        self.stopped.wait()
        threads[1].join(timeout=5)
        self.writer.stop()

    def stop(self) -> None:
        self.stopped.set()

    def _judge(self) -> None:
        for verdict in self.judge.round():
            self.verdicts.put(verdict)

    def _repeat(self, round: Callable[[], None]) -> None:
        while not self.stopped.is_set():
            try:
                round()
            except DatabaseError:
                log.warning("%s: the database did not answer", threading.current_thread().name, exc_info=True)
            except Exception:
                # The last line of defence: whatever one round meets, the next one is made.
                log.exception("%s: a round went wrong", threading.current_thread().name)
            connection.close_if_unusable_or_obsolete()
            self.stopped.wait(TICK)
        connection.close()

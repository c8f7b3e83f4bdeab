"""The keeper's rounds, one at a time (docs/rules.md R24)."""

from __future__ import annotations

import queue
import socket
import threading
import time
from datetime import timedelta
from pathlib import Path

import pytest
from django.utils import timezone

from compute import keeper, regions, wakeup
from compute.engines.base import EngineError, Unreachable
from compute.engines.folder import FolderEngine
from compute.keeper import Judge, RegionWatch, Verdict, Writer
from compute.models import Instance, Litter, Region
from compute.operations import identity
from tests.factories import InstanceFactory, OperationFactory

pytestmark = pytest.mark.django_db(transaction=True)


class Freezer(FolderEngine):
    """A folder region whose guests can be frozen; some do not answer."""

    frozen: set[str] = set()
    silent: set[str] = set()
    hangs: threading.Event  # hung-2 answers once it is set

    def thaw(self, instance: str) -> bool:
        if instance in self.silent:
            raise Unreachable
        if instance == "hung-2":
            assert self.hangs.wait(30)
        if instance.startswith("odd"):
            raise EngineError("engine-error", said="unknown command")
        self.frozen.discard(instance)
        return True


@pytest.fixture
def freezer(folder, settings) -> type[Freezer]:
    entry = settings.ENGINES["folder-1"] | {"BACKEND": "tests.compute.test_rounds.Freezer"}
    settings.ENGINES = {"folder-1": entry}
    regions._engine.cache_clear()
    Freezer.frozen, Freezer.silent, Freezer.hangs = set(), set(), threading.Event()
    yield Freezer
    regions._engine.cache_clear()


def thawing(watch: RegionWatch | None = None) -> None:
    """One round, and the ends of what it began."""
    watch = watch or RegionWatch("folder-1")
    watch.thaw()
    for asking in watch.asking.values():
        asking.join()


def owing(name: str, seconds: float = 6) -> Instance:
    Freezer.frozen.add(name)
    return InstanceFactory(name=name, external_id=name, thaw_owed=timezone.now() - timedelta(seconds=seconds))


def test_whoever_still_owes_after_five_seconds_is_thawed(freezer):
    row, early = owing("web-1"), owing("web-2", seconds=1)
    thawing()
    row.refresh_from_db()
    early.refresh_from_db()
    assert row.thaw_owed is None
    assert early.thaw_owed is not None
    assert freezer.frozen == {"web-2"}


def test_a_clock_that_steps_back_keeps_nobody_frozen(freezer, monkeypatch):
    """The row then seems to be of the future: the keeper's own clock decides."""
    row = owing("web-1", seconds=-3600)
    watch = RegionWatch("folder-1")
    thawing(watch)
    row.refresh_from_db()
    assert row.thaw_owed is not None
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now + 6)
    thawing(watch)
    row.refresh_from_db()
    assert row.thaw_owed is None


def test_one_guest_that_does_not_answer_keeps_nobody_else_frozen(freezer):
    """Nor does it make the region unreachable: that is the inventory's to say."""
    rows = [owing(name) for name in ("hung-1", "odd-1", "web-1")]
    freezer.silent = {"hung-1"}
    thawing()
    for row in rows:
        row.refresh_from_db()
    assert [row.thaw_owed is None for row in rows] == [False, False, True]
    assert Region.objects.get().unreachable_since is None


def test_one_guest_that_hangs_holds_up_nobody_else(freezer):
    """A freeze elsewhere must not last until its time-out; nor is it asked again before it has answered."""
    hung, other = owing("hung-2"), owing("web-1")
    watch = RegionWatch("folder-1")
    watch.thaw()
    watch.asking[other.pk].join()
    other.refresh_from_db()
    assert other.thaw_owed is None
    asking = watch.asking[hung.pk]
    watch.thaw()
    assert watch.asking[hung.pk] is asking
    freezer.hangs.set()
    asking.join()
    hung.refresh_from_db()
    assert hung.thaw_owed is None


def test_while_someone_is_at_work_a_thaw_is_asked_for_but_not_paid(freezer):
    """The freeze may still be on its way."""
    row = owing("web-1")
    operation = OperationFactory(instance=row, status="running", holder="someone")
    thawing()
    row.refresh_from_db()
    assert row.thaw_owed is not None
    assert freezer.frozen == set()
    operation.holder = ""
    operation.save()
    thawing()
    row.refresh_from_db()
    assert row.thaw_owed is None


def test_a_holder_that_cannot_be_killed_is_taken_from_all_the_same(folder, settings, monkeypatch):
    """It hangs in the kernel, or is another user's. Here it is PID 1, which the kernel lets nobody kill."""
    settings.LIMIT_SILENCE = 100
    boot, space, _, _ = identity().split("/")
    started = Path("/proc/1/stat").read_text().rpartition(")")[2].split()[19]
    operation = OperationFactory(status="running", attempt=1, holder=f"{boot}/{space}/1/{started}")
    judge, began, passed = Judge(), time.monotonic(), 0.0
    monkeypatch.setattr(time, "monotonic", lambda: began + passed)
    assert judge.round() == []
    passed = 150
    assert judge.round() == [], "it is killed, and given the time to die"
    passed = 201
    (verdict,) = judge.round()
    assert verdict == Verdict(operation.pk, 1, 0)


def test_a_redis_that_hangs_holds_up_no_round(folder, settings, monkeypatch):
    """Each call costs a second, and while it is waited for nothing is taken away and no child begins."""
    for number in range(6):
        OperationFactory(kind="start", instance=InstanceFactory(name=f"web-{number}", external_id=f"web-{number}"))
    monkeypatch.setattr(keeper, "WAKE_AFTER", -1)
    writer = Writer(queue.SimpleQueue())
    writer.round()
    for seen in writer.unheld.values():
        seen.interval = -1
    with socket.create_server(("127.0.0.1", 0)) as mute:
        settings.REDIS_URL = f"redis://127.0.0.1:{mute.getsockname()[1]}/0"
        wakeup._connection.cache_clear()
        began = time.monotonic()
        writer.round()
        assert time.monotonic() - began < 4
    wakeup._connection.cache_clear()
    assert {seen.interval for seen in writer.unheld.values()} > {-1}, "the others are told in the next"


def test_litter_is_discarded_until_it_is_gone(folder):
    region = Region.objects.create(name="folder-1")
    folder.engine.make_room("op-1")
    Litter.objects.create(region=region, key="op-1")
    RegionWatch("folder-1").look()
    assert not Litter.objects.exists()
    assert folder.store_files() == set()


def test_a_region_that_does_not_answer_says_since_when(folder):
    (folder.root / "instances").rename(folder.root / "away")
    RegionWatch("folder-1").look()
    since = Region.objects.get().unreachable_since
    RegionWatch("folder-1").look()
    assert Region.objects.get().unreachable_since == since is not None
    (folder.root / "away").rename(folder.root / "instances")
    RegionWatch("folder-1").look()
    assert Region.objects.get().unreachable_since is None


def test_an_operation_that_nobody_knows_holds_up_no_other(folder, monkeypatch):
    """Of a kind that this version does not have."""
    OperationFactory(kind="of-the-future", instance=None, holding=False)
    known = OperationFactory(instance=InstanceFactory(), holding=True)
    woken = []
    monkeypatch.setattr("compute.operations.wake", lambda row: woken.append(row.pk))
    monkeypatch.setattr("compute.keeper.WAKE_AFTER", -1)
    writer = Writer(None)
    writer._begin_unheld(0)
    assert woken in ([], [known.pk])
    assert set(writer.unheld) == {known.pk}

"""Many processes for one operation: one has it, and it ends in one way (docs/rules.md R10, R11, R18, R24)."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

import pytest
from django.conf import settings

from compute import operations
from compute.models import Operation, Snapshot
from compute.operations import claim, perform, take_away
from images.actions import cancel, create_image, delete_image
from images.models import Image
from tests.factories import OperationFactory, QuotaFactory
from tests.races.racers import Runner, race
from tests.world import Folder

pytestmark = pytest.mark.usefixtures("database")
MANY = 20


def test_twenty_claims_of_one_row(folder):
    operation = OperationFactory(kind="create_image", instance=None)
    assert sum(race(*[lambda: claim(operation.pk) is not None] * MANY)) == 1
    operation.refresh_from_db()
    assert (operation.status, operation.attempt) == ("running", 1)


def test_twenty_claims_in_a_region_for_two(folder):
    """The limit of long operations holds also when everybody counts at once."""
    rows = [OperationFactory(kind="create_image", instance=None, holding=False) for _ in range(MANY)]
    limit = settings.ENGINES["folder-1"]["LONG_LIMIT"]
    assert sum(race(*[lambda pk=row.pk: claim(pk) is not None for row in rows])) == limit
    assert Operation.objects.exclude(holder="").count() == limit


def test_twenty_verdicts_of_one_dead_holder(folder):
    """Taken away once: one strike, whoever else saw it too."""
    operation = OperationFactory(kind="create_image", instance=None)
    claim(operation.pk)
    operation.refresh_from_db()
    verdict = {"attempt": operation.attempt, "beats": operation.beats}
    assert sum(race(*[lambda: take_away(operation.pk, **verdict)] * MANY)) == 1
    operation.refresh_from_db()
    assert (operation.strikes, operation.attempt, operation.holder) == (1, 2, "")


# Cancel, completion and deletion -------------------------------------------------------------------------------------

ROUNDS = 14


class Moment:
    """Seconds after the start, closing in on the moment at which one outcome becomes the other."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.step = 0.016
        self.early: bool | None = None

    def was(self, *, early: bool) -> None:
        if self.early is not None and early != self.early:
            self.step = max(self.step / 2, 0.001)
        self.early = early
        self.seconds = max(0.0, self.seconds + (self.step if early else -self.step))

    def of(self, runner: Runner) -> Runner:
        """The same, begun so much later."""
        return lambda: (time.sleep(self.seconds), runner())[1]


@pytest.fixture
def captured(folder: Folder, alice, monkeypatch) -> Callable[[], Image]:
    """Makes images, each of an instance of its own, of which all is done but the end: that takes milliseconds."""
    monkeypatch.setattr(operations, "LOOK_EVERY", 0.02)
    monkeypatch.setattr(operations, "UNDO_EVERY", 0.02)
    QuotaFactory(owner=alice, images=ROUNDS, snapshots=ROUNDS)
    names = (f"web-{n}" for n in range(ROUNDS))

    def make() -> Image:
        name = next(names)
        instance = folder.instance(name, alice, mib=1, vda="cloud")
        image = create_image(by=alice, instance=instance, name=name, description="", disks=[])
        attempt = claim(image.operations.get().pk)
        for step in attempt.job.steps:
            attempt.enter(step)
            step.do(attempt)
        attempt.release(strike=False)
        return image

    return make


def whole(image: Image, folder: Folder) -> bool:
    """Available, with the bytes of its disk."""
    stored = image.mappings.get().snapshot
    source = folder.disk(image.instance_name, "vda")
    return (image.status, stored.status) == ("available", "available") and (
        folder.stored(stored.external_id).read_bytes() == source.read_bytes()
    )


def nothing_left(making: Operation, folder: Folder) -> bool:
    rows = Snapshot.objects.filter(disk__instance=making.instance)
    return not rows.exists() and not any(name.startswith(making.pk) for name in folder.store_files())


def test_cancel_against_completion(captured, folder, alice):
    """R11: whoever commits first wins: cancelled with nothing left, or refused and Available. Never between."""
    moment = Moment()
    seen = set()
    for _ in range(ROUNDS):
        image = captured()
        making = image.operations.get()
        _, refused = race(
            partial(perform, making.pk),
            moment.of(partial(cancel, by=alice, image=image, delete=False)),
        )
        image.refresh_from_db()
        making.refresh_from_db()
        if refused:
            assert (refused, making.status) == ("not-being-made", "done")
            assert whole(image, folder)
        else:
            assert (making.status, image.status) == ("cancelled", "error")
            assert nothing_left(making, folder)
        moment.was(early=not refused)
        seen.add(refused)
    assert seen == {None, "not-being-made"}, "each of them came first once"


def test_delete_against_cancel(captured, folder, alice):
    """R9, R10: a deletion is refused, or remembered, or follows; its image is gone then, and only then."""
    moment = Moment()
    seen = set()
    for _ in range(ROUNDS):
        image = captured()
        making = image.operations.get()
        _, too_late, refused = race(
            partial(perform, making.pk),
            partial(cancel, by=alice, image=image, delete=False),
            moment.of(partial(delete_image, by=alice, image=image, snapshots=True)),
        )
        making.refresh_from_db()
        assert making.status == ("done" if too_late else "cancelled")
        for deleting in Operation.objects.filter(kind="delete_image", status="queued"):
            perform(deleting.pk)
        row = Image.objects.filter(pk=image.pk).first()
        assert (row is None) == (refused is None)
        if row and too_late:
            assert whole(row, folder)
        else:
            assert row is None or row.status == "error"
            assert nothing_left(making, folder)
        # "moved-first": the cleaning up was over just now, or about to begin.
        assert refused in (None, "image-not-available", "moved-first")
        moment.was(early=refused == "image-not-available")
        seen.add(refused)
    assert {None, "image-not-available"} <= seen, "it came before the cleaning up once, and after it once"
    assert not Operation.objects.live().exists()


def test_delete_against_the_end_of_the_cleaning_up(captured, folder, alice):
    """R10: remembered until the cleaning up is over, an operation of its own from then on; never forgotten."""
    moment = Moment()
    seen = set()
    for _ in range(ROUNDS):
        image = captured()
        making = image.operations.get()
        cancel(by=alice, image=image, delete=False)
        _, refused = race(
            partial(perform, making.pk),
            moment.of(partial(delete_image, by=alice, image=image, snapshots=True)),
        )
        deleting = Operation.objects.filter(kind="delete_image", status="queued").first()
        if deleting:
            perform(deleting.pk)
        assert refused in (None, "image-not-available", "moved-first")
        assert Image.objects.filter(pk=image.pk).exists() == bool(refused)
        assert nothing_left(making, folder)
        moment.was(early=not deleting)
        seen.add(refused or ("follows" if deleting else "remembered"))
    assert {"follows", "remembered"} <= seen
    assert not Operation.objects.live().exists()

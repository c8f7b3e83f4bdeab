"""Images, snapshots, quotas and operations in any order, on the folder engine: what has to be true is, after each step.

Hypothesis chooses the order. What a worker does is done in this process, up to its death at any write of a row, after
which the operation is taken from it (docs/rules.md R5, R8–R12, R18, R24). The profile of tests/conftest.py plays the
same orders each time; ``PYTEST_ARGS="tests/races/test_machine.py --hypothesis-profile=long" make test`` plays others,
and many.
"""

from __future__ import annotations

import re
import shutil
from itertools import count
from typing import Any

import hypothesis
import pytest
from django.db import connection
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from compute import operations
from compute.keeper import RegionWatch
from compute.models import Disk, Instance, Litter, Operation, Quota, Resource, Snapshot
from compute.operations import STRIKES, Attempt, Lost, claim, give_up, perform, take_away
from compute.refusals import Refused
from compute.states import LIVE
from images.actions import cancel, create_image, delete_image
from images.doctor import examine
from images.models import DeviceMapping, Image
from images.rules import uses
from tests.factories import QuotaFactory
from tests.world import Folder

pytestmark = pytest.mark.usefixtures("database")
WRITES = re.compile("INSERT|UPDATE|DELETE|BEGIN")
DISKS = {"web-1": {"vda": "cloud", "vdb": "cloud"}, "db-1": {"vda": "local", "vdb": "cloud"}}
some = st.integers(0, 3)  # one of however many there are, mostly one that moves


meanwhile = st.sampled_from(["nothing", "cancel", "cancel and delete", "delete", "given up"])


class Death(BaseException):
    """A worker dies: nothing of the product may catch it."""


class Worker:
    """``connection.execute_wrapper``: dies at its ``writes``-th write, once; its transaction is rolled back."""

    def __init__(self, writes: int) -> None:
        self.left = writes

    def __call__(self, execute: Any, sql: str, *arguments: Any) -> Any:
        if WRITES.match(sql):
            self.left -= 1
            if not self.left:
                raise Death
        return execute(sql, *arguments)


def refused(verb: Any, **arguments: Any) -> str:
    """Code of the refusal, or ""."""
    try:
        verb(**arguments)
    except Refused as why:
        return why.code
    return ""


def reachable(row: Any, was: str) -> set[str]:
    """Where the arrows lead from there, in any number of steps."""
    found, waiting = {was}, [was]
    while waiting:
        further = row.ARROWS[waiting.pop()] - found
        found |= further
        waiting += further
    return found


class Machine(RuleBasedStateMachine):
    def __init__(self, alice: Any) -> None:
        super().__init__()
        self.alice = alice
        self.world = Folder()
        self.watch = RegionWatch(self.world.region)
        self.contents = {}
        for name, media in DISKS.items():
            row = self.world.instance(name, alice, mib=0, **media)
            for disk in row.disks.all():
                path = self.world.disk(name, disk.device)
                path.write_bytes(f"{name} {disk.device}".encode() * 400)
                self.contents[name, disk.device] = path.read_bytes()
        self.watch.look()
        self.quota = QuotaFactory(owner=alice, images=3, snapshots=5)
        self.names = count()
        self.silent = False
        self.missing: set[str] = set()  # instances without their system disk's file
        # What may be, because of what was done.
        self.statuses: dict[tuple[type, str], str] = {}
        self.deaths: dict[str, int] = {}
        self.may_fail: set[str] = set()  # operations
        self.free: set[str] = set()  # snapshots that were to outlive their image
        self.deleted: set[str] = set()  # images whose deletion was accepted
        self.made: set[str] = set()  # images
        self.ghosts: list[Attempt] = []

    # What people do --------------------------------------------------------------------------------------------------

    @initialize(data=st.booleans())
    def begin(self, data: bool) -> None:
        for which in DISKS:
            self.create(which, data)

    @rule(which=st.sampled_from(sorted(DISKS)), data=st.booleans())
    def create(self, which: str, data: bool) -> None:
        instance = Instance.objects.get(name=which)
        system, second = instance.disks.order_by("device")
        takes = {
            Resource.IMAGES: 1,
            Resource.SNAPSHOTS: (system.medium == "cloud") + data,
        }
        used = uses(self.alice, self.world.region)
        busy = Operation.objects.filter(instance=instance, status__in=LIVE, holding=True).exists()
        short = [resource for resource, more in takes.items() if used[resource].short(more)]
        unfit = [disk.problem for disk in (system, second)[: 1 + data] if disk.problem]
        name = f"image-{next(self.names)}"
        disks = [second.pk] if data else []
        told = refused(create_image, by=self.alice, instance=instance, name=name, description="", disks=disks)
        if short:
            assert told == f"quota-{short[0]}"
        elif busy:
            assert told in ("busy-image", "busy-image-left")
        elif instance.status == "error":
            assert told == "image-wrong-status"  # until the keeper has seen it again
        else:
            assert told == (unfit[0] if unfit else "")
        if not told:
            image = Image.objects.get(name=name)
            self.made.add(image.pk)
            if which in self.missing:
                self.may_fail.add(image.operation.pk)

    @rule(n=some, delete=st.booleans())
    def cancel(self, n: int, delete: bool) -> None:
        if image := self._image(n):
            self._cancel(image, delete=delete)

    def _cancel(self, image: Image, *, delete: bool) -> None:
        making = image.operations.filter(kind="create_image", status__in=("queued", "running"), cancelled_by=None)
        operation = making.first()
        told = refused(cancel, by=self.alice, image=image, delete=delete)
        assert told == ("" if operation else "not-being-made")
        if operation:
            self.may_fail.add(operation.pk)
            if delete:
                self._will_go(image, snapshots=True)

    @rule(n=some, snapshots=st.booleans())
    def delete(self, n: int, snapshots: bool) -> None:
        if image := self._image(n):
            self._delete(image, snapshots=snapshots)

    def _delete(self, image: Image, *, snapshots: bool) -> None:
        expected = {"creating": "image-not-available", "copying": "image-not-available", "deleting": "image-deleting"}
        told = refused(delete_image, by=self.alice, image=image, snapshots=snapshots)
        assert told == expected.get(image.status, "")
        if not told:
            self._will_go(image, snapshots=snapshots)

    @rule(images=st.integers(1, 5), snapshots=st.integers(1, 8))
    def change_quota(self, images: int, snapshots: int) -> None:
        """Below present use as well (R20)."""
        Quota.objects.filter(pk=self.quota.pk).update(images=images, snapshots=snapshots)

    # What workers do -------------------------------------------------------------------------------------------------

    @rule(n=some)
    def work(self, n: int) -> None:
        if operation := self._operation(n):
            self._waits(operation)
            perform(operation.pk)

    @rule(n=some, writes=st.integers(1, 40), meanwhile=meanwhile)
    def work_until_death(self, n: int, writes: int, meanwhile: str) -> None:
        if operation := self._operation(n):
            self._waits(operation)
            try:
                with connection.execute_wrapper(Worker(writes)):
                    perform(operation.pk)
            except Death:
                self._dies(operation)
                self._before_the_next_attempt(operation, meanwhile)

    @rule(n=some, steps=st.integers(0, 3), early=st.booleans(), meanwhile=meanwhile)
    def work_until_stopped(self, n: int, steps: int, early: bool, meanwhile: str) -> None:
        """It is stopped between two steps and taken from, and may go on later, as a ghost."""
        operation = self._operation(n)
        may = operation and not self.silent and operation.strikes < STRIKES  # else it turns round at once
        may = may and operation.status != "undoing" and not operation.cancelled_by
        attempt = claim(operation.pk) if may else None
        if attempt is None:
            return
        operation.refresh_from_db()
        names = [step.name for step in attempt.job.steps]
        first = names.index(operation.step) if operation.step else 0
        try:
            for step in attempt.job.steps[first : first + steps]:
                attempt.enter(step)
                step.do(attempt)
        except operations.EngineError:
            assert self.may_fail & {operation.pk} or attempt.job.kind == "delete_image"
        self._dies(operation)
        self.ghosts.append(attempt)
        self._before_the_next_attempt(operation, meanwhile)
        if early:
            self.ghost_goes_on(len(self.ghosts) - 1)

    @rule(n=some)
    def ghost_goes_on(self, n: int) -> None:
        """It finds that the operation is not its own, and changes nothing."""
        if not self.ghosts:
            return
        ghost = self.ghosts[n % len(self.ghosts)]
        before = list(Operation.objects.order_by("pk").values())
        with pytest.raises(Lost):
            ghost.beat()
        with pytest.raises(Lost):
            ghost.turn("failed", {"code": "unexpected", "data": {}})
        ghost.release(strike=True)
        assert list(Operation.objects.order_by("pk").values()) == before

    # What happens to regions -----------------------------------------------------------------------------------------

    @rule()
    def keeper_looks(self) -> None:
        self.watch.look()

    @precondition(lambda self: not self.silent)
    @rule()
    def region_falls_silent(self) -> None:
        for name in ("instances", "store"):
            (self.world.root / name).rename(self.world.root / f"{name}.away")
        self.silent = True

    @precondition(lambda self: self.silent)
    @rule()
    def admin_gives_the_region_up(self) -> None:
        self.watch.look()
        for operation in Operation.objects.live():
            assert give_up(operation)
            self.may_fail.add(operation.pk)

    @precondition(lambda self: self.silent)
    @rule()
    def region_answers(self) -> None:
        for name in ("instances", "store"):
            (self.world.root / f"{name}.away").rename(self.world.root / name)
        self.silent = False

    @precondition(lambda self: not self.silent)
    @rule(which=st.sampled_from(sorted(DISKS)))
    def disk_vanishes_or_returns(self, which: str) -> None:
        path = self.world.disk(which, "vda")
        if path.exists():
            path.unlink()
            self.missing.add(which)
            self.may_fail.update(Operation.objects.live().filter(instance__name=which).values_list("pk", flat=True))
        else:
            path.write_bytes(self.contents[which, "vda"])
            self.missing.discard(which)

    # What has to be true ---------------------------------------------------------------------------------------------

    @invariant()
    def quota_is_what_is_there(self) -> None:
        used = uses(self.alice, self.world.region)
        there = {image.pk for image in Image.objects.all()}
        assert self.made - self.deleted <= there <= self.made, "an image goes when its deletion was accepted only"
        assert used[Resource.IMAGES].used == len(there)
        mapped = set(DeviceMapping.objects.exclude(snapshot=None).values_list("snapshot", flat=True))
        snapshots = set(Snapshot.objects.values_list("pk", flat=True))
        assert used[Resource.SNAPSHOTS].used == len(snapshots)
        assert mapped <= snapshots <= mapped | self.free, "a snapshot that belongs to nothing"

    @invariant()
    def statuses_are_legal(self) -> None:
        for row in (*Image.objects.all(), *Snapshot.objects.all()):
            key = type(row), row.pk
            assert row.status in reachable(row, self.statuses.get(key, "creating"))
            self.statuses[key] = row.status
        for image in Image.objects.all():
            live = {(row.kind, row.status) for row in image.operations.live()}
            assert live <= {
                "creating": {("create_image", "queued"), ("create_image", "running")},
                "copying": {("create_image", "running")},
                "available": set(),
                "error": {("create_image", "undoing")},
                "deleting": {("delete_image", "queued"), ("delete_image", "running")},
            }.get(image.status)
            assert len(live) == 1 or image.status in ("available", "error")
            if image.status == "available":
                assert {mapping.snapshot.status for mapping in image.mappings.all() if mapping.snapshot} <= {
                    "available"
                }

    @invariant()
    def locks_are_free_when_idle(self) -> None:
        for operation in Operation.objects.all():
            if operation.status in LIVE:
                continue
            assert (operation.holder, operation.ended_at is None) == ("", False)
            if operation.pk not in self.may_fail and self.deaths.get(operation.pk, 0) < STRIKES:
                assert operation.status == "done", f"nobody cancelled it and nothing failed: {operation.reason}"
        for instance in Instance.objects.all():
            assert (instance.operation is None) == (not instance.operations.live().filter(holding=True).exists())

    @precondition(lambda self: not self.silent)
    @invariant()
    def files_and_rows_explain_each_other(self) -> None:
        rows = (*Snapshot.objects.exclude(external_id=""), *DeviceMapping.objects.exclude(external_id=""))
        names = {row.external_id for row in rows}
        live = set(Operation.objects.live().values_list("pk", flat=True)) | set(
            Litter.objects.values_list("key", flat=True)
        )
        files = self.world.store_files()
        for name in files - names:
            key = name.partition("/")[0].removesuffix(".creating")
            record = name.endswith("/sealed.json") and any(other.startswith(f"{key}/") for other in names)
            assert record or key in live, f"no row explains {name}"
        for image in Image.objects.filter(status="available"):
            for mapping in image.mappings.all():
                stored = self.world.stored(mapping.file.external_id)
                if mapping.file.pk or mapping.snapshot:
                    assert stored.read_bytes() == self.contents[image.instance_name, mapping.device]
        for snapshot in Snapshot.objects.filter(status="available"):
            assert snapshot.external_id in files

    # The end of all orders -------------------------------------------------------------------------------------------

    def teardown(self) -> None:
        """Everything ends, whatever was done before; and a new image works at once."""
        try:
            self._let_everything_end()
            for which in DISKS:
                self._make_another(which)
        finally:
            shutil.rmtree(self.world.root)
            for table in (DeviceMapping, Operation, Snapshot, Image, Litter, Quota, Disk, Instance):
                table.objects.all().delete()

    def _let_everything_end(self) -> None:
        if self.silent:
            self.region_answers()
        for which in DISKS:
            if which in self.missing:
                self.disk_vanishes_or_returns(which)
        for _ in range(2 * STRIKES):
            self.watch.look()
            for operation in Operation.objects.live():
                perform(operation.pk)
        self.watch.look()
        assert not Operation.objects.live().exists(), "everything ends"
        for image in Image.objects.filter(pk__in=self.deleted):
            assert image.operations.filter(kind="delete_image", status="failed").exists(), "a deletion was forgotten"
        assert not Litter.objects.exists()
        assert not Instance.objects.exclude(status="stopped", thaw_owed=None).exists()
        assert not [name for name in self.world.store_files() if ".creating" in name]
        for check in (self.quota_is_what_is_there, self.statuses_are_legal, self.locks_are_free_when_idle):
            check()
        self.files_and_rows_explain_each_other()
        assert not [str(finding) for finding in examine(queues=False)]

    def _make_another(self, which: str) -> None:
        self.change_quota(images=20, snapshots=40)
        self.create(which, True)
        perform(Operation.objects.live().get().pk)
        self.locks_are_free_when_idle()
        self.files_and_rows_explain_each_other()

    # Of the machine itself -------------------------------------------------------------------------------------------

    # Which rules may be chosen depends on nothing that depends on time, as the number of looks at a copy does.

    def _operation(self, n: int) -> Operation | None:
        """One that is live; where none is, an image is asked for first."""
        if not Operation.objects.live().exists():
            self.create(sorted(DISKS)[n % 2], True)
        return self._one(Operation.objects.live(), n)

    def _one(self, rows: Any, n: int) -> Any:
        """The n-th, in the order in which they came to be; None when there is none."""
        found = list(rows.order_by("created_at"))
        return found[n % len(found)] if found else None

    def _image(self, n: int) -> Image | None:
        moving = Image.objects.moving()
        return self._one(moving if n < 3 and moving.exists() else Image.objects.all(), n)

    def _will_go(self, image: Image, *, snapshots: bool) -> None:
        self.deleted.add(image.pk)
        if not snapshots:
            self.free.update(Snapshot.objects.filter(mappings__image=image).values_list("pk", flat=True))

    def _waits(self, operation: Operation) -> None:
        """A region that answers now and then costs an attempt, too."""
        if self.silent:
            self.deaths[operation.pk] = self.deaths.get(operation.pk, 0) + 1

    def _dies(self, operation: Operation) -> None:
        """The judge sees it, and the writer takes the operation away."""
        operation.refresh_from_db()
        if operation.holder:
            self.deaths[operation.pk] = self.deaths.get(operation.pk, 0) + 1
            assert take_away(operation.pk, attempt=operation.attempt, beats=operation.beats)

    def _before_the_next_attempt(self, operation: Operation, what: str) -> None:
        image = Image.objects.filter(pk=operation.image_id).first()
        if image and what.startswith("cancel"):
            self._cancel(image, delete=what.endswith("delete"))
        elif image and what == "delete":
            self._delete(image, snapshots=True)
        elif what == "given up" and not self.silent:
            self.region_falls_silent()
            self.admin_gives_the_region_up()
            self.region_answers()


def test_whatever_comes_in_whatever_order(alice, monkeypatch):
    monkeypatch.setattr(operations, "LOOK_EVERY", 0.01)
    monkeypatch.setattr(operations, "UNDO_EVERY", 0.01)
    run_state_machine_as_test(lambda: Machine(alice), settings=hypothesis.settings())

"""The steps of making and deleting an image, each do beside its undo."""

from __future__ import annotations

import logging
from collections.abc import Generator

from django.utils import timezone

from compute import inventory
from compute.engines.base import EngineError, Handle, Look, Part, Sealed, Unreachable, WorkState
from compute.models import Instance, Operation, Snapshot
from compute.operations import Attempt, Job, Long, Step, Watch, wait_for
from compute.space import why_not_fit
from compute.states import InstanceStatus, SnapshotStatus
from images.models import DeviceMapping, Image
from images.states import ImageStatus

log = logging.getLogger(__name__)


class Room(Step):
    """The place in which everything of the operation will lie. Its undo removes the place and all that is in it.

    What cannot fit into the store is refused here, before the guest is asked for anything.
    """

    name = "room"

    def do(self, attempt: Attempt) -> None:
        operation = attempt.operation
        space = attempt.engine.space() or (None, None)
        if refused := why_not_fit(operation.region_id, operation.still_to_write, space, operation=operation):
            raise refused
        attempt.engine.make_room(attempt.operation.pk)

    def undo(self, attempt: Attempt) -> bool:
        return attempt.engine.discard(attempt.operation.pk, attempt.handle(Capture.name))


class Capture(Long):
    """All chosen disks as of one instant. From the instant on the image is Copying."""

    name = "capture"

    def begin(self, attempt: Attempt) -> Handle:
        operation = attempt.operation
        instance = operation.instance
        assert instance is not None
        # Before the guest is asked: should we die between freeze and thaw, the keeper knows whom to thaw.
        with attempt.hold():
            row = Instance.objects.get(pk=instance.pk)
            Instance.objects.filter(pk=instance.pk).update(thaw_owed=timezone.now())
        owed_before = row.thaw_owed is not None
        if owed_before:
            # Whoever froze it died. A guest that is frozen cannot be frozen again, nor should it wait for our own thaw.
            attempt.engine.thaw(instance.external_id)
        parts = tuple(Part(part["disk"], device) for device, part in operation.choices["parts"].items())
        handle, captured = attempt.engine.begin(operation.pk, instance.external_id, parts)
        attempt.beat()
        asked = captured.asked or owed_before
        thawed = not asked or attempt.engine.thaw(instance.external_id)
        instant = captured.instant.isoformat() if captured.instant else None
        kept = attempt.keep(self.name, handle=handle, instant=instant)
        with attempt.hold(work=kept, frozen_ms=captured.freeze_ms):
            facts = {
                "consistency": captured.consistency,
                "instant": captured.instant,
                "frozen": captured.frozen,
                "thawed": captured.thawed,
                "freeze_ms": captured.freeze_ms,
            }
            image = Image.objects.get(pk=operation.image_id)
            if image.status == ImageStatus.CREATING:
                image.move(ImageStatus.COPYING, **facts)
            else:
                # Begun a second time, since the first was lost without a trace: this instant is the one.
                Image.objects.filter(pk=image.pk).update(**facts)
            Snapshot.objects.filter(mappings__image=image).update(instant=captured.instant)
            if thawed:
                Instance.objects.filter(pk=instance.pk).update(thaw_owed=None)
        return handle

    def undo(self, attempt: Attempt) -> bool:
        """A thaw that is still owed is asked for; when the guest does not answer, the keeper goes on asking."""
        instance = attempt.operation.instance
        if instance is None or not Instance.objects.filter(pk=instance.pk).exclude(thaw_owed=None).exists():
            return True
        try:
            thawed = attempt.engine.thaw(instance.external_id)
        except Unreachable:
            raise
        except EngineError:
            log.warning("operation %s: not thawed", attempt.operation.pk, exc_info=True)
            return True
        if thawed:
            with attempt.hold():
                Instance.objects.filter(pk=instance.pk).update(thaw_owed=None)
        return True


class Seal(Step):
    """Inspect, hash, publish; the files' facts are on the rows before the operation is done."""

    name = "seal"

    def do(self, attempt: Attempt) -> None:
        operation = attempt.operation
        sizes = {device: part["size"] for device, part in operation.choices["parts"].items()}
        work = attempt.engine.seal(operation.pk, sizes)
        sealed = self._watch(attempt, work, dict.fromkeys(sizes))
        versions = attempt.engine.versions()
        with attempt.hold(stored_bytes=sum(file.stored for file in sealed.values())):
            Image.objects.filter(pk=operation.image_id).update(versions=versions)
            for mapping in DeviceMapping.objects.filter(image=operation.image_id).select_related("snapshot"):
                _write(mapping, sealed[mapping.device])

    def _watch(
        self, attempt: Attempt, work: Generator[dict[str, int], None, dict[str, Sealed]], parts: dict[str, None]
    ) -> dict[str, Sealed]:
        watch = Watch("check")
        while True:
            try:
                done = next(work)
            except StopIteration as stop:
                sealed: dict[str, Sealed] = stop.value
                return sealed
            # How many bytes a file will have is not said; how many were read is.
            watch.see(attempt, Look(WorkState.RUNNING, {name: (done[name], 0) for name in parts}))


def _write(mapping: DeviceMapping, sealed: Sealed) -> None:
    facts = {
        "external_id": sealed.id,
        "format": sealed.format,
        "stored_bytes": sealed.stored,
        "sha256": sealed.sha256,
    }
    if mapping.snapshot is None:
        DeviceMapping.objects.filter(pk=mapping.pk).update(**facts)
    else:
        Snapshot.objects.filter(pk=mapping.snapshot.pk).update(**facts)


class CreateImage(Job):
    """R8–R11: an image is whole, or it is Error and nothing of it is left."""

    kind = "create_image"
    long = True
    steps = (Room(), Capture(), Seal())

    def finish(self, operation: Operation) -> None:
        image = Image.objects.get(pk=operation.image_id)
        for snapshot in Snapshot.objects.filter(mappings__image=image):
            snapshot.move(SnapshotStatus.AVAILABLE)
        image.move(ImageStatus.AVAILABLE, available_at=timezone.now())

    def failing(self, operation: Operation) -> None:
        image = Image.objects.get(pk=operation.image_id)
        if image.is_being_made:
            image.move(ImageStatus.ERROR, reason=operation.reason)

    def settle(self, operation: Operation, seen: InstanceStatus | None) -> None:
        """R10: the files are gone, so the snapshots' rows go; the image says what was observed of the instance."""
        image = Image.objects.select_for_update().get(pk=operation.image_id)
        snapshots = list(Snapshot.objects.filter(mappings__image=image))
        # A local system disk's file is the mapping's own, and it has gone as well.
        nothing = {"external_id": "", "format": "", "stored_bytes": None, "sha256": ""}
        DeviceMapping.objects.filter(image=image).update(snapshot=None, **nothing)
        Snapshot.objects.filter(pk__in=[snapshot.pk for snapshot in snapshots]).delete()
        for snapshot in snapshots:
            snapshot.tell(snapshot.status, "deleted")
        # Undone again it holds its instance no more, which may be at something else by now.
        if operation.instance and operation.holding:
            inventory.settle(operation.instance, seen)
        if image.delete_wanted:
            image.tell(image.status, "deleted")
            image.delete()
            return
        reason = image.reason or {}
        observed = {"power": str(seen), "at": timezone.now().isoformat()} if seen else None
        Image.objects.filter(pk=image.pk).update(reason=reason | {"observed": observed})

    def litter(self, operation: Operation) -> dict[str, Handle | None]:
        return {operation.pk: operation.work.get(Capture.name, {}).get("handle")}


class Erase(Step):
    """The files first, then the rows that explain them; each as soon as it is gone."""

    name = "erase"

    def do(self, attempt: Attempt) -> None:
        operation = attempt.operation
        for snapshot in Snapshot.objects.filter(pk__in=operation.choices["snapshots"]):
            self._erase(attempt, snapshot.external_id)
            with attempt.hold():
                DeviceMapping.objects.filter(snapshot=snapshot).update(snapshot=None)
                snapshot.tell(snapshot.status, "deleted")
                snapshot.delete()
        for mapping in DeviceMapping.objects.filter(image=operation.image_id).exclude(external_id=""):
            self._erase(attempt, mapping.external_id)

    def _erase(self, attempt: Attempt, stored: str) -> None:
        if stored:
            wait_for(attempt, lambda: attempt.engine.erase(stored), code="erase-slow")


class DeleteImage(Job):
    """R18. There is no way back from the first file on."""

    kind = "delete_image"
    steps = (Erase(),)
    no_return = "erase"

    def finish(self, operation: Operation) -> None:
        if operation.image:
            operation.image.tell(operation.image.status, "deleted")
            operation.image.delete()

    def settle(self, operation: Operation, seen: InstanceStatus | None) -> None:
        """Given up: what is left of it is in Error, and can be asked for again."""
        image = Image.objects.get(pk=operation.image_id)
        for snapshot in Snapshot.objects.filter(pk__in=operation.choices["snapshots"]):
            snapshot.move(SnapshotStatus.ERROR)
        image.move(ImageStatus.ERROR, reason=operation.reason)


JOBS: tuple[Job, ...] = (CreateImage(), DeleteImage())

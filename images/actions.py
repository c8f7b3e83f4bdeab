"""Making, cancelling and deleting images: each one transaction that locks, checks under the lock, and writes."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from django.db import transaction

from compute import operations, quotas
from compute.actions import locked_instance
from compute.log import about
from compute.models import Disk, Instance, Medium, Operation, Role, Snapshot, generated_name
from compute.refusals import Conflict, Refused
from compute.rules import why_not_yours
from compute.states import LIVE, OperationStatus, SnapshotStatus
from images.models import DeviceMapping, Image
from images.rules import (
    needed,
    why_not_cancel,
    why_not_create_image,
    why_not_delete,
    why_not_fit,
    why_not_include,
)
from images.states import ImageStatus


@transaction.atomic
def create_image(*, by: Any, instance: Instance, name: str, description: str, disks: Collection[str]) -> Image:
    """Write the image, its mappings, its snapshots and the operation that makes them, or refuse with nothing made.

    ``disks``: ids of the chosen data disks. Quota is locked before the instance (the order of all locks), so that of
    many at once exactly as many win as it allows.
    """
    quotas.take(by, instance.region_id, needed(instance, disks))
    row = locked_instance(instance, by)
    if refused := why_not_create_image(row):
        raise refused
    chosen, left_out = _choose(row, set(disks))
    if refused := why_not_fit(row.region, chosen):
        raise refused
    system = chosen[0]
    image = Image.objects.create(
        region_id=row.region_id,
        owner=by,
        name=name,
        description=description,
        medium=system.medium,
        instance=row,
        instance_name=row.name,
        os=row.os,
        left_out=left_out,
    )
    for disk in chosen:
        snapshot = None
        if disk.medium == Medium.CLOUD:
            snapshot = Snapshot.objects.create(
                region_id=row.region_id,
                owner=by,
                name=generated_name(name, disk.device),
                disk=disk,
                device=disk.device,
                size_bytes=disk.size_bytes,
                encrypted=disk.encrypted,
            )
        DeviceMapping.objects.create(
            image=image,
            device=disk.device,
            disk_name=disk.name,
            medium=disk.medium,
            size_bytes=disk.size_bytes,
            snapshot=snapshot,
            encrypted=disk.encrypted,
            delete_with_instance=disk.delete_with_instance,
        )
    operation = operations.submit(
        "create_image",
        region_id=row.region_id,
        asked_by=by,
        instance=row,
        image=image,
        exclusive=True,
        subject=name,
        choices={
            "parts": {
                disk.device: {"disk": disk.external_id, "size": disk.size_bytes, "bytes": disk.most_to_copy}
                for disk in chosen
            },
            "disks": sorted(disks),
        },
    )
    with about(operation.pk):
        for made in (image, *Snapshot.objects.filter(mappings__image=image)):
            made.tell("new", made.status)
    return image


def _choose(instance: Instance, wanted: set[str]) -> tuple[list[Disk], list[dict[str, Any]]]:
    """The system disk and the wanted data disks in device order; and what stays out, each with its reason."""
    chosen: list[Disk] = []
    left_out: list[dict[str, Any]] = []
    for disk in instance.disks.select_for_update().order_by("device"):
        if disk.role == Role.SYSTEM:
            chosen.insert(0, disk)
            continue
        refused = why_not_include(disk)
        if disk.pk in wanted:
            if refused:
                raise refused
            chosen.append(disk)
            wanted.discard(disk.pk)
        else:
            why = refused.reason if refused else {"code": "not-chosen", "data": {}}
            left_out.append({"device": disk.device, "name": disk.name, "size": disk.size_bytes, "why": why})
    if wanted:
        raise Refused("not-of-instance", instance=instance.name)
    return chosen, left_out


def _locked(image: Image, by: Any, *, staff: bool = False) -> Image:
    row = Image.objects.select_for_update().filter(pk=image.pk).first()
    if row is None:
        raise Conflict
    refused = why_not_yours(row, by)
    if refused and not (staff and by.is_staff):
        raise refused
    return row


@transaction.atomic
def cancel(*, by: Any, image: Image, delete: bool) -> None:
    """Stop making it and clean up (R11); with ``delete``, which is its owner's to say, the image goes too after."""
    making = Operation.objects.select_for_update().filter(image=image, kind="create_image", status__in=LIVE).first()
    row = _locked(image, by, staff=not delete)
    if refused := why_not_cancel(row):
        raise refused
    if making is None or not operations.cancel(making, by):
        raise Refused("not-being-made")
    if delete:
        Image.objects.filter(pk=row.pk).update(delete_wanted=True)


@transaction.atomic
def delete_image(*, by: Any, image: Image, snapshots: bool) -> None:
    """Delete it (R18), with those of its snapshots that no other image needs if ``snapshots``.

    While it is still being cleaned up, the wish is remembered and carried out after (R10).
    """
    undoing = Operation.objects.select_for_update().filter(image=image, status=OperationStatus.UNDOING).first()
    row = _locked(image, by)
    if refused := why_not_delete(row):
        raise refused
    if undoing is not None:
        Image.objects.filter(pk=row.pk).update(delete_wanted=True)
        return
    if Operation.objects.filter(image=row, status__in=LIVE).exists():
        raise Conflict
    doomed: list[Snapshot] = []
    if snapshots:
        own = Snapshot.objects.select_for_update().filter(mappings__image=row)
        doomed += own.exclude(pk__in=Snapshot.objects.filter(mappings__image__in=_others(row)))
    operation = operations.submit(
        "delete_image",
        region_id=row.region_id,
        asked_by=by,
        image=row,
        exclusive=True,
        holding=False,
        subject=row.name,
        choices={"snapshots": [snapshot.pk for snapshot in doomed]},
    )
    with about(operation.pk):
        row.move(ImageStatus.DELETING, reason=None)
        for snapshot in doomed:
            snapshot.move(SnapshotStatus.DELETING)


def _others(image: Image) -> Any:
    return Image.objects.filter(region=image.region_id).exclude(pk=image.pk)

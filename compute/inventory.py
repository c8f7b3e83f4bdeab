"""What an engine shows becomes rows: the only way by which pages and actions know of it."""

from __future__ import annotations

import logging
from datetime import datetime

from django.db import transaction
from django.utils import timezone

from compute.engines.base import DiskFacts, InstanceFacts, Inventory, Power
from compute.models import Disk, Instance, Region
from compute.reasons import Reason
from compute.refusals import Conflict
from compute.regions import engine_for
from compute.states import DiskStatus, InstanceStatus

log = logging.getLogger(__name__)

_STATUS = {
    Power.RUNNING: InstanceStatus.RUNNING,
    Power.STOPPED: InstanceStatus.STOPPED,
    Power.PAUSED: InstanceStatus.PAUSED,
}


def status_of(facts: InstanceFacts | None) -> InstanceStatus | None:
    """The status that an observation shows; None while the engine is between two."""
    return _STATUS.get(facts.power) if facts else InstanceStatus.GONE


def sync(region: str) -> Region:
    """Look at the whole region now and write what it shows. Raises ``Unreachable`` when it does not answer."""
    began = timezone.now()
    engine = engine_for(region)
    shown = engine.inventory()
    versions = engine.versions()
    row, _ = Region.objects.update_or_create(
        name=region,
        defaults={
            "seen_at": timezone.now(),
            "unreachable_since": None,
            "free_bytes": shown.free,
            "total_bytes": shown.total,
            "versions": versions,
        },
    )
    _record(row, shown, began)
    return row


def _record(region: Region, shown: Inventory, began: datetime) -> None:
    known = {row.external_id: row for row in region.instances.all()}
    for facts in shown.instances:
        record(region, facts, began, known.get(facts.id))
    seen = {facts.id for facts in shown.instances}
    for external_id, row in known.items():
        # A row younger than the look may simply have been made after it.
        if external_id not in seen and row.created_at < began and row.status not in (Instance.Status.PENDING,):
            show(row, None, began)


def record(region: Region, facts: InstanceFacts, began: datetime, row: Instance | None) -> Instance:
    """Write one observed instance and its disks; an unknown one becomes a row without an owner (R21)."""
    observed = {
        "vcpus": facts.vcpus,
        "memory_mib": facts.memory_mib,
        "agent": facts.agent,
        "address": facts.address,
        "observed_at": began,
    }
    if facts.os:
        observed["os"] = facts.os
    with transaction.atomic():
        if row is None:
            row, made = Instance.objects.get_or_create(
                region=region,
                external_id=facts.id,
                defaults={"name": facts.name, "status": status_of(facts) or InstanceStatus.STOPPED} | observed,
            )
            if made:
                log.info("instance %s: %s of region %s found", row.pk, facts.name, region.pk)
        Instance.objects.filter(pk=row.pk).update(**observed)
        _record_disks(row, facts.disks)
    show(row, facts, began)
    return row


def _record_disks(row: Instance, shown: tuple[DiskFacts, ...]) -> None:
    known = {disk.external_id: disk for disk in Disk.objects.filter(region=row.region_id, instance=row)}
    for facts in shown:
        observed = {
            "instance": row,
            "device": facts.device,
            "status": DiskStatus.IN_USE,
            "medium": facts.medium,
            "format": facts.format,
            "size_bytes": facts.size,
            "allocated_bytes": facts.allocated,
            "encrypted": facts.encrypted,
            "problem": facts.problem,
        }
        disk = known.pop(facts.id, None)
        if disk is None:
            Disk.objects.update_or_create(
                region=row.region,
                external_id=facts.id,
                defaults=observed,
                create_defaults=observed | {"owner": row.owner, "name": f"{row.name}-{facts.device}"},
            )
        elif any(getattr(disk, name) != value for name, value in observed.items()):
            Disk.objects.filter(pk=disk.pk).update(**observed)
    for disk in known.values():
        Disk.objects.filter(pk=disk.pk).update(instance=None, device="", status=DiskStatus.AVAILABLE)


def show(row: Instance, facts: InstanceFacts | None, began: datetime) -> None:
    """Move a settled instance to what was observed. Passing statuses belong to the operation that set them."""
    to = status_of(facts)
    if to is None or row.status == to or not InstanceStatus(row.status).settled:
        return
    if row.operations.filter(ended_at__gte=began).exists():
        return  # looked at before that operation ended: too old to tell
    try:
        row.move(to, reason=None)
    except Conflict:
        log.info("instance %s changed while it was looked at", row.pk)


def settle(instance: Instance, facts: InstanceFacts | None, reason: Reason | None = None) -> None:
    """After an operation, inside its last hold: the instance is what was observed, or Error when it could not be."""
    instance.refresh_from_db()
    to = status_of(facts) if facts else None
    if to is None:
        to = InstanceStatus.ERROR
    if instance.status == to:
        Instance.objects.filter(pk=instance.pk).update(reason=reason)
    else:
        instance.move(to, reason=reason)

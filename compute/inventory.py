"""What an engine shows becomes rows: the only way by which pages and actions know of it."""

from __future__ import annotations

import logging
from dataclasses import replace
from datetime import datetime

from django.db import transaction
from django.utils import timezone

from compute.engines.base import DiskFacts, InstanceFacts, Inventory
from compute.models import Disk, Instance, Region
from compute.reasons import Reason
from compute.refusals import Conflict
from compute.regions import engine_for
from compute.states import DiskStatus, InstanceStatus, status_of

log = logging.getLogger(__name__)


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
    """Every instance on its own: what cannot be written of one must not hide the others."""
    known = {row.external_id: row for row in region.instances.all()}
    disks: dict[str | None, list[Disk]] = {}
    for disk in region.disks.all():
        disks.setdefault(disk.instance_id, []).append(disk)
    seen, used = [], set[str]()
    for told in shown.instances:
        row = known.pop(told.id, None)
        facts = _without_twice_used(told, used)
        try:
            with transaction.atomic():
                row = _enter(region, facts, began) if row is None else row
                _record_facts(row, facts)
                _record_disks(row, facts.disks, disks.get(row.pk, []))
                show(row, facts, began)
        except Exception:
            log.exception("region %s: what it shows of %s could not be written", region.pk, facts.id)
        else:
            seen.append(row.pk)
    Instance.objects.filter(pk__in=seen).update(observed_at=began)
    for row in known.values():
        # One younger than the look may simply have been made after it (one of the future: before the clock went back).
        if not began <= row.created_at <= timezone.now() and row.status != InstanceStatus.PENDING:
            show(row, None, began)


def _without_twice_used(facts: InstanceFacts, used: set[str]) -> InstanceFacts:
    """A disk that a second instance names as well stays with the first: its row must not wander between them."""
    twice = {disk.id for disk in facts.disks} & used
    used.update(disk.id for disk in facts.disks)
    if not twice:
        return facts
    log.warning("instance %s names disks of another: %s", facts.id, sorted(twice))
    return replace(facts, disks=tuple(disk for disk in facts.disks if disk.id not in twice))


def _enter(region: Region, facts: InstanceFacts, began: datetime) -> Instance:
    """An unknown instance becomes a row without an owner (R21)."""
    row, made = Instance.objects.get_or_create(
        region=region,
        external_id=facts.id,
        defaults={"name": facts.name, "status": status_of(facts) or InstanceStatus.STOPPED, "observed_at": began},
    )
    if made:
        log.info("instance %s: %s of region %s found", row.pk, facts.name, region.pk)
    return row


def _record_facts(row: Instance, facts: InstanceFacts) -> None:
    observed = {
        "vcpus": facts.vcpus,
        "memory_mib": facts.memory_mib,
        "agent": facts.agent,
        "address": facts.address,
        # What a guest once said of its system stays true while it is silent.
        "os": facts.os or row.os,
    }
    if any(getattr(row, name) != value for name, value in observed.items()):
        Instance.objects.filter(pk=row.pk).update(**observed)


def _record_disks(row: Instance, shown: tuple[DiskFacts, ...], rows: list[Disk]) -> None:
    known = {disk.external_id: disk for disk in rows}
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
        elif any(getattr(disk, name) != value for name, value in observed.items() if name != "instance"):
            Disk.objects.filter(pk=disk.pk).update(**observed)
    for disk in known.values():
        Disk.objects.filter(pk=disk.pk).update(instance=None, device="", status=DiskStatus.AVAILABLE)


def show(row: Instance, facts: InstanceFacts | None, began: datetime) -> None:
    """Move a settled instance to what was observed. Passing statuses belong to the operation that set them."""
    to = status_of(facts)
    if to is None or row.status == to or not InstanceStatus(row.status).settled:
        return
    # Looked at before that operation ended: too old to tell. An end in the future: the clock has stepped back since.
    if row.operations.filter(ended_at__gte=began, ended_at__lte=timezone.now()).exists():
        return
    try:
        row.move(to, reason=None)
    except Conflict:
        log.info("instance %s changed while it was looked at", row.pk)


def settle(instance: Instance, seen: InstanceStatus | None, reason: Reason | None = None) -> None:
    """After an operation, inside its last hold: the instance is what was seen, or Error when it could not be seen."""
    instance.refresh_from_db()
    if seen is None and instance.status == InstanceStatus.GONE:
        return
    to = seen or InstanceStatus.ERROR
    if instance.status == to:
        Instance.objects.filter(pk=instance.pk).update(reason=reason)
    else:
        instance.move(to, reason=reason)

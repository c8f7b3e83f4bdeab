"""Compares rows with what is there, tells each difference in a sentence, and has a remedy where there can be one.

Remedies go the product's own ways: an operation is undone again by its own steps; what one has left becomes litter,
which the keeper's code discards; a region is looked at and a guest thawed as the keeper does it. No file is ever
deleted that no operation's row names as its own.

What is under way moves by itself, so only what two looks find is a difference.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from typing import Any

import redis
from django.conf import settings
from django.db import transaction
from django.utils import timezone
from rq.job import Job

from compute import inventory, operations, wakeup
from compute.engines.base import Engine, EngineError, Holding, Unreachable
from compute.keeper import Judge, RegionWatch, Verdict
from compute.models import Disk, Instance, Litter, Operation, Region, Snapshot
from compute.reasons import say
from compute.regions import engine_for
from compute.states import LIVE, InstanceStatus, SnapshotStatus, Status, status_of
from images.jobs import CreateImage
from images.models import DeviceMapping, Image
from images.states import ImageStatus

BETWEEN_LOOKS = 2.0  # seconds: what the keeper does at once is done by then
UNSEEN = timedelta(minutes=1)
THAW_LATE = timedelta(seconds=15)


@dataclass(frozen=True)
class Finding:
    """One difference. ``remedy`` removes it, or is None where only a person can; it may raise ``EngineError``."""

    code: str
    data: dict[str, Any]
    remedy: Callable[[], object] | None = field(default=None, compare=False)

    def __str__(self) -> str:
        return say({"code": self.code, "data": self.data})


def examine(*, queues: bool = True) -> list[Finding]:
    """Everything that is not as it should be; takes seconds where there is something. ``queues``: ask Redis as well."""
    first = list(_look(queues))
    if not first:
        return []
    time.sleep(BETWEEN_LOOKS)
    return [finding for finding in _look(queues) if finding in first]


def _look(queues: bool) -> Iterator[Finding]:
    if queues:
        yield from _queues()
    for verdict in Judge().round():
        yield Finding("doctor-holder", {"operation": verdict.pk}, partial(_free, verdict))
    for operation in Operation.objects.live().exclude(region__in=settings.ENGINES):
        yield Finding("doctor-no-region", {"operation": operation.pk, "region": operation.region_id})
    for region in settings.ENGINES:
        yield from _look_at(region)


def _queues() -> Iterator[Finding]:
    try:
        calls = {queue: wakeup.waiting(queue) for queue in settings.RQ_QUEUES}
    except redis.RedisError as error:
        yield Finding("doctor-redis", {"said": str(error)})
        return
    live = set(Operation.objects.live().values_list("pk", flat=True))
    for queue, waiting in calls.items():
        over = [call for call in waiting if call.description not in live]
        if over:
            data = {"queue": queue, "count": len(over)}
            yield Finding("doctor-calls", data, partial(_forget, over))


def _forget(calls: list[Job]) -> None:
    for call in calls:
        call.delete()


def _free(verdict: Verdict) -> None:
    if operations.take_away(verdict.pk, attempt=verdict.attempt, beats=verdict.beats):
        operations.wake(Operation.objects.get(pk=verdict.pk))


def _look_at(region: str) -> Iterator[Finding]:
    try:
        engine = engine_for(region)
        engine.prove()
        holdings = engine.holdings()
    except EngineError as error:
        yield _unusable(region, error)
        return
    # Neither long ago nor in a future that the clock has stepped back from.
    now = timezone.now()
    if not Region.objects.filter(pk=region, seen_at__range=(now - UNSEEN, now + UNSEEN)).exists():
        yield Finding("doctor-unseen", {"region": region}, RegionWatch(region).look)
    for litter in Litter.objects.filter(region=region):
        yield Finding("doctor-litter", {"operation": litter.key, "region": region}, partial(_discard_litter, region))
    yield from _left(region, engine, holdings)
    yield from _missing(region, {holding.name for holding in holdings})
    yield from _stuck(region)
    yield from _instances(region, engine)


def _unusable(region: str, error: EngineError) -> Finding:
    if not isinstance(error, Unreachable):
        return Finding("doctor-unusable", {"region": region, "why": say({"code": error.code, "data": error.data})})
    if "store" in error.data:
        return Finding("doctor-store-absent", {"region": region, "store": error.data["store"]})
    return Finding("doctor-unreachable", {"region": region, "said": error.data.get("said", "")})


def _left(region: str, engine: Engine, holdings: list[Holding]) -> Iterator[Finding]:
    """What lies in the store or works for it, and no row explains."""
    live = set(Operation.objects.live().values_list("pk", flat=True))
    litter = set(Litter.objects.filter(region=region).values_list("key", flat=True))
    named = set(Snapshot.objects.filter(region=region).values_list("external_id", flat=True))
    named |= set(DeviceMapping.objects.filter(image__region=region).values_list("external_id", flat=True))
    found: dict[str, list[Holding]] = {}
    for holding in holdings:
        if holding.key not in live | litter:
            found.setdefault(holding.key, []).append(holding)
    makers = Operation.objects.filter(region=region).in_bulk(list(found))
    for key, held in found.items():
        if key in makers:
            yield from _left_by(makers[key], held, named, engine)
            continue
        for one in held:
            data = {"what": one.name, "region": region}
            yield Finding("doctor-work-unknown" if one.works else "doctor-unknown", data)


def _left_by(maker: Operation, held: list[Holding], named: set[str], engine: Engine) -> Iterator[Finding]:
    """Of an operation that is over. It makes nothing more: what two looks found to be needed by nobody is."""
    region = maker.region_id
    strange = [one for one in held if one.part and one.part not in maker.choices.get("parts", {})]
    whole = not strange and not any(one.name in named for one in held)
    for one in held:
        data = {"what": one.name, "region": region, "operation": maker.pk}
        if one in strange:
            yield Finding("doctor-unknown", data)
        elif one.name in named or (one.part and not one.published):
            continue  # it is needed, or goes with its room
        elif one.works:
            yield Finding("doctor-work", data, partial(_discard, maker) if whole else RegionWatch(region).look)
        elif whole:
            yield Finding("doctor-leftover", data, partial(_discard, maker))
        elif one.published:
            yield Finding("doctor-leftover", data, partial(engine.erase, one.name))
        else:
            yield Finding("doctor-beside", data)


def _discard(maker: Operation) -> None:
    """What an operation that is over had named is litter."""
    for key, handle in operations.jobs()[maker.kind].litter(maker).items():
        Litter.objects.get_or_create(region_id=maker.region_id, key=key, defaults={"handle": handle})
    _discard_litter(maker.region_id)


def _discard_litter(region: str) -> None:
    """As the keeper does: an engine that needs time is asked again."""
    for _ in range(3):
        RegionWatch(region).look()
        if not Litter.objects.filter(region=region).exists():
            return
        time.sleep(0.5)


def _missing(region: str, there: set[str]) -> Iterator[Finding]:
    """Rows whose file is not there: nobody can bring it back."""
    snapshots = Snapshot.objects.filter(region=region, status=SnapshotStatus.AVAILABLE)
    own = DeviceMapping.objects.filter(image__region=region, image__status=ImageStatus.AVAILABLE, snapshot=None)
    rows = [
        *snapshots.values_list("pk", "device", "external_id"),
        *own.values_list("image_id", "device", "external_id"),
    ]
    if rows and not there:
        yield Finding("doctor-store-empty", {"region": region, "count": len(rows)})
        return
    for row, device, file in rows:
        if not file:
            yield Finding("doctor-no-file", {"row": row, "device": f"/dev/{device}"})
        elif file not in there:
            yield Finding("doctor-missing", {"region": region, "what": file, "row": row})


def _stuck(region: str) -> Iterator[Finding]:
    """Images and snapshots between two statuses that nothing moves."""
    images = Image.objects.filter(region=region, status__in=_passing(ImageStatus))
    for image in images.exclude(operations__status__in=LIVE):
        data = {"row": image.pk, "status": str(ImageStatus(image.status).label)}
        last = image.operations.order_by("-created_at").first()
        # Once it was available, what its making made is no longer that operation's.
        may_undo = last is not None and not (image.available_at and last.kind == CreateImage.kind)
        yield Finding("doctor-stuck", data, partial(_undo, last) if last and may_undo else None)
    snapshots = Snapshot.objects.filter(region=region, status__in=_passing(SnapshotStatus))
    moved = {"mappings__image__operations__status__in": LIVE}
    for snapshot in snapshots.exclude(**moved).exclude(mappings__image__status__in=_passing(ImageStatus)):
        data = {"row": snapshot.pk, "status": str(SnapshotStatus(snapshot.status).label)}
        making = Operation.objects.filter(
            kind=CreateImage.kind, image__mappings__snapshot=snapshot, image__available_at=None
        ).first()
        yield Finding("doctor-stuck", data, partial(_undo, making) if making else None)


def _passing(statuses: type[Status]) -> list[Status]:
    return [status for status in statuses if not status.settled]


def _undo(operation: Operation) -> None:
    if operations.undo_again(operation):
        operations.perform(operation.pk)


def _instances(region: str, engine: Engine) -> Iterator[Finding]:
    held = Operation.objects.live().filter(holding=True, instance__isnull=False).values("instance")
    for row in Instance.objects.filter(region=region).exclude(pk__in=held):
        if row.thaw_owed and row.thaw_owed < timezone.now() - THAW_LATE:
            yield Finding("doctor-frozen", {"instance": row.name}, RegionWatch(region).thaw)
        if not InstanceStatus(row.status).settled:
            data = {"row": row.name, "status": str(InstanceStatus(row.status).label)}
            yield Finding("doctor-stuck", data, partial(_settle, row, engine))
    problems = ("disk-missing", "disk-unreadable")
    for disk in Disk.objects.filter(instance__region=region, problem__in=problems).select_related("instance"):
        why = say({"code": disk.problem, "data": {"device": disk.path}})
        yield Finding("doctor-disk", {"instance": str(disk.instance), "why": why})


def _settle(instance: Instance, engine: Engine) -> None:
    """Its status is what the engine shows, unless somebody is at work on it by now."""
    seen = status_of(engine.observe(instance.external_id))
    with transaction.atomic():
        row = Instance.objects.select_for_update().get(pk=instance.pk)
        if seen is not None and row.operation is None:
            inventory.settle(row, seen)

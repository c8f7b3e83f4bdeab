"""How far the making of an image is, and what can be said before it begins. What nobody knows is None, not a guess."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum

from django.utils.translation import gettext_lazy as _

from compute.models import Disk, Instance, Operation
from compute.regions import abilities_of
from compute.states import InstanceStatus, OperationStatus
from images.models import ConsistencyReached, Image


class Phase(StrEnum):
    """What a making is doing, in the order in which it happens; ENDED when nothing is under way."""

    QUEUED = "queued"
    FIXING = "fixing"  # the instant is not fixed yet
    COPY = "copy"
    CHECK = "check"
    UNDOING = "undoing"
    ENDED = "ended"


def percent_of(done: int | None, total: int | None) -> int | None:
    """Whole percent, rounded down: 100 only when nothing is left."""
    return min(100, done * 100 // total) if total and done is not None else None


@dataclass(frozen=True)
class Part:
    """One disk: bytes done, bytes in all."""

    device: str
    done: int | None
    total: int | None

    @property
    def path(self) -> str:
        return f"/dev/{self.device}"

    @property
    def percent(self) -> int | None:
        return percent_of(self.done, self.total)

    @property
    def complete(self) -> bool:
        return bool(self.total) and self.done == self.total


@dataclass(frozen=True)
class Progress:
    """All disks together; ``rate`` in bytes per second, ``left`` the time of copying still to come at that rate."""

    phase: Phase
    parts: tuple[Part, ...]
    rate: int | None
    left: timedelta | None
    waiting_since: datetime | None

    @property
    def done(self) -> int | None:
        return add_up(part.done for part in self.parts)

    @property
    def total(self) -> int | None:
        return add_up(part.total for part in self.parts)

    @property
    def percent(self) -> int | None:
        return percent_of(self.done, self.total)


def add_up(numbers: Iterable[int | None]) -> int | None:
    """Their sum, or None when one is unknown or there are none."""
    known = list(numbers)
    return sum(number or 0 for number in known) if known and None not in known else None


def _phase(operation: Operation) -> Phase:
    if not operation.is_live:
        return Phase.ENDED
    if operation.status == OperationStatus.UNDOING:
        return Phase.UNDOING
    if operation.status == OperationStatus.QUEUED:
        return Phase.QUEUED
    if operation.step == "seal":
        return Phase.CHECK
    return Phase.COPY if "handle" in operation.work.get("capture", {}) else Phase.FIXING


def progress_of(operation: Operation) -> Progress:
    """What the row of a ``create_image`` says. An engine that reports a total of 0 does not know it."""
    phase, said = _phase(operation), operation.progress
    counts = said.get("parts", {}) if said.get("phase", Phase.COPY) == phase else {}
    parts = []
    for device in sorted(operation.choices.get("parts", {})):
        done, total = counts.get(device) or (None, None)
        parts.append(Part(device, done, total or None))
    seconds = operation.seconds_left if phase == Phase.COPY else None
    left = None if seconds is None else timedelta(seconds=seconds)
    return Progress(phase, tuple(parts), said.get("rate") if counts else None, left, operation.waiting_since)


# Before it begins ---------------------------------------------------------------------------------------------------


PROMISES = {
    "offline": _("It is stopped: nothing writes to its disks meanwhile."),
    "mixed": _("This region copies one disk after the other."),
    "no-freeze": _("This region cannot freeze file systems: they will be as after a power cut."),
    "agent-unknown": _("Better if its guest agent answers: then its file systems are frozen for the instant."),
    "no-agent": _("Its guest agent does not answer: the file systems will be as after a power cut."),
    "frozen": _("Its guest agent answers: the file systems are frozen for the instant, and thawed at once."),
}


@dataclass(frozen=True)
class Promise:
    """The consistency an image of these disks will reach as far as is known, and the key of why (R8)."""

    level: ConsistencyReached
    why: str

    @property
    def sentence(self) -> str:
        return str(PROMISES[self.why])


def promised(instance: Instance, disks: int) -> Promise:
    """``disks``: how many the image will have."""
    abilities = abilities_of(instance.region_id)
    if instance.status == InstanceStatus.STOPPED:
        return Promise(ConsistencyReached.OFFLINE, "offline")
    if disks > 1 and not abilities.one_instant:
        return Promise(ConsistencyReached.MIXED, "mixed")
    if not abilities.freeze:
        return Promise(ConsistencyReached.CRASH, "no-freeze")
    if instance.agent is None:
        return Promise(ConsistencyReached.CRASH, "agent-unknown")
    if not instance.agent:
        return Promise(ConsistencyReached.CRASH, "no-agent")
    return Promise(ConsistencyReached.FROZEN, "frozen")


def to_copy(disks: Iterable[Disk]) -> int | None:
    """Bytes really in use on these disks."""
    return add_up(disk.allocated_bytes for disk in disks)


PAST = 10  # copies that an expectation looks back on


def expected(region: str, count: int | None) -> tuple[timedelta, timedelta] | None:
    """Shortest and longest time that ``count`` bytes would have taken in past copies here; None below two of them."""
    if count is None:
        return None
    past = Image.objects.filter(region=region, status=Image.Status.AVAILABLE).prefetch_related("mappings__snapshot")
    seconds = []
    for image in past.order_by("-available_at")[:PAST]:
        stored = add_up(mapping.file.stored_bytes for mapping in image.mappings.all())
        if stored and image.instant and image.available_at:
            seconds.append((image.available_at - image.instant).total_seconds() / stored * count)
    return (timedelta(seconds=min(seconds)), timedelta(seconds=max(seconds))) if len(seconds) > 1 else None

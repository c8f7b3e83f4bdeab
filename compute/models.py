"""Instances and everything physical: the rows are the truth, an engine is where they are looked up and changed."""

from __future__ import annotations

import secrets
from typing import Self, TypeVar

from django.conf import settings
from django.contrib.auth.models import AbstractBaseUser, AnonymousUser
from django.core.validators import MaxLengthValidator, RegexValidator
from django.db import models
from django.db.models import Q
from django.utils.translation import gettext_lazy as _

from compute.reasons import say
from compute.states import LIVE, DiskStatus, InstanceStatus, OperationStatus, SnapshotStatus, Stateful, arrows

Person = AbstractBaseUser | AnonymousUser

# R4. Han characters are those of Unicode's unified ideographs; full-width letters and emoji are not among them.
NAME = r"[A-Za-z0-9_.\-\u3005\u3007\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U000323af]{2,32}"
valid_name = RegexValidator(
    rf"\A{NAME}\Z", _("Use 2–32 characters: Chinese characters, letters, digits, “_”, “-” and “.”; no spaces.")
)
valid_description = MaxLengthValidator(256)


def new_id(prefix: str) -> str:
    return f"{prefix}-{secrets.token_hex(5)}"


def new_instance_id() -> str:
    return new_id("i")


def new_disk_id() -> str:
    return new_id("d")


def new_snapshot_id() -> str:
    return new_id("snap")


def new_operation_id() -> str:
    return new_id("op")


def generated_name(stem: str, suffix: str) -> str:
    """``stem-suffix`` within 32 characters: the stem gives way (R4)."""
    return f"{stem[: 31 - len(suffix)]}-{suffix}"


class Medium(models.TextChoices):
    """A placement, not a file format (R21)."""

    CLOUD = "cloud", _("Cloud disk")
    LOCAL = "local", _("Local disk")


class Role(models.TextChoices):
    SYSTEM = "system", _("System disk")
    DATA = "data", _("Data disk")


def role_of(device: str) -> Role:
    return Role.SYSTEM if device == "vda" else Role.DATA


class Region(models.Model):
    """One configured engine, as last observed by the keeper. Pages know the region only from here."""

    name = models.CharField(primary_key=True, max_length=40)
    # When it last answered, and since when it does not; both null before the first look.
    seen_at = models.DateTimeField(null=True, editable=False)
    unreachable_since = models.DateTimeField(null=True, editable=False)
    # Bytes of the image store.
    free_bytes = models.BigIntegerField(null=True, editable=False)
    total_bytes = models.BigIntegerField(null=True, editable=False)
    versions = models.JSONField(default=dict, editable=False)

    class Meta:
        verbose_name = _("region")
        verbose_name_plural = _("regions")

    def __str__(self) -> str:
        return self.name


class Pulse(models.Model):
    """When a process that everything depends on last made its rounds, for those who cannot look it up.

    Not ``Region.seen_at``: that stands still as well when it is the region that does not answer.
    """

    KEEPER = "keeper"

    name = models.CharField(primary_key=True, max_length=20, editable=False)
    at = models.DateTimeField(editable=False)

    def __str__(self) -> str:
        return self.name


M = TypeVar("M", bound=models.Model, covariant=True)


class OwnedQuerySet(models.QuerySet[M]):
    """R22: every query of a view starts here."""

    def visible_to(self, user: Person) -> Self:
        """What this person may see: their own; staff read everything."""
        return self if getattr(user, "is_staff", False) else self.filter(owner_id=user.pk)

    def in_region(self, region: str) -> Self:
        return self.filter(region_id=region)


class InstanceQuerySet(OwnedQuerySet["Instance"]):
    def listed(self) -> Self:
        """With all that a list row shows, in a fixed number of queries."""
        live = Operation.objects.filter(status__in=LIVE, holding=True).select_related("image")
        return self.prefetch_related(
            models.Prefetch("disks", Disk.objects.order_by("device")),
            models.Prefetch("operations", live, to_attr="live_operations"),
        )


class Instance(Stateful):
    """A virtual machine of a region's engine."""

    Status = InstanceStatus
    ARROWS = arrows(
        pending="running stopped error gone",
        starting="running stopped paused error gone",
        running="stopping stopped paused error gone",
        stopping="running stopped paused error gone",
        stopped="starting running paused error gone",
        paused="running stopped error gone",
        error="starting stopping running stopped paused gone",
        gone="running stopped paused",
    )

    id = models.CharField(primary_key=True, max_length=20, default=new_instance_id, editable=False)
    region = models.ForeignKey(Region, models.PROTECT, related_name="instances", editable=False)
    # The engine's own id: opaque.
    external_id = models.CharField(max_length=255, editable=False)
    # Null until an admin says whose it is (R21).
    owner = models.ForeignKey(settings.AUTH_USER_MODEL, models.PROTECT, null=True, blank=True, related_name="instances")
    name = models.CharField(_("name"), max_length=255)
    status = models.CharField(max_length=12, choices=InstanceStatus.choices, default=InstanceStatus.PENDING)
    reason = models.JSONField(null=True, editable=False)
    vcpus = models.PositiveIntegerField(default=1, editable=False)
    memory_mib = models.PositiveIntegerField(default=0, editable=False)
    os = models.CharField(max_length=200, blank=True, editable=False)
    address = models.CharField(max_length=100, blank=True, editable=False)
    # Did the guest agent answer when last asked; null when it was not asked.
    agent = models.BooleanField(null=True, editable=False)
    observed_at = models.DateTimeField(null=True, editable=False)
    # Set before the guest is asked to freeze, cleared once it answered that it is thawed; the keeper thaws the rest.
    thaw_owed = models.DateTimeField(null=True, editable=False)
    created_at = models.DateTimeField(auto_now_add=True)

    objects = InstanceQuerySet.as_manager()

    class Meta:
        verbose_name = _("instance")
        verbose_name_plural = _("instances")
        constraints = [models.UniqueConstraint(fields=["region", "external_id"], name="one_row_per_engine_instance")]
        indexes = [
            models.Index(fields=["region", "thaw_owed"], condition=Q(thaw_owed__isnull=False), name="thaws_owed")
        ]

    def __str__(self) -> str:
        return self.name

    @property
    def system_disk(self) -> Disk | None:
        return next((disk for disk in self.disks.all() if disk.role == Role.SYSTEM), None)

    @property
    def data_disks(self) -> list[Disk]:
        return [disk for disk in self.disks.all() if disk.role == Role.DATA]

    @property
    def operation(self) -> Operation | None:
        """The live operation that holds it, if any."""
        if hasattr(self, "live_operations"):
            return self.live_operations[0] if self.live_operations else None
        return self.operations.filter(status__in=LIVE, holding=True).select_related("image").first()


class Disk(Stateful):
    """A disk of an instance, or one attached to nothing."""

    Status = DiskStatus
    ARROWS = arrows(in_use="available", available="in_use")

    id = models.CharField(primary_key=True, max_length=20, default=new_disk_id, editable=False)
    region = models.ForeignKey(Region, models.PROTECT, related_name="disks", editable=False)
    external_id = models.CharField(max_length=1024, editable=False)
    owner = models.ForeignKey(settings.AUTH_USER_MODEL, models.PROTECT, null=True, blank=True, related_name="disks")
    name = models.CharField(_("name"), max_length=255)
    status = models.CharField(max_length=12, choices=DiskStatus.choices, default=DiskStatus.IN_USE)
    instance = models.ForeignKey(Instance, models.SET_NULL, null=True, blank=True, related_name="disks")
    device = models.CharField(_("device name"), max_length=8, blank=True)
    medium = models.CharField(max_length=8, choices=Medium.choices)
    format = models.CharField(max_length=8)
    size_bytes = models.BigIntegerField()
    allocated_bytes = models.BigIntegerField(null=True)
    encrypted = models.BooleanField(null=True)
    # Code of the reason why the engine cannot capture it, or "".
    problem = models.CharField(max_length=40, blank=True)
    delete_with_instance = models.BooleanField(default=True)
    created_at = models.DateTimeField(auto_now_add=True)

    objects = OwnedQuerySet.as_manager()

    class Meta:
        verbose_name = _("disk")
        verbose_name_plural = _("disks")
        constraints = [models.UniqueConstraint(fields=["region", "external_id"], name="one_row_per_engine_disk")]

    def __str__(self) -> str:
        return self.name

    @property
    def role(self) -> Role:
        return role_of(self.device)

    @property
    def path(self) -> str:
        return f"/dev/{self.device}"

    @property
    def most_to_copy(self) -> int:
        """Bytes that a copy may take: those in use, or its capacity where the region does not say."""
        return self.size_bytes if self.allocated_bytes is None else self.allocated_bytes


class StoredFile(models.Model):
    """One file of a region's image store; empty until it is sealed."""

    # ``engines.base.Sealed.id``; "" until published.
    external_id = models.CharField(max_length=255, blank=True, editable=False)
    format = models.CharField(max_length=8, blank=True, editable=False)
    stored_bytes = models.BigIntegerField(null=True, editable=False)
    sha256 = models.CharField(max_length=64, blank=True, editable=False)

    class Meta:
        abstract = True


class Snapshot(Stateful, StoredFile):
    """A point-in-time copy of one cloud disk."""

    Status = SnapshotStatus
    ARROWS = arrows(creating="available deleting", available="deleting", deleting="error", error="deleting")

    id = models.CharField(primary_key=True, max_length=20, default=new_snapshot_id, editable=False)
    region = models.ForeignKey(Region, models.PROTECT, related_name="snapshots", editable=False)
    owner = models.ForeignKey(settings.AUTH_USER_MODEL, models.PROTECT, related_name="snapshots", editable=False)
    name = models.CharField(_("name"), max_length=255)
    status = models.CharField(max_length=12, choices=SnapshotStatus.choices, default=SnapshotStatus.CREATING)
    disk = models.ForeignKey(Disk, models.SET_NULL, null=True, related_name="snapshots", editable=False)
    device = models.CharField(max_length=8, editable=False)
    size_bytes = models.BigIntegerField(editable=False)
    encrypted = models.BooleanField(null=True, editable=False)
    instant = models.DateTimeField(null=True, editable=False)
    created_at = models.DateTimeField(auto_now_add=True)

    objects = OwnedQuerySet.as_manager()

    class Meta:
        verbose_name = _("snapshot")
        verbose_name_plural = _("snapshots")

    def __str__(self) -> str:
        return self.name


class Resource(models.TextChoices):
    """What a quota limits (R5)."""

    IMAGES = "images", _("Images")
    SNAPSHOTS = "snapshots", _("Snapshots")
    INSTANCES = "instances", _("Instances")
    CLOUD_DISKS = "cloud_disks", _("Cloud disks")


class Quota(models.Model):
    """Limits of one owner in one region. Use is counted, never stored."""

    owner = models.ForeignKey(settings.AUTH_USER_MODEL, models.CASCADE, related_name="quotas", verbose_name=_("owner"))
    region = models.ForeignKey(Region, models.PROTECT, related_name="quotas", verbose_name=_("region"))
    images = models.PositiveIntegerField(_("images"), default=5)
    snapshots = models.PositiveIntegerField(_("snapshots"), default=15)
    instances = models.PositiveIntegerField(_("instances"), default=20)
    cloud_disks = models.PositiveIntegerField(_("cloud disks"), default=40)

    class Meta:
        verbose_name = _("quota")
        verbose_name_plural = _("quotas")
        constraints = [models.UniqueConstraint(fields=["owner", "region"], name="one_quota_per_owner_and_region")]

    def __str__(self) -> str:
        return f"{self.owner} · {self.region_id}"


class OperationQuerySet(models.QuerySet["Operation"]):
    def live(self) -> Self:
        return self.filter(status__in=LIVE)


class Operation(models.Model):
    """One piece of work, from click to end: lock, outbox, pulse and fence, record. See ``compute.operations``."""

    Status = OperationStatus

    id = models.CharField(primary_key=True, max_length=20, default=new_operation_id, editable=False)
    kind = models.CharField(max_length=30)
    status = models.CharField(max_length=12, choices=OperationStatus.choices, default=OperationStatus.QUEUED)
    # Decided when undoing begins: "failed" or "cancelled".
    outcome = models.CharField(max_length=12, blank=True)
    region = models.ForeignKey(Region, models.PROTECT, related_name="operations")
    asked_by = models.ForeignKey(settings.AUTH_USER_MODEL, models.PROTECT, null=True, related_name="operations")
    cancelled_by = models.ForeignKey(settings.AUTH_USER_MODEL, models.PROTECT, null=True, related_name="+")

    # Pulse and fence.
    step = models.CharField(max_length=30, blank=True)
    attempt = models.PositiveIntegerField(default=0)
    holder = models.CharField(max_length=120, blank=True)
    strikes = models.PositiveSmallIntegerField(default=0)
    beats = models.PositiveBigIntegerField(default=0)
    # Of the last beat, or when its holder was gone: to be shown. Who judges silence counts ``beats`` (see Judge).
    beat_at = models.DateTimeField(null=True)
    # Since when it waits for a region that does not answer.
    waiting_since = models.DateTimeField(null=True)

    # Locks: what it changes. ``holding`` keeps everyone else off instance, disk and snapshot; ``exclusive`` off image.
    instance = models.ForeignKey(Instance, models.SET_NULL, null=True, related_name="operations")
    disk = models.ForeignKey(Disk, models.SET_NULL, null=True, related_name="operations")
    snapshot = models.ForeignKey(Snapshot, models.SET_NULL, null=True, related_name="operations")
    image = models.ForeignKey("images.Image", models.SET_NULL, null=True, related_name="operations")
    holding = models.BooleanField(default=True)
    exclusive = models.BooleanField(default=False)

    # Record. ``subject`` is the name of what it was about, kept when that is gone.
    subject = models.CharField(max_length=255)
    # What was asked for, as the job needs it; of what it will write {"parts": {name: {"size": …, "bytes": …}}}.
    choices = models.JSONField(default=dict)
    work = models.JSONField(default=dict)  # step → {"began": time, "handle": …}
    progress = models.JSONField(default=dict)  # {"parts": {name: [done, total] | None}, "rate": bytes/s | None}
    reason = models.JSONField(null=True)
    # What it took, kept also when its image is gone: bytes it put into the store, how long a guest was frozen for it.
    stored_bytes = models.BigIntegerField(null=True)
    frozen_ms = models.PositiveIntegerField(null=True)
    created_at = models.DateTimeField(auto_now_add=True)
    started_at = models.DateTimeField(null=True)
    ended_at = models.DateTimeField(null=True)

    objects = OperationQuerySet.as_manager()

    class Meta:
        verbose_name = _("operation")
        verbose_name_plural = _("operations")
        # The belt beneath the checks made under row locks; their IntegrityError is never parsed.
        constraints = [
            models.UniqueConstraint(
                fields=["instance"], condition=Q(status__in=LIVE, holding=True), name="one_holder_per_instance"
            ),
            models.UniqueConstraint(
                fields=["disk"], condition=Q(status__in=LIVE, holding=True), name="one_holder_per_disk"
            ),
            models.UniqueConstraint(
                fields=["snapshot"], condition=Q(status__in=LIVE, holding=True), name="one_holder_per_snapshot"
            ),
            models.UniqueConstraint(
                fields=["image"], condition=Q(status__in=LIVE, exclusive=True), name="one_exclusive_per_image"
            ),
        ]
        indexes = [
            models.Index(fields=["region", "created_at"], condition=Q(status__in=LIVE), name="live_operations"),
            # The same for SQLite, which does not see that ``status IN (?, ?, ?)`` is the condition above.
            models.Index(
                fields=["region", "created_at"], condition=Q(ended_at__isnull=True), name="operations_not_ended"
            ),
            # All that is counted of the past (console.metrics), so that no row has to be read for it.
            models.Index(
                fields=["region", "kind", "status", "ended_at", "started_at", "stored_bytes", "frozen_ms"],
                condition=Q(ended_at__isnull=False),
                name="ended_operations",
            ),
        ]

    def __str__(self) -> str:
        return f"{self.kind} {self.subject} ({self.pk})"

    @property
    def is_live(self) -> bool:
        return self.status in LIVE

    @property
    def why(self) -> str:
        return say(self.reason)

    @property
    def still_to_write(self) -> int:
        """Bytes of the image store that it may take yet: never too few, since progress counts holes as well.

        Of a part with 8 bytes in a capacity of 10, after 5: 5, for the 2 of the hole may all have come first.
        """
        if not self.is_live or self.status == OperationStatus.UNDOING or self.progress.get("phase", "copy") != "copy":
            return 0
        seen = self.progress.get("parts", {})
        left = 0
        for name, part in self.choices.get("parts", {}).items():
            done = (seen.get(name) or (0, 0))[0]
            left += max(0, min(part.get("bytes", part["size"]), part["size"] - done))
        return left

    @property
    def seconds_left(self) -> float | None:
        """Of copying, at the present rate; None when that is not known, as while the region does not answer."""
        if self.status != OperationStatus.RUNNING or self.waiting_since or self.progress.get("phase") != "copy":
            return None
        parts, rate = self.progress["parts"].values(), self.progress["rate"]
        # An engine that reports a total of 0 does not know it.
        if not rate or not all(part and part[1] for part in parts):
            return None
        return float(sum(total - done for done, total in parts) / rate)


class LiveOperation(Operation):
    """What runs now, for the administration."""

    class Meta:
        proxy = True
        verbose_name = _("running operation")
        verbose_name_plural = _("running operations")


class Litter(models.Model):
    """What an operation that was given up had named: the keeper discards it until the engine says it is gone."""

    region = models.ForeignKey(Region, models.PROTECT, related_name="litter")
    key = models.CharField(max_length=40)
    handle = models.JSONField(null=True)
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        verbose_name = _("litter")
        verbose_name_plural = _("litter")
        constraints = [models.UniqueConstraint(fields=["region", "key"], name="one_litter_per_key")]

    def __str__(self) -> str:
        return self.key

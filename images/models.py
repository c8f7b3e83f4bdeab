"""Private images: what was captured of an instance, as of which instant, and how it is put back."""

from __future__ import annotations

from typing import Self

from django.conf import settings
from django.db import models
from django.utils.translation import gettext_lazy as _

from compute.engines.base import Consistency
from compute.models import (
    Instance,
    Medium,
    Operation,
    OwnedQuerySet,
    Region,
    Role,
    Snapshot,
    StoredFile,
    new_id,
    role_of,
    valid_description,
    valid_name,
)
from compute.states import LIVE, Stateful, arrows
from images.states import MAKING, ImageStatus


def new_image_id() -> str:
    return new_id("img")


class ConsistencyReached(models.TextChoices):
    """R8: recorded as reached, never as hoped."""

    OFFLINE = Consistency.OFFLINE.value, _("Offline")
    FROZEN = Consistency.FROZEN.value, _("File systems frozen")
    CRASH = Consistency.CRASH.value, _("Crash-consistent")
    MIXED = Consistency.MIXED.value, _("Disks not of one instant")


class ImageQuerySet(OwnedQuerySet["Image"]):
    def listed(self) -> Self:
        """With all that a list row shows, in a fixed number of queries."""
        return self.select_related("instance", "owner").prefetch_related(
            models.Prefetch("mappings", DeviceMapping.objects.select_related("snapshot").order_by("device")),
            models.Prefetch(
                "operations", Operation.objects.filter(status__in=LIVE, exclusive=True), to_attr="live_operations"
            ),
        )

    def moving(self) -> Self:
        """Rows that still change by themselves: their status is passing, or an operation on them is live."""
        passing = [status for status in ImageStatus if not status.settled]
        live = Operation.objects.filter(image=models.OuterRef("pk"), status__in=LIVE)
        return self.filter(models.Q(status__in=passing) | models.Exists(live))


class Image(Stateful):
    """System disk plus the chosen data disks of one instance, as of one instant."""

    Status = ImageStatus
    ARROWS = arrows(
        creating="copying error",
        copying="available error",
        available="deleting",
        error="deleting",
        deleting="error",
    )

    id = models.CharField(primary_key=True, max_length=20, default=new_image_id, editable=False)
    region = models.ForeignKey(Region, models.PROTECT, related_name="images", editable=False)
    owner = models.ForeignKey(settings.AUTH_USER_MODEL, models.PROTECT, related_name="images", editable=False)
    name = models.CharField(_("name"), max_length=32, validators=[valid_name])
    description = models.CharField(_("description"), max_length=256, blank=True, validators=[valid_description])
    status = models.CharField(max_length=12, choices=ImageStatus.choices, default=ImageStatus.CREATING)
    reason = models.JSONField(null=True, editable=False)
    # Image type: inherited from the system disk (R7).
    medium = models.CharField(_("image type"), max_length=8, choices=Medium.choices)
    instance = models.ForeignKey(Instance, models.SET_NULL, null=True, related_name="images", editable=False)
    instance_name = models.CharField(max_length=255, editable=False)
    os = models.CharField(max_length=200, blank=True, editable=False)
    # Disks of the instance that are not in it (R13): [{"device", "name", "size", "why": reason}].
    left_out = models.JSONField(default=list, editable=False)
    # Asked for while it was being undone; carried out when that is over (R10).
    delete_wanted = models.BooleanField(default=False, editable=False)

    # The receipt: what was reached.
    consistency = models.CharField(max_length=12, choices=ConsistencyReached.choices, blank=True, editable=False)
    instant = models.DateTimeField(null=True, editable=False)
    frozen = models.PositiveIntegerField(null=True, editable=False)
    thawed = models.PositiveIntegerField(null=True, editable=False)
    freeze_ms = models.PositiveIntegerField(null=True, editable=False)
    versions = models.JSONField(default=dict, editable=False)

    created_at = models.DateTimeField(auto_now_add=True)
    available_at = models.DateTimeField(null=True, editable=False)

    objects = ImageQuerySet.as_manager()

    class Meta:
        verbose_name = _("image")
        verbose_name_plural = _("images")
        indexes = [models.Index(fields=["region", "owner", "-created_at"], name="images_of_owner")]

    def __str__(self) -> str:
        return self.name

    @property
    def is_being_made(self) -> bool:
        return self.status in MAKING

    @property
    def operation(self) -> Operation | None:
        """The live operation that makes or changes it, if any."""
        if hasattr(self, "live_operations"):
            return self.live_operations[0] if self.live_operations else None
        return self.operations.filter(status__in=LIVE, exclusive=True).first()

    @property
    def size_bytes(self) -> int:
        """Capacity of all its disks."""
        return sum(mapping.size_bytes for mapping in self.mappings.all())

    @property
    def data_count(self) -> int:
        return sum(mapping.role == Role.DATA for mapping in self.mappings.all())


class DeviceMapping(StoredFile):
    """One disk of an image (R13). A cloud disk's bytes are its snapshot's, a local system disk's are its own."""

    image = models.ForeignKey(Image, models.CASCADE, related_name="mappings")
    device = models.CharField(_("device name"), max_length=8)
    disk_name = models.CharField(max_length=255)
    medium = models.CharField(max_length=8, choices=Medium.choices)
    size_bytes = models.BigIntegerField()
    snapshot = models.ForeignKey(Snapshot, models.PROTECT, null=True, related_name="mappings")
    encrypted = models.BooleanField(null=True)
    delete_with_instance = models.BooleanField()

    class Meta:
        verbose_name = _("device mapping")
        verbose_name_plural = _("device mappings")
        constraints = [models.UniqueConstraint(fields=["image", "device"], name="one_mapping_per_device")]

    def __str__(self) -> str:
        return f"{self.path} · {self.image_id}"

    @property
    def role(self) -> Role:
        return role_of(self.device)

    @property
    def path(self) -> str:
        return f"/dev/{self.device}"

    @property
    def file(self) -> StoredFile:
        """Where its bytes are recorded."""
        return self.snapshot or self

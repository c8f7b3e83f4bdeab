"""Images and their device mappings, read and searched (R20)."""

from django.contrib import admin
from django.utils.translation import gettext_lazy as _

from compute.admin import LABELS, ReadOnly
from images.models import DeviceMapping, Image

LABELS.update(
    {
        "description": _("Description"),
        "instance_name": _("Made from"),
        "consistency": _("Consistency"),
        "frozen": _("Number of file systems frozen"),
        "thawed": _("Number of file systems thawed"),
        "freeze_ms": _("Frozen for, ms"),
        "available_at": _("Available since"),
        "left_out": _("Left out"),
        "disk_name": _("Disk"),
        "sha256": _("SHA-256"),
    }
)


@admin.register(Image)
class ImageAdmin(ReadOnly):
    columns = ("name", "id", "status", "region", "owner", "instance_name", "created_at")
    details = (
        "description",
        "reason",
        "medium",
        "os",
        "consistency",
        "instant",
        "frozen",
        "thawed",
        "freeze_ms",
        "left_out",
        "versions",
        "available_at",
    )
    list_filter = ("status", "medium", "region")
    list_select_related = ("region", "owner")
    search_fields = ("id", "name", "owner__username", "instance_name")


@admin.register(DeviceMapping)
class DeviceMappingAdmin(ReadOnly):
    columns = ("image", "device", "disk_name", "medium", "size_bytes", "snapshot")
    details = ("format", "stored_bytes", "sha256", "encrypted", "external_id")
    ordering = ("-pk",)
    list_select_related = ("image", "snapshot")
    search_fields = ("image__id", "image__name", "disk_name", "snapshot__id")

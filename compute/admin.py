"""Administration (R20): accounts and limits are edited here; rows that stand for things in an engine are only read."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, Any, ClassVar

from django.contrib import admin
from django.contrib.auth import get_user_model
from django.contrib.auth.admin import UserAdmin
from django.db.models import Model, QuerySet
from django.http import HttpRequest
from django.utils.translation import gettext_lazy as _
from django.utils.translation import ngettext

from compute.models import Disk, Instance, Litter, Operation, Quota, Region, Resource, Snapshot
from compute.operations import give_up
from compute.quotas import uses
from compute.templatetags.look import kind, moment, sentence, size

User = get_user_model()
if TYPE_CHECKING:  # generic for type checkers only
    Admin = admin.ModelAdmin[Any]
    Accounts = UserAdmin[Any]
else:
    Admin, Accounts = admin.ModelAdmin, UserAdmin

LABELS: dict[str, Any] = {
    "id": _("Id"),
    "name": _("Name"),
    "status": _("Status"),
    "outcome": _("Outcome"),
    "region": _("Region"),
    "owner": _("Owner"),
    "external_id": _("Id in the engine"),
    "reason": _("Reason"),
    "vcpus": _("vCPUs"),
    "memory_mib": _("Memory, MiB"),
    "os": _("System"),
    "address": _("Address"),
    "agent": _("Guest agent"),
    "observed_at": _("Observed"),
    "created_at": _("Created"),
    "started_at": _("Started"),
    "ended_at": _("Ended"),
    "seen_at": _("Last answered"),
    "unreachable_since": _("No answer since"),
    "waiting_since": _("Waiting for the region since"),
    "free_bytes": _("Free in the image store"),
    "total_bytes": _("Image store"),
    "size_bytes": _("Capacity"),
    "allocated_bytes": _("Actual data"),
    "stored_bytes": _("Actual data"),
    "versions": _("Versions"),
    "instance": _("Instance"),
    "image": _("Image"),
    "disk": _("Disk"),
    "snapshot": _("Snapshot"),
    "device": _("Device name"),
    "medium": _("Disk type"),
    "format": _("Format"),
    "encrypted": _("Encrypted"),
    "instant": _("Instant"),
    "kind": _("What"),
    "subject": _("About"),
    "asked_by": _("Who"),
    "cancelled_by": _("Cancelled by"),
    "step": _("Step"),
    "attempt": _("Attempt"),
    "holder": _("Holder"),
    "strikes": _("Strikes"),
    "progress": _("Progress"),
    "work": _("Work"),
    "choices": _("Choices"),
    "key": _("Key"),
    "handle": _("Handle"),
}


@cache
def shown(name: str) -> Callable[[Any], Any]:
    """A column, or a line of a page, in the reader's language."""

    @admin.display(description=LABELS[name], ordering=name)
    def value(row: Any) -> Any:
        told = getattr(row, name)
        if name == "reason":
            return sentence(told)
        if name == "kind":
            return kind(row)
        if name.endswith("_bytes"):
            return size(told)
        if name.endswith(("_at", "_since")) or name == "instant":
            return moment(told) if told else None
        return getattr(row, f"get_{name}_display", lambda: told)()

    return value


class ReadOnly(Admin):
    """Every member of staff reads and searches; nobody adds, changes or deletes."""

    columns: ClassVar[tuple[str, ...]]
    details: ClassVar[tuple[str, ...]] = ()
    ordering = ("-created_at",)
    actions: Any = None

    def get_list_display(self, request: HttpRequest) -> list[Any]:
        return [shown(name) for name in self.columns]

    def get_readonly_fields(self, request: HttpRequest, obj: Model | None = None) -> list[Any]:
        return [shown(name) for name in (*self.columns, *self.details)]

    def get_fields(self, request: HttpRequest, obj: Model | None = None) -> list[Any]:
        return self.get_readonly_fields(request, obj)

    def has_module_permission(self, request: HttpRequest) -> bool:
        return request.user.is_staff

    def has_view_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:
        return request.user.is_staff

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:
        return False


@admin.register(Region)
class RegionAdmin(ReadOnly):
    columns = ("name", "seen_at", "unreachable_since", "free_bytes", "total_bytes")
    details = ("versions",)
    search_fields = ("name",)
    ordering = ("name",)
    actions: Any = ("give_up",)

    def has_give_up_permission(self, request: HttpRequest) -> bool:
        return request.user.is_superuser

    @admin.action(
        description=_("Give up regions that do not answer: end their operations without asking them"),
        permissions=["give_up"],
    )
    def give_up(self, request: HttpRequest, regions: QuerySet[Region]) -> None:
        """R24: they end failed, and what they had named stays litter until the region can be asked to discard it."""
        silent = regions.exclude(unreachable_since=None)
        ended = sum(give_up(row) for row in Operation.objects.live().filter(region__in=silent))
        told = ngettext("%(count)d operation was ended.", "%(count)d operations were ended.", ended)
        self.message_user(request, told % {"count": ended})


@admin.register(Instance)
class InstanceAdmin(ReadOnly):
    """Only its owner is given here (R21); its disks go with it."""

    columns = ("name", "id", "status", "region", "owner", "observed_at")
    details = ("reason", "external_id", "vcpus", "memory_mib", "os", "address", "agent", "created_at")
    list_filter = ("status", "region", ("owner", admin.EmptyFieldListFilter))
    list_select_related = ("region", "owner")
    search_fields = ("id", "name", "external_id", "owner__username")
    autocomplete_fields = ("owner",)

    def get_readonly_fields(self, request: HttpRequest, obj: Model | None = None) -> list[Any]:
        return [field for field in super().get_readonly_fields(request, obj) if field is not shown("owner")]

    def get_fields(self, request: HttpRequest, obj: Model | None = None) -> list[Any]:
        return ["owner", *self.get_readonly_fields(request, obj)]

    def has_change_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:
        return request.user.is_staff

    def save_model(self, request: HttpRequest, obj: Instance, form: Any, change: bool) -> None:
        Instance.objects.filter(pk=obj.pk).update(owner=obj.owner)
        Disk.objects.filter(instance=obj).update(owner=obj.owner)


@admin.register(Disk)
class DiskAdmin(ReadOnly):
    columns = ("name", "id", "status", "region", "owner", "instance", "device", "medium", "size_bytes")
    details = ("allocated_bytes", "format", "encrypted", "external_id", "created_at")
    list_filter = ("status", "medium", "region")
    list_select_related = ("region", "owner", "instance")
    search_fields = ("id", "name", "external_id", "owner__username", "instance__name")


@admin.register(Snapshot)
class SnapshotAdmin(ReadOnly):
    columns = ("name", "id", "status", "region", "owner", "disk", "device", "size_bytes", "created_at")
    details = ("stored_bytes", "format", "encrypted", "instant", "external_id")
    list_filter = ("status", "region")
    list_select_related = ("region", "owner", "disk")
    search_fields = ("id", "name", "owner__username")


@admin.register(Operation)
class OperationAdmin(ReadOnly):
    columns = ("id", "kind", "subject", "status", "region", "asked_by", "created_at", "ended_at")
    details = (
        "reason",
        "outcome",
        "cancelled_by",
        "instance",
        "image",
        "disk",
        "snapshot",
        "step",
        "attempt",
        "holder",
        "strikes",
        "started_at",
        "waiting_since",
        "progress",
        "choices",
        "work",
    )
    list_filter = ("status", "kind", "region")
    list_select_related = ("region", "asked_by")
    search_fields = ("id", "subject", "asked_by__username", "instance__id", "image__id")


@admin.register(Litter)
class LitterAdmin(ReadOnly):
    columns = ("key", "region", "created_at")
    details = ("handle",)
    list_filter = ("region",)
    search_fields = ("key",)


@cache
def used(resource: Resource) -> Callable[[Quota], str]:
    """Present use, told beside the limit; above the limit is allowed, and said."""

    @admin.display(description=_("in use"))
    def value(quota: Quota) -> str:
        if quota._state.adding:
            return "–"
        use = uses(quota.owner, quota.region_id)[resource]
        return str(_("%(used)d, over the limit") if use.over else "%(used)d") % {"used": use.used}

    return value


@cache
def told(resource: Resource) -> Callable[[Quota], str]:
    @admin.display(description=resource.label)
    def value(quota: Quota) -> str:
        use = uses(quota.owner, quota.region_id)[resource]
        text = _("%(used)d of %(limit)d, over the limit") if use.over else _("%(used)d of %(limit)d")
        return str(text) % {"used": use.used, "limit": use.limit}

    return value


@admin.register(Quota)
class QuotaAdmin(Admin):
    """Every member of staff may edit limits; each edit is in the history (R20)."""

    list_filter = ("region",)
    list_select_related = ("owner", "region")
    list_per_page = 50  # each row counts its use
    search_fields = ("owner__username",)
    autocomplete_fields = ("owner",)
    ordering = ("owner__username", "region")

    def get_list_display(self, request: HttpRequest) -> list[Any]:
        limits: list[Any] = [told(resource) for resource in Resource]
        return ["owner", "region", *limits]

    def get_fieldsets(self, request: HttpRequest, obj: Quota | None = None) -> Any:
        limits = [(str(resource), used(resource)) for resource in Resource]
        return [(None, {"fields": ["owner", "region"]}), (_("Limits"), {"fields": limits})]

    def get_readonly_fields(self, request: HttpRequest, obj: Quota | None = None) -> Any:
        """Whose and where is said once; only the limits change."""
        told_beside: list[Any] = [used(resource) for resource in Resource]
        return [*told_beside, "owner", "region"] if obj else told_beside

    def has_module_permission(self, request: HttpRequest) -> bool:
        return request.user.is_staff

    def has_view_permission(self, request: HttpRequest, obj: Quota | None = None) -> bool:
        return request.user.is_staff

    has_change_permission = has_view_permission

    def has_add_permission(self, request: HttpRequest) -> bool:
        return request.user.is_staff


class AccountAdmin(Accounts):
    """Every member of staff may look for an owner; an owner of anything cannot be deleted, only deactivated."""

    def has_view_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return request.user.is_staff

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        if obj is not None and any(getattr(obj, name).exists() for name in OWNED):
            return False
        return super().has_delete_permission(request, obj)


OWNED = ("instances", "disks", "snapshots", "images", "operations")

admin.site.unregister(User)
admin.site.register(User, AccountAdmin)

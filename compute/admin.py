"""Administration (R20): accounts and limits are edited here; rows that stand for things in an engine are only read."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from functools import cache
from typing import TYPE_CHECKING, Any, ClassVar

from django.contrib import admin, messages
from django.contrib.admin.helpers import ACTION_CHECKBOX_NAME
from django.contrib.auth import get_user_model
from django.contrib.auth.admin import UserAdmin
from django.db.models import Model, QuerySet
from django.http import HttpRequest, HttpResponse
from django.urls import reverse
from django.utils import timezone
from django.utils.html import format_html
from django.utils.translation import gettext_lazy as _
from django.utils.translation import ngettext

from compute import operations
from compute.models import Disk, Instance, Litter, LiveOperation, Operation, Quota, Region, Resource, Snapshot
from compute.operations import give_up
from compute.quotas import uses
from compute.reasons import duration
from compute.states import LIVE, OperationStatus
from compute.templatetags.look import UNKNOWN, kind, moment, sentence, size

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


# What runs now: a page that is about this moment ---------------------------------------------------------------------


@admin.display(description=_("Id"), ordering="id")
def link(row: Operation) -> str:
    """To the operation's own page, which stays when it has ended."""
    return format_html('<a href="{}">{}</a>', reverse("admin:compute_operation_change", args=[row.pk]), row.pk)


@admin.display(description=_("Owner"))
def owner(row: Operation) -> Any:
    """Of what it is about; where that is gone, who asked for it."""
    subject = row.image or row.instance or row.disk or row.snapshot
    return (subject and subject.owner) or row.asked_by


@admin.display(description=_("Status"), ordering="status")
def status(row: Operation) -> str:
    label = row.get_status_display()
    if row.cancelled_by is None or row.status == OperationStatus.UNDOING:
        return label
    return str(_("%(status)s, cancelled by %(by)s")) % {"status": label, "by": row.cancelled_by.get_username()}


@admin.display(description=_("Holder"), ordering="holder")
def holder(row: Operation) -> str:
    """Its process number; the whole name, which says on which machine, when pointed at."""
    parts = row.holder.split("/")
    return format_html('<span title="{}">{}</span>', row.holder, parts[2] if len(parts) == 4 else row.holder or "–")


@admin.display(description=_("Pulse"), ordering="beat_at")
def pulse(row: Operation) -> str:
    """How long ago its holder last beat, or for how long nobody has held it."""
    age = {"time": duration(max(timezone.now() - (row.beat_at or row.created_at), timedelta()))}
    return str(_("%(time)s ago") if row.holder else _("nobody for %(time)s")) % age


@admin.display(description=_("Progress"))
def progress(row: Operation) -> str:
    """Bytes of the present phase, as far as they are known."""
    if not row.progress or row.status == OperationStatus.UNDOING:
        return "–"
    parts = row.progress["parts"].values()
    if not parts or None in parts:
        return str(UNKNOWN)
    done, total = (sum(part[n] for part in parts) for n in (0, 1))
    told = {"done": size(done), "total": size(total), "percent": total and done * 100 // total}
    if row.progress.get("phase") == "check":
        return str(_("%(done)s checked")) % told
    return str(_("%(percent)d%%, %(done)s of %(total)s") if total else _("%(done)s copied")) % told


@admin.display(description=_("Waiting since"), ordering="waiting_since")
def waiting(row: Operation) -> str:
    """For its region to answer."""
    return moment(row.waiting_since) if row.waiting_since else "–"


@admin.register(LiveOperation)
class LiveOperationAdmin(ReadOnly):
    """On every region. Staff may cancel what can still be turned back (R22)."""

    list_display_links = None
    list_select_related = ("region", "asked_by", "cancelled_by", "instance__owner", "image__owner", "disk__owner")
    search_fields = (*OperationAdmin.search_fields, "kind", "region__name")  # filters would take the table's room
    ordering = ("created_at",)
    actions: Any = ("cancel",)

    def get_queryset(self, request: HttpRequest) -> QuerySet[Any]:
        return super().get_queryset(request).filter(status__in=LIVE)

    def get_list_display(self, request: HttpRequest) -> list[Any]:
        what = [link, *map(shown, ("kind", "subject", "region")), owner, status, shown("step")]
        return [*what, pulse, progress, waiting, *map(shown, ("attempt", "strikes")), holder]

    def get_fields(self, request: HttpRequest, obj: Model | None = None) -> list[Any]:
        return self.get_list_display(request)

    get_readonly_fields = get_fields

    def changelist_view(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> HttpResponse:
        return super().changelist_view(request, (extra_context or {}) | {"title": _("What runs now")})

    def has_cancel_permission(self, request: HttpRequest) -> bool:
        return request.user.is_staff

    @admin.action(description=_("Cancel: stop the chosen operations and clean up after them"), permissions=["cancel"])
    def cancel(self, request: HttpRequest, rows: QuerySet[Operation]) -> None:
        # What has ended since the page was shown is no row of it any more, and is answered all the same.
        chosen = {*rows.values_list("pk", flat=True), *request.POST.getlist(ACTION_CHECKBOX_NAME)}
        turned = 0
        for row in Operation.objects.filter(pk__in=chosen).order_by("created_at"):
            if operations.cancel(row, request.user):
                self.log_change(request, row, str(_("Cancelled.")))
                turned += 1
            else:
                told = {"kind": kind(row), "subject": row.subject, "id": row.pk, "why": operations.too_late(row)}
                refused = str(_("%(kind)s, %(subject)s (%(id)s) was not cancelled. %(why)s")) % told
                self.message_user(request, refused, messages.WARNING)
        if turned:
            ended = ngettext(
                "%(count)d operation was cancelled and is being cleaned up.",
                "%(count)d operations were cancelled and are being cleaned up.",
                turned,
            )
            self.message_user(request, ended % {"count": turned}, messages.SUCCESS)


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

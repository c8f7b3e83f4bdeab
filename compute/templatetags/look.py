"""How rows are told on a page: statuses, sizes, times, meters. What comes from a row is escaped here."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import date, datetime, timedelta
from functools import cache
from typing import Any

from django import template
from django.utils import timezone
from django.utils.formats import date_format, number_format
from django.utils.html import format_html
from django.utils.safestring import SafeString, mark_safe
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy, ngettext, pgettext
from lucide.templatetags.lucide import lucide

from compute import reasons
from compute.models import Operation
from compute.quotas import Use
from compute.reasons import KINDS, Reason, say
from compute.states import Status

register = template.Library()

UNKNOWN = gettext_lazy("unknown")


@register.simple_tag
@cache
def icon(name: str, size: int = 15) -> str:
    """A Lucide icon in the colour of the text beside it; never the only bearer of a meaning."""
    return lucide(name, size=size, stroke_width=1.75, aria_hidden="true", **{"class": f"icon {name}"})


@register.simple_tag
def badge(row: Any, pill: bool = False) -> SafeString:
    """The status of a row: icon, word, tone."""
    status: Status = row.Status(row.status)
    shape = " pill" if pill else ""
    return format_html(
        '<span class="status {}{}">{}{}</span>', status.tone.value, shape, icon(status.icon), status.label
    )


@register.simple_tag
def mark(full: bool = True, size: int = 22) -> SafeString:
    """The held frame: hollow while promised, full once fixed."""
    middle = (
        '<rect x="7" y="1" width="10" height="14" rx="2"/>'
        if full
        else '<rect class="hollow" x="8" y="2" width="8" height="12" rx="1.5"/>'
    )
    return mark_safe(  # noqa: S308 (nothing of a row is in it)
        f'<svg class="mark" width="{size}" height="{size * 16 // 24}" viewBox="0 0 24 16" aria-hidden="true">'
        f'<rect class="faint" y="3" width="4" height="10" rx="1"/>{middle}'
        '<rect class="faint" x="20" y="3" width="4" height="10" rx="1"/></svg>'
    )


@register.filter
def sentence(reason: Reason | None) -> str:
    return say(reason)


@register.filter
def kind(operation: Operation) -> str:
    return str(KINDS.get(operation.kind, operation.kind))


# Numbers and times --------------------------------------------------------------------------------------------------


@register.filter
def size(count: int | float | None) -> str:
    """``24.6 GB``; "unknown" for None."""
    return str(UNKNOWN) if count is None else reasons.size(count)


@register.filter
def mib(count: int) -> str:
    return size(count * 1024**2)


@register.filter
def gigabytes(count: int) -> str:
    """A capacity in GB, without its unit, for a column that names it."""
    value = count / 1024**3
    return number_format(value, 0 if value == int(value) else 2)


@register.filter
def duration(seconds: float | timedelta | None) -> str:
    """``2 min 8 s``; its two largest units. "unknown" for None."""
    return str(UNKNOWN) if seconds is None else reasons.duration(seconds)


def _local(moment: datetime | None) -> datetime | None:
    return timezone.localtime(moment) if moment else None


@register.filter
def day(moment: datetime | date) -> str:
    if isinstance(moment, datetime):
        moment = timezone.localtime(moment)
    # Translators: a date, in the letters of Django's date filter.
    return date_format(moment, pgettext("date format", "j M Y"))


@register.filter
def read_time(written: str) -> datetime:
    """A time that a reason keeps as text."""
    return datetime.fromisoformat(written)


@register.filter
def clock(moment: datetime | None) -> str:
    """Time of day to the second."""
    local = _local(moment)
    return local.strftime("%H:%M:%S") if local else ""


@register.filter
def instant(moment: datetime | None) -> str:
    """Time of day to the millisecond."""
    local = _local(moment)
    return f"{local:%H:%M:%S}.{local.microsecond // 1000:03d}" if local else ""


@register.filter
def moment(value: datetime | None) -> str:
    return f"{day(value)} {clock(value)}" if value else str(UNKNOWN)


@register.filter
def when(value: datetime) -> str:
    """``Today 14:05``, ``Yesterday 23:10``, else the day."""
    local = timezone.localtime(value)
    days = (timezone.localdate() - local.date()).days
    time = local.strftime("%H:%M")
    if days == 0:
        return _("Today %(time)s") % {"time": time}
    if days == 1:
        return _("Yesterday %(time)s") % {"time": time}
    return day(value)


@register.simple_tag
def zone() -> str:
    """The reader's zone as an offset: ``UTC+8``."""
    minutes = int((timezone.localtime().utcoffset() or timedelta()).total_seconds()) // 60
    hours, rest = divmod(abs(minutes), 60)
    if not minutes:
        return "UTC"
    return f"UTC{'+' if minutes > 0 else '−'}{hours}{f':{rest:02d}' if rest else ''}"


@register.filter
def yes_no(value: bool | None) -> str:
    return str(UNKNOWN) if value is None else _("Yes") if value else _("No")


@register.simple_tag
def kinds_of(disks: list[Any]) -> str:
    """``2 cloud, 1 local``."""
    cloud = sum(disk.medium == "cloud" for disk in disks)
    local = len(disks) - cloud
    parts = [ngettext("%(n)d cloud", "%(n)d cloud", cloud) % {"n": cloud}] if cloud else []
    if local:
        parts.append(ngettext("%(n)d local", "%(n)d local", local) % {"n": local})
    return _(", ").join(parts)


@register.filter
def total_size(disks: list[Any]) -> int:
    return sum(disk.size_bytes for disk in disks)


# Meters: a cell is one thing ----------------------------------------------------------------------------------------


@register.filter
def in_use(uses: Iterable[Use]) -> bool:
    return any(use.used for use in uses)


@register.filter
def after(use: Use, more: int) -> int:
    return use.after(more)


@register.filter
def short(use: Use, more: int) -> int:
    return use.short(more)


CELLS = 100  # more are drawn to scale: beyond that no eye counts them


@register.simple_tag
def meter(use: Use, more: int = 0) -> SafeString:
    """Quota as film: used grey, added accent, free empty; full and over in their tones. The words stand beside it."""
    after = use.after(more)
    cells = max(use.limit, after, use.used)
    if not cells:
        return mark_safe("")
    scale = min(1, CELLS / cells)
    grown, over = "added" if after <= use.limit else "over", max(0, use.used - use.limit)
    used, free = min(use.used, use.limit, after), max(0, use.limit - after)
    counts = [("full" if use.full and not over and not more else "used", used), ("over", over)]
    counts += [(grown, max(0, after - use.used)), ("free", free)]
    drawn, at = [], 0
    for name, count in counts:
        number = round(count * scale)
        if number:
            path = "".join(f"M{13 * (at + n)} 0h10v8h-10z" for n in range(number))
            drawn.append(format_html('<path class="{}" d="{}"/>', name, path))
            at += number
    width = max(1, 13 * at - 3)
    return format_html(
        '<svg class="meter" width="{}" height="8" viewBox="0 0 {} 8" preserveAspectRatio="none" '
        'aria-hidden="true">{}</svg>',
        width,
        width,
        mark_safe("".join(drawn)),  # noqa: S308 (made by format_html above)
    )

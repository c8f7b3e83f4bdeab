"""The making of an image told step by step, from what its rows record; a time nobody wrote down is left out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta

from django.utils.translation import gettext as _
from django.utils.translation import pgettext

from compute.models import Operation
from compute.states import OperationStatus
from compute.templatetags.look import duration
from images.models import Image
from images.progress import Progress, progress_of


@dataclass(frozen=True)
class Moment:
    """``look``: past, now, next, mark (the instant), undo, bad, good. ``exact``: told to the millisecond."""

    look: str
    text: str
    at: datetime | None = None
    note: str = ""
    exact: bool = False


def timeline(image: Image, making: Operation) -> list[Moment]:
    return [*_begin(image, making), *_copy(image, making, progress_of(making)), *_end(image, making)]


def _begin(image: Image, making: Operation) -> Iterator[Moment]:
    who = making.asked_by.get_username() if making.asked_by else ""
    yield Moment("past", _("Asked for by %(who)s") % {"who": who}, making.created_at)
    if making.started_at is None:
        yield Moment("now" if making.is_live else "next", _("Waiting for its turn"))
    else:
        queued = making.started_at - making.created_at
        note = _("After %(time)s in the queue") % {"time": duration(queued)} if queued > timedelta(seconds=1) else ""
        yield Moment("past", _("Started"), making.started_at, note)
    if image.consistency:
        yield Moment("mark", instant_of(image), image.instant, frozen_note(image), exact=True)
    elif making.is_live and making.status != OperationStatus.UNDOING:
        yield Moment("now" if making.started_at else "next", _("Fixing the instant"))


def instant_of(image: Image) -> str:
    count = len(image.mappings.all())
    if count == 1:
        return _("The instant of the disk")
    return _("The instant of %(n)d disks") % {"n": count}


def frozen_note(image: Image) -> str:
    """What the freeze took and what our own thaw gave back; a count nobody saved is not told."""
    if not image.frozen or image.freeze_ms is None:
        return ""
    told = _("%(n)d file systems frozen for %(ms)d ms") % {"n": image.frozen, "ms": image.freeze_ms}
    if image.thawed == image.frozen:
        return _("%(frozen)s, all thawed") % {"frozen": told}
    return told


def _copy(image: Image, making: Operation, progress: Progress) -> Iterator[Moment]:
    sealing = began(making, "seal")
    if sealing:
        yield Moment("past", _("Copied"), sealing)
    elif making.is_live and making.status != OperationStatus.UNDOING:
        percent = progress.percent
        text = _("Copying") if percent is None else _("Copying, %(percent)d%%") % {"percent": percent}
        left = progress.left
        note = _("%(time)s of copying left") % {"time": duration(left)} if left is not None else ""
        yield Moment("now", text, None, note) if image.consistency else Moment("next", _("Copying"))


def _end(image: Image, making: Operation) -> Iterator[Moment]:
    checked = _("Every file inspected and hashed")
    if making.status == OperationStatus.DONE:
        yield Moment("past", checked, image.available_at)
        yield Moment("good", _("Available"), image.available_at)
    elif making.is_live and making.status != OperationStatus.UNDOING:
        sealing = began(making, "seal")
        yield Moment("now" if sealing else "next", _("Inspecting and hashing every file"))
        yield Moment("next", _("Available"))
    else:
        cancelled = OperationStatus.CANCELLED in (making.outcome, making.status)
        yield Moment("bad", making.why) if cancelled else Moment("bad", pgettext("making", "Stopped"), None, making.why)
        if making.is_live:
            yield Moment("undo now", _("Cleaning up"))
        else:
            yield Moment("undo", _("Cleaned up: its snapshots and files are deleted"), making.ended_at)
            yield Moment("bad", _("Error"), making.ended_at)


def began(making: Operation, step: str) -> datetime | None:
    """When a step began, as its row says."""
    told = making.work.get(step, {}).get("began")
    return datetime.fromisoformat(told) if told else None

"""Every sentence that a code stands for. Rows keep code and data; the text is made when it is read, in the reader's
language. Each says what happened, what is still true, what to do. Other apps add theirs by ``SENTENCES.update``.
"""

from __future__ import annotations

import logging
from datetime import timedelta
from typing import Any, TypedDict

from django.utils.formats import number_format
from django.utils.functional import Promise
from django.utils.translation import gettext
from django.utils.translation import gettext_lazy as _

log = logging.getLogger(__name__)


class Reason(TypedDict):
    code: str
    data: dict[str, Any]


SENTENCES: dict[str, str | Promise] = {
    # Refusals.
    "moved-first": _("Something else changed it first. Look at it again, then repeat what you wanted."),
    "not-yours": _("It belongs to %(owner)s."),
    "nobodys": _("It belongs to nobody yet: give it an owner in the administration."),
    "busy-image": _("%(instance)s is held while its image %(image)s is made."),
    "busy-image-left": _("%(instance)s is held while its image %(image)s is made (about %(left)s left)."),
    "busy": _("Another operation on %(instance)s is still going on: %(kind)s."),
    "no-power": _("Instances do not run in this region."),
    "running-already": _("%(instance)s is running already."),
    "stopped-already": _("%(instance)s is stopped already."),
    "wrong-status": _("Not possible in the present status of %(instance)s."),
    "cancel-ended": _("Too late: it has ended."),
    "cancel-undoing": _("Too late: it is being cleaned up already."),
    "cancel-already": _("%(by)s has cancelled it already: it turns round as soon as its holder looks."),
    "cancel-no-return": _("Too late: it cannot be turned back any more, it can only be brought to its end."),
    # The quota's resource has a sentence each, since a translation cannot be put together from words.
    "quota-images": _(
        "Not enough quota for images: %(used)s of %(limit)s are used and %(needed)s is needed. Delete "
        "an image, or ask an administrator to raise the limit."
    ),
    "quota-snapshots": _(
        "Not enough quota for snapshots: %(used)s of %(limit)s are used and %(needed)s are needed. "
        "Delete snapshots, choose fewer disks, or ask an administrator to raise the limit."
    ),
    # How an operation ended.
    "unreachable": _("The region did not answer."),
    "region-given-up": _("An administrator gave its region up, since it did not answer."),
    "unexpected": _("Something unexpected happened; quote %(operation)s to your administrator."),
    "gave-up": _(
        "Given up after %(times)s attempts that did not survive. Try again; if it ends so again, tell your "
        "administrator."
    ),
    "cancelled": _("Cancelled by %(by)s."),
    "stalled": _(
        "Nothing moved for %(seconds)s seconds, so it was given up. Try again; if it ends so again, tell your "
        "administrator."
    ),
    "work-lost": _(
        "What was copying vanished twice without saying why. Try again; if it ends so again, tell your administrator."
    ),
    "undo-slow": _("Cleaning up took too long; it goes on in the background."),
    "undone-again": _(
        "Nobody was at work on it any more, so an administrator had what was left of it removed. Try again."
    ),
    "erase-slow": _("The files could not be deleted in time. Delete it again; if that fails, tell your administrator."),
    "instance-gone": _("The region does not know this instance any more."),
    "did-not-start": _("It did not start within %(seconds)s seconds."),
    "did-not-stop": _(
        "The system did not shut down within %(seconds)s seconds. Stop it with force, or look at what keeps it busy."
    ),
    # What an engine says.
    "no-room": _(
        "The place for its files was taken away while it was made. Try again; if it ends so again, tell your "
        "administrator."
    ),
    "store-short": _(
        "It does not fit into the image store, so nothing was copied: it takes up to %(needed_bytes)s, and of the "
        "%(free_bytes)s that are free others still have to write %(others_bytes)s and %(reserve_bytes)s stay in "
        "reserve. Choose fewer disks or delete images, then try again."
    ),
    "store-full": _(
        "The image store filled up while the disks were copied, so the copy was thrown away. Delete images, then try "
        "again."
    ),
    "store-failed": _("The image store failed (%(errno)s). Tell your administrator."),
    "copy-failed": _(
        "Reading or writing a disk failed (%(errno)s). What was copied is thrown away. Try again; if it ends so "
        "again, tell your administrator."
    ),
    "copier-did-not-start": _(
        "The copy could not be started on the host. Try again; if it ends so again, tell your administrator."
    ),
    "hostile-image": _(
        "The copy of %(part)s is not a plain disk image (%(why)s) and was not published. Tell your administrator."
    ),
    "damaged-image": _(
        "The copy of %(part)s is damaged and was not published. Try again; if it ends so again, tell your "
        "administrator."
    ),
    "check-failed": _(
        "The copy of %(part)s could not be checked. Try again; if it ends so again, tell your administrator."
    ),
    "part-missing": _("The copy of %(part)s is missing. Try again; if it ends so again, tell your administrator."),
    "other-parts": _(
        "What was copied is not what was asked for; nothing was published. Try again; if it ends so again, tell your "
        "administrator."
    ),
    "engine-error": _("The region refused it (%(said)s). Tell your administrator."),
    "instance-vanished": _(
        "The instance is not there any more on its region. Ask your administrator what became of it."
    ),
    "instance-stopped": _("The instance stopped while its disks were copied. Start it, then make the image again."),
    "instance-busy": _(
        "Another program copies or moves this instance's disks just now. Try again when it has finished."
    ),
    "instance-state": _("The instance changed its state just as the copy was to begin. Try again."),
    "instance-saved": _("The instance was saved to disk with its memory. Start it and shut it down, then try again."),
    "disk-in-use": _(
        "Another program has one of the disks open, so its bytes would not be of one instant. End that program, then "
        "try again."
    ),
    "stand-in-failed": _(
        "The region could not open the disks of the stopped instance (%(said)s). Try again; if it ends so again, "
        "tell your administrator."
    ),
    "capture-refused": _(
        "The region refused to copy the disks (%(said)s). Try again; if it ends so again, tell your administrator."
    ),
    "copier-vanished": _("What copied the disks was ended from outside. Try again."),
    "result-lost": _("Nobody can say how the copy ended, so it was thrown away. Try again."),
    "disk-vanished": _("%(device)s is not attached to the instance any more. Look at its disks, then try again."),
    "disk-unreadable": _("The file of %(device)s cannot be read on the host. Tell your administrator."),
    "disk-encrypted": _("%(device)s is encrypted in a way that cannot be captured."),
    "disk-readonly": _("%(device)s is read-only, so it cannot be captured."),
    "disk-missing": _("The file of %(device)s is missing on the host."),
    "disk-kind": _("%(device)s is not a disk file, so it cannot be captured."),
    "disk-format": _("The format of %(device)s cannot be captured."),
    "disk-shared": _("%(device)s is shared with another instance, so it cannot be captured."),
}

# What an operation of this kind does. Other apps add theirs by ``KINDS.update``.
KINDS: dict[str, str | Promise] = {
    "start": _("Start"),
    "stop": _("Stop"),
}


def duration(seconds: float | timedelta) -> str:
    """``2 min 8 s``; its two largest units."""
    if isinstance(seconds, timedelta):
        seconds = seconds.total_seconds()
    whole = max(0, round(seconds))
    minutes, rest = divmod(whole, 60)
    hours, minutes_left = divmod(minutes, 60)
    if hours:
        return gettext("%(hours)d h %(minutes)d min") % {"hours": hours, "minutes": minutes_left}
    if minutes:
        return gettext("%(minutes)d min %(seconds)d s") % {"minutes": minutes, "seconds": rest}
    return gettext("%(seconds)d s") % {"seconds": rest}


def size(count: float) -> str:
    """Bytes in powers of 1024, as consoles name them: ``40 GB``, ``24.6 GB``."""
    value, unit = float(count), "B"
    for unit in ("B", "KB", "MB", "GB", "TB"):
        if value < 1024 or unit == "TB":
            break
        value /= 1024
    digits = 0 if unit == "B" or value >= 100 or value == int(value) else 1
    return f"{number_format(round(value, digits), digits)} {unit}"


def _told(data: dict[str, Any]) -> dict[str, Any]:
    """Data as a reader wants them: ``left`` is kept in seconds, ``…_bytes`` in bytes, ``kind`` as an operation's."""
    told: dict[str, Any] = {}
    for name, value in data.items():
        told[name] = size(value) if name.endswith("_bytes") else value
    if "left" in told:
        told["left"] = duration(told["left"])
    if "kind" in told:
        told["kind"] = KINDS.get(told["kind"], told["kind"])
    return told


def say(reason: Reason | None) -> str:
    """The sentence of a reason, or "" for none. Never raises: a page must not fail over a message."""
    if not reason:
        return ""
    try:
        return str(SENTENCES[reason["code"]]) % _told(reason["data"])
    except (KeyError, TypeError, ValueError):
        log.exception("no sentence for %r", reason)
        return str(_("It was not possible (%s).")) % reason["code"]

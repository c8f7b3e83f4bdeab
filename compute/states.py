"""Statuses: the only way one changes, and all that badge, poll and table must agree on."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from enum import Enum
from functools import partial
from typing import Any, ClassVar, Self

from django.db import models, transaction
from django.utils.translation import gettext_lazy as _
from django.utils.translation import pgettext_lazy

from compute.engines.base import InstanceFacts, Power
from compute.log import at_hand
from compute.refusals import Conflict

log = logging.getLogger(__name__)


def log_arrow(log: logging.Logger, what: str, was: str, to: str) -> None:
    """A line for one transition, written once its transaction is committed: what was rolled back never was."""
    transaction.on_commit(partial(log.info, "%s: %s → %s", what, was, to, extra={"operation": at_hand()}))


class Tone(Enum):
    MOVE = "move"
    GOOD = "good"
    CARE = "care"
    BAD = "bad"
    REST = "rest"


class Status(models.TextChoices):
    """Members are written ``VALUE = "value", Tone, "icon", settled, _("Word")``; a settled row stops asking."""

    tone: Tone
    icon: str
    settled: bool

    # The defaults are for type checkers only, which read ``SomeStatus("value")`` as a call of this.
    def __new__(cls, value: str, tone: Tone = Tone.REST, icon: str = "", settled: bool = True) -> Self:
        member = str.__new__(cls, value)
        member._value_ = value
        member.tone, member.icon, member.settled = tone, icon, settled
        return member


class Stateful(models.Model):
    """A row with a ``status`` that moves along ``ARROWS`` only."""

    ARROWS: ClassVar[Mapping[str, frozenset[str]]]
    status = models.CharField(max_length=12)  # each model says its choices

    class Meta:
        abstract = True

    def move(self, to: str, **facts: Any) -> None:
        """Take one arrow, atomically, writing ``facts`` with it; raise Conflict when someone else moved first.

        The row's own ``status`` is what the caller believes; one changed row means the belief was true.
        """
        was = self.status
        if to not in self.ARROWS[was]:
            raise Conflict(status=str(was), to=str(to))
        if not type(self)._default_manager.filter(pk=self.pk, status=was).update(status=to, **facts):
            raise Conflict(status=str(was), to=str(to))
        self.tell(was, to)
        self.status = to
        for name, value in facts.items():
            setattr(self, name, value)

    def tell(self, was: str, to: str) -> None:
        """A line in the log that it went from ``was`` ("new") to ``to`` ("deleted"), for the operation at hand."""
        log_arrow(log, f"{type(self).__name__.lower()} {self.pk}", was, to)


def arrows(**table: str) -> dict[str, frozenset[str]]:
    """``arrows(a="b c", b="")`` → which statuses may follow which."""
    return {status: frozenset(follow.split()) for status, follow in table.items()}


class InstanceStatus(Status):
    # The row exists; the engine does not have it yet.
    PENDING = "pending", Tone.MOVE, "loader-circle", False, _("Pending")
    # A start was asked for and the engine has not shown it running yet.
    STARTING = "starting", Tone.MOVE, "loader-circle", False, _("Starting")
    # The engine showed it running when it was last observed.
    RUNNING = "running", Tone.GOOD, "circle-play", True, _("Running")
    # A stop was asked for and the engine has not shown it stopped yet.
    STOPPING = "stopping", Tone.MOVE, "loader-circle", False, _("Stopping")
    # The engine showed it shut off when it was last observed.
    STOPPED = "stopped", Tone.REST, "circle-stop", True, _("Stopped")
    # Its processors stand still; someone outside the console paused it.
    PAUSED = "paused", Tone.CARE, "circle-pause", True, _("Paused")
    # It could not be observed well after an operation; the reason says what is known.
    ERROR = "error", Tone.BAD, "octagon-alert", True, _("Error")
    # The engine answered that it is not there any more.
    GONE = "gone", Tone.REST, "unplug", True, _("Gone")


_SHOWN = {
    Power.RUNNING: InstanceStatus.RUNNING,
    Power.STOPPED: InstanceStatus.STOPPED,
    Power.PAUSED: InstanceStatus.PAUSED,
}


def status_of(facts: InstanceFacts | None) -> InstanceStatus | None:
    """The status that an engine's answer shows (no facts: it is not there); None while it is between two."""
    return _SHOWN.get(facts.power) if facts else InstanceStatus.GONE


class DiskStatus(Status):
    # Attached to an instance.
    IN_USE = "in_use", Tone.GOOD, "plug", True, _("In use")
    # Attached to nothing.
    AVAILABLE = "available", Tone.GOOD, "circle-check", True, _("Available")


class SnapshotStatus(Status):
    # Its file is being written, or is not yet inspected and hashed.
    CREATING = "creating", Tone.MOVE, "aperture", False, _("Creating")
    # Its file is complete, inspected and hashed.
    AVAILABLE = "available", Tone.GOOD, "circle-check", True, _("Available")
    # Its file is being removed; the row goes when the file is gone.
    DELETING = "deleting", Tone.REST, "trash-2", False, _("Deleting")
    # Its file could not be removed; it can be asked again.
    ERROR = "error", Tone.BAD, "octagon-alert", True, _("Error")


class OperationStatus(Status):
    # Written; nobody has begun.
    QUEUED = "queued", Tone.REST, "clock", False, _("Queued")
    # Claimed at least once; its steps are being done.
    RUNNING = "running", Tone.MOVE, "loader-circle", False, pgettext_lazy("operation", "Running")
    # It will not succeed; what it made is being removed, and it still holds its locks.
    UNDOING = "undoing", Tone.CARE, "undo-2", False, _("Cleaning up")
    # All steps done.
    DONE = "done", Tone.GOOD, "check", True, _("Done")
    # It did not succeed, and nothing of it is left but what litter rows name.
    FAILED = "failed", Tone.BAD, "x", True, _("Failed")
    # Someone cancelled it, and nothing of it is left but what litter rows name.
    CANCELLED = "cancelled", Tone.REST, "ban", True, _("Cancelled")


LIVE = (OperationStatus.QUEUED, OperationStatus.RUNNING, OperationStatus.UNDOING)

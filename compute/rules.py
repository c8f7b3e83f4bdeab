"""What is possible now, in one place: read by the button, the form and the action (R12)."""

from __future__ import annotations

from typing import Any

from compute.models import Instance
from compute.refusals import Busy, NotAllowed, Refused
from compute.regions import abilities_of
from compute.states import InstanceStatus


def why_not_yours(row: Any, by: Any) -> NotAllowed | None:
    """Staff read everything, but a verb is for the owner of the thing (R22)."""
    if row.owner_id == by.pk:
        return None
    return NotAllowed("not-yours", owner=row.owner.get_username()) if row.owner else NotAllowed("nobodys")


def why_busy(instance: Instance) -> Refused | None:
    """An operation holds it: nothing that changes it or its disks is possible meanwhile (R12)."""
    operation = instance.operation
    if operation is None:
        return None
    if operation.image is None:
        return Busy("busy", instance=instance.name, kind=operation.kind)
    names = {"instance": instance.name, "image": operation.image.name}
    left = operation.seconds_left
    return Busy("busy-image", **names) if left is None else Busy("busy-image-left", **names, left=round(left))


def why_not_start(instance: Instance) -> Refused | None:
    if not abilities_of(instance.region_id).power:
        return Refused("no-power")
    if busy := why_busy(instance):
        return busy
    if instance.status == InstanceStatus.RUNNING:
        return Refused("running-already", instance=instance.name)
    if instance.status not in (InstanceStatus.STOPPED, InstanceStatus.ERROR):
        return Refused("wrong-status", instance=instance.name, status=instance.status)
    return None


def why_not_stop(instance: Instance) -> Refused | None:
    if not abilities_of(instance.region_id).power:
        return Refused("no-power")
    if busy := why_busy(instance):
        return busy
    if instance.status == InstanceStatus.STOPPED:
        return Refused("stopped-already", instance=instance.name)
    if instance.status not in (InstanceStatus.RUNNING, InstanceStatus.PAUSED, InstanceStatus.ERROR):
        return Refused("wrong-status", instance=instance.name, status=instance.status)
    return None

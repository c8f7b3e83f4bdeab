"""What is possible now, in one place: read by the button, the form and the action (R12)."""

from __future__ import annotations

from compute.models import Instance
from compute.refusals import Busy, Refused
from compute.regions import abilities_of
from compute.states import InstanceStatus


def why_busy(instance: Instance) -> Refused | None:
    """An operation holds it: nothing that changes it or its disks is possible meanwhile (R12)."""
    operation = instance.operation
    if operation is None:
        return None
    if operation.image is not None:
        return Busy("busy-image", instance=instance.name, image=operation.image.name)
    return Busy("busy", instance=instance.name, kind=operation.kind)


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

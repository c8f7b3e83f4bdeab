"""What is possible now with images, in one place: read by the button, the form and the action."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from compute import quotas, space
from compute.models import Disk, Instance, Medium, Region, Resource
from compute.quotas import Use
from compute.refusals import Refused
from compute.regions import abilities_of
from compute.rules import why_busy
from compute.states import InstanceStatus
from images.models import Image
from images.states import ImageStatus


def why_not_create_image(instance: Instance) -> Refused | None:
    """R2: a cloud system disk while running or stopped, a local one while stopped only; nothing else going on."""
    if busy := why_busy(instance):
        return busy
    if instance.status not in (InstanceStatus.RUNNING, InstanceStatus.STOPPED):
        return Refused("image-wrong-status", instance=instance.name)
    system = instance.system_disk
    if system is None:
        return Refused("no-system-disk", instance=instance.name)
    if system.problem:
        return Refused(system.problem, device=system.path)
    if instance.status == InstanceStatus.RUNNING:
        if system.medium == Medium.LOCAL:
            return Refused("image-local-running", instance=instance.name)
        if not abilities_of(instance.region_id).live_capture:
            return Refused("image-live-unable", instance=instance.name)
    return None


def why_not_include(disk: Disk) -> Refused | None:
    """R3: why this data disk cannot be chosen."""
    if disk.medium == Medium.LOCAL:
        return Refused("local-data-disk")
    if disk.problem:
        return Refused(disk.problem, device=disk.path)
    return None


def why_not_fit(region: Region, disks: Collection[Disk]) -> Refused | None:
    """Why copies of these disks would not fit into the image store, as it was last seen."""
    most = sum(disk.most_to_copy for disk in disks)
    return space.why_not_fit(region.pk, most, (region.free_bytes, region.total_bytes))


def why_not_use(image: Image) -> Refused | None:
    """R9: share, create instance and delete are refused while it is being made."""
    if image.is_being_made:
        return Refused("image-not-available")
    if image.status == ImageStatus.DELETING:
        return Refused("image-deleting")
    return None


def why_not_share(image: Image) -> Refused:
    if refused := why_not_use(image):
        return refused
    return Refused("image-in-error" if image.status == ImageStatus.ERROR else "later")


def why_not_create_instance(image: Image) -> Refused:
    if refused := why_not_use(image):
        return refused
    return Refused("image-in-error" if image.status == ImageStatus.ERROR else "later")


def why_not_delete(image: Image) -> Refused | None:
    """R18: Available or Error only. One that is still cleaned up may be asked for: it is carried out after (R10)."""
    return why_not_use(image)


def why_not_cancel(image: Image) -> Refused | None:
    """R11: in Creating and Copying."""
    operation = image.operation
    if not image.is_being_made or operation is None or operation.cancelled_by_id is not None:
        return Refused("not-being-made")
    return None


def uses(owner: Any, region: str) -> dict[Resource, Use]:
    """Use and limit of every resource, in a fixed number of queries."""
    return quotas.uses(owner, region)


def needed(instance: Instance, disks: Collection[str]) -> dict[Resource, int]:
    """What an image of it with these data disks takes (R5): one image, and a snapshot per chosen cloud disk."""
    system = instance.system_disk
    cloud = system is not None and system.medium == Medium.CLOUD
    return {Resource.IMAGES: 1, Resource.SNAPSHOTS: int(cloud) + len(set(disks))}

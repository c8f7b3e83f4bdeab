"""Rows for tests. One cast: Alice owns, Bob is shared with, Charlie has no business here, Dana is the admin."""

from __future__ import annotations

from typing import Any

import factory
from django.contrib.auth import get_user_model
from factory.django import DjangoModelFactory

from compute.models import Disk, Instance, Medium, Operation, Quota, Region, Snapshot
from compute.states import InstanceStatus, OperationStatus, SnapshotStatus
from images.models import DeviceMapping, Image
from images.states import ImageStatus

GIB = 1 << 30
REGION = "folder-1"


class UserFactory(DjangoModelFactory[Any]):
    class Meta:
        model = get_user_model()
        django_get_or_create = ("username",)

    username = "alice"
    password = factory.django.Password("demo-console")


class RegionFactory(DjangoModelFactory[Region]):
    class Meta:
        model = Region
        django_get_or_create = ("name",)

    name = REGION


class QuotaFactory(DjangoModelFactory[Quota]):
    class Meta:
        model = Quota

    owner = factory.SubFactory(UserFactory)
    region = factory.SubFactory(RegionFactory)


class InstanceFactory(DjangoModelFactory[Instance]):
    """A stopped instance with a cloud system disk and no data disks."""

    class Meta:
        model = Instance
        skip_postgeneration_save = True

    region = factory.SubFactory(RegionFactory)
    owner = factory.SubFactory(UserFactory)
    name = "web-1"
    external_id = factory.Sequence(lambda n: f"engine-instance-{n}")
    status = InstanceStatus.STOPPED
    vcpus = 1
    memory_mib = 256
    system = factory.RelatedFactory(
        "tests.factories.DiskFactory", factory_related_name="instance", device="vda", name="web-1-system"
    )


class DiskFactory(DjangoModelFactory[Disk]):
    class Meta:
        model = Disk

    region = factory.SubFactory(RegionFactory)
    owner = factory.SelfAttribute("instance.owner")
    instance = factory.SubFactory(InstanceFactory, system=None)
    external_id = factory.Sequence(lambda n: f"engine-disk-{n}")
    name = factory.LazyAttribute(lambda disk: f"web-1-{disk.device}")
    device = "vdb"
    medium = Medium.CLOUD
    format = "raw"
    size_bytes = GIB
    allocated_bytes = GIB // 4


class ImageFactory(DjangoModelFactory[Image]):
    """An Available cloud-disk image without mappings."""

    class Meta:
        model = Image

    region = factory.SubFactory(RegionFactory)
    owner = factory.SubFactory(UserFactory)
    name = "web-1-image"
    status = ImageStatus.AVAILABLE
    medium = Medium.CLOUD
    instance_name = "web-1"
    consistency = "offline"


class SnapshotFactory(DjangoModelFactory[Snapshot]):
    class Meta:
        model = Snapshot

    region = factory.SubFactory(RegionFactory)
    owner = factory.SubFactory(UserFactory)
    name = "web-1-image-vda"
    status = SnapshotStatus.AVAILABLE
    device = "vda"
    size_bytes = GIB


class MappingFactory(DjangoModelFactory[DeviceMapping]):
    class Meta:
        model = DeviceMapping

    image = factory.SubFactory(ImageFactory)
    device = "vda"
    disk_name = "web-1-system"
    medium = Medium.CLOUD
    size_bytes = GIB
    snapshot = factory.SubFactory(SnapshotFactory)
    delete_with_instance = True


class OperationFactory(DjangoModelFactory[Operation]):
    """A queued start."""

    class Meta:
        model = Operation

    kind = "start"
    status = OperationStatus.QUEUED
    region = factory.SubFactory(RegionFactory)
    asked_by = factory.SubFactory(UserFactory)
    instance = factory.SubFactory(InstanceFactory)
    subject = "web-1"

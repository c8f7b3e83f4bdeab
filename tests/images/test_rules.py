"""What is possible when: docs/rules.md R2, R4, R9, R12, R18."""

from __future__ import annotations

import pytest
from django.core.exceptions import ValidationError

from compute.models import Disk, generated_name, valid_description, valid_name
from compute.rules import why_not_start, why_not_stop
from compute.states import InstanceStatus
from images.rules import (
    needed,
    why_not_cancel,
    why_not_create_image,
    why_not_create_instance,
    why_not_delete,
    why_not_include,
    why_not_share,
)
from images.states import ImageStatus
from tests.factories import DiskFactory, ImageFactory, InstanceFactory, OperationFactory

REGIONS = {
    "kvm": {"BACKEND": "compute.engines.libvirt.LibvirtEngine"},
    "plain": {"BACKEND": "compute.engines.folder.FolderEngine"},
}


@pytest.fixture(autouse=True)
def regions(settings):
    settings.ENGINES = REGIONS


@pytest.mark.parametrize("name", ["v2", "数据库-备份.v2", "_a", "x" * 32, "𠮷野", "a.b_c-d"])
def test_good_names(name):
    """R4."""
    valid_name(name)


@pytest.mark.parametrize("name", ["", "a", "web 1", "ｗｅｂ", "web🙂", "x" * 33, "web\n", "wéb", "a/b", "ab\u200b"])
def test_bad_names(name):
    """R4."""
    with pytest.raises(ValidationError):
        valid_name(name)


def test_descriptions_end_at_256():
    valid_description("镜" * 256)
    with pytest.raises(ValidationError):
        valid_description("镜" * 257)


def test_generated_names_shorten_the_stem():
    """R4: what is generated follows the rule as well."""
    for stem in ("web", "x" * 32):
        name = generated_name(stem, "vda")
        valid_name(name)
        assert name.endswith("-vda")


def instance(status: InstanceStatus, medium: str = "cloud", region: str = "kvm"):
    row = InstanceFactory(status=status, region__name=region)
    Disk.objects.filter(instance=row).update(medium=medium)
    return row


@pytest.mark.django_db
@pytest.mark.parametrize("status", InstanceStatus)
@pytest.mark.parametrize("medium", ["cloud", "local"])
def test_image_by_status_and_system_disk(status, medium):
    """R2: cloud while running or stopped, local while stopped only."""
    allowed = {("running", "cloud"), ("stopped", "cloud"), ("stopped", "local")}
    refused = why_not_create_image(instance(status, medium))
    assert (refused is None) == ((str(status), medium) in allowed)
    assert refused is None or "web-1" in str(refused)


@pytest.mark.django_db
def test_a_region_that_cannot_capture_a_running_instance_says_so():
    refused = why_not_create_image(instance(InstanceStatus.RUNNING, region="plain"))
    assert "stop web-1 first" in str(refused)


@pytest.mark.django_db
@pytest.mark.parametrize("status", InstanceStatus)
def test_power_by_status(status):
    row = instance(status)
    assert (why_not_start(row) is None) == (status in ("stopped", "error"))
    assert (why_not_stop(row) is None) == (status in ("running", "paused", "error"))


@pytest.mark.django_db
def test_without_machines_neither_start_nor_stop():
    row = instance(InstanceStatus.STOPPED, region="plain")
    assert why_not_start(row).code == why_not_stop(row).code == "no-power"


@pytest.mark.django_db
def test_while_an_operation_holds_it_everything_is_refused():
    """R12: the reason names the image."""
    row = instance(InstanceStatus.STOPPED)
    OperationFactory(kind="create_image", instance=row, image=ImageFactory(name="nightly", region=row.region))
    for why in (why_not_start, why_not_stop, why_not_create_image):
        assert "nightly" in str(why(row))


@pytest.mark.django_db
@pytest.mark.parametrize(
    ("facts", "code"), [({"medium": "local"}, "local-data-disk"), ({"problem": "disk-kind"}, "disk-kind")]
)
def test_which_data_disks_cannot_be_chosen(facts, code):
    """R3."""
    refused = why_not_include(DiskFactory(**facts))
    assert refused.code == code
    assert "(" not in str(refused)


@pytest.mark.django_db
@pytest.mark.parametrize(("medium", "snapshots"), [("cloud", 3), ("local", 2)])
def test_what_an_image_needs(medium, snapshots):
    """R5: an image, and a snapshot per chosen cloud disk."""
    assert list(needed(instance(InstanceStatus.STOPPED, medium), ["d-1", "d-2"]).values()) == [1, snapshots]


@pytest.mark.django_db
@pytest.mark.parametrize("status", ImageStatus)
def test_images_by_status(status):
    """R9, R18: intermediate statuses refuse share, create instance and delete; Error may be deleted."""
    image = ImageFactory(status=status)
    assert (why_not_delete(image) is None) == (status in ("available", "error"))
    for why in (why_not_share, why_not_create_instance):
        reason = str(why(image))
        assert ("until the image is available" in reason) == (status in ("creating", "copying"))
    assert why_not_cancel(image) is not None, "nothing is being made"


@pytest.mark.django_db
@pytest.mark.parametrize("status", ImageStatus)
def test_cancel_by_status(status, alice):
    """R11: in Creating and Copying, once."""
    image = ImageFactory(status=status)
    operation = OperationFactory(kind="create_image", image=image, exclusive=True, status="running")
    assert (why_not_cancel(image) is None) == (status in ("creating", "copying"))
    operation.cancelled_by = alice
    operation.save()
    assert why_not_cancel(image) is not None

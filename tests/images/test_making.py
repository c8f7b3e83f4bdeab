"""Stories of making an image, on the folder engine with real bytes: docs/rules.md R2–R12, R18, R24."""

from __future__ import annotations

import hashlib
import shutil

import pytest
from django.db import transaction

from compute import inventory
from compute.models import Instance, Operation, Quota, Resource, Snapshot
from compute.operations import perform
from compute.refusals import Busy, NotAllowed, QuotaExceeded, Refused
from images.actions import cancel, create_image, delete_image
from images.jobs import Seal
from images.models import Image
from images.rules import uses
from tests.factories import ImageFactory
from tests.world import Folder

pytestmark = pytest.mark.usefixtures("database")


@pytest.fixture
def web(folder: Folder, alice) -> Instance:
    """web-1 of alice: cloud system disk, cloud vdb and vdc, local vdd."""
    return folder.instance("web-1", alice, vda="cloud", vdb="cloud", vdc="cloud", vdd="local")


def disk(instance: Instance, device: str) -> str:
    return instance.disks.get(device=device).pk


def make(web: Instance, alice, *devices: str) -> tuple[Image, Operation]:
    disks = [disk(web, device) for device in devices]
    image = create_image(by=alice, instance=web, name="web-1-v1", description="before", disks=disks)
    return image, image.operations.get()


def test_an_image_has_the_bytes_of_exactly_the_chosen_disks(web, alice, folder):
    """R8, R13: two files, each byte for byte the disk at the click; what was left out is named with its reason."""
    image, operation = make(web, alice, "vdb")
    assert image.status == "creating"
    perform(operation.pk)
    image.refresh_from_db()
    assert (image.status, image.consistency, image.medium) == ("available", "offline", "cloud")
    mappings = list(image.mappings.order_by("device"))
    assert [mapping.device for mapping in mappings] == ["vda", "vdb"]
    for mapping in mappings:
        content = folder.stored(mapping.snapshot.external_id).read_bytes()
        assert content == folder.disk("web-1", mapping.device).read_bytes()
        assert mapping.snapshot.sha256 == hashlib.sha256(content).hexdigest()
        assert mapping.snapshot.status == "available"
    assert [(out["device"], out["why"]["code"]) for out in image.left_out] == [
        ("vdc", "not-chosen"),
        ("vdd", "local-data-disk"),
    ]
    assert folder.store_files() == {f"{operation.pk}/vda.raw", f"{operation.pk}/vdb.raw", f"{operation.pk}/sealed.json"}


def test_a_local_system_disk_becomes_the_images_own_file(folder, alice):
    """R5, R7, R13: a local-disk image; no snapshot for the system disk."""
    db = folder.instance("db-1", alice, vda="local", vdb="cloud")
    image, operation = make(db, alice, "vdb")
    perform(operation.pk)
    image.refresh_from_db()
    system = image.mappings.get(device="vda")
    assert (image.status, image.medium, system.snapshot) == ("available", "local", None)
    assert folder.stored(system.external_id).read_bytes() == folder.disk("db-1", "vda").read_bytes()
    assert Snapshot.objects.count() == 1


def test_a_local_data_disk_cannot_be_chosen(web, alice):
    """R3, and nothing is made."""
    with pytest.raises(Refused, match="Local data disks"):
        make(web, alice, "vdd")
    assert not Image.objects.exists()
    assert not Operation.objects.exists()


def test_a_disk_of_another_instance_cannot_be_chosen(web, alice, folder):
    other = folder.instance("web-2", alice, vda="cloud", vdb="cloud")
    with pytest.raises(Refused, match="does not belong"):
        create_image(by=alice, instance=web, name="wrong", description="", disks=[disk(other, "vdb")])


def test_quota_counts_one_image_and_a_snapshot_per_chosen_cloud_disk(web, alice):
    """R5."""
    make(web, alice, "vdb")
    now = uses(alice, web.region_id)
    assert (now[Resource.IMAGES].used, now[Resource.SNAPSHOTS].used) == (1, 2)


@pytest.mark.parametrize(("limits", "code"), [({"images": 0}, "quota-images"), ({"snapshots": 1}, "quota-snapshots")])
def test_at_its_limit_it_is_refused_before_anything_is_made(web, alice, limits, code):
    """R5: the refusal gives used, needed and limit."""
    Quota.objects.create(owner=alice, region=web.region, **limits)
    with pytest.raises(QuotaExceeded) as refused:
        make(web, alice, "vdb")
    assert refused.value.code == code
    assert refused.value.data["limit"] == next(iter(limits.values()))
    assert str(refused.value.data["needed"]) in str(refused.value)
    assert not Image.objects.exists()


def test_images_in_error_count_until_they_are_gone(web, alice):
    """R5."""
    ImageFactory(owner=alice, region=web.region, status="error")
    Quota.objects.create(owner=alice, region=web.region, images=1)
    with pytest.raises(QuotaExceeded):
        make(web, alice)


def test_only_the_owner_makes_images(web, bob, dana):
    """R22."""
    for person in (bob, dana):
        with pytest.raises(NotAllowed):
            create_image(by=person, instance=web, name="mine", description="", disks=[])


def test_while_one_is_made_another_is_refused(web, alice):
    """R12: the reason names the image."""
    make(web, alice)
    with pytest.raises(Busy, match="web-1-v1"):
        make(web, alice)


def test_a_disk_that_vanished_ends_in_error_with_nothing_left(web, alice, folder):
    """R10: all snapshots of the operation are deleted; the row stays with a reason and what was observed."""
    image, operation = make(web, alice, "vdb")
    folder.disk("web-1", "vdb").unlink()
    perform(operation.pk)
    image.refresh_from_db()
    operation.refresh_from_db()
    assert (image.status, operation.status) == ("error", "failed")
    assert image.reason["code"] == "copy-failed"
    assert image.reason["observed"]["power"] == "stopped"
    assert not Snapshot.objects.exists()
    assert folder.store_files() == set()
    web.refresh_from_db()
    assert web.operation is None


def test_an_instance_that_vanished_meanwhile_is_gone_and_the_image_in_error(web, alice, folder):
    """R10, R21: also when the inventory saw it first."""
    image, operation = make(web, alice, "vdb")
    shutil.rmtree(folder.root / "instances/web-1")
    inventory.sync(folder.region)
    perform(operation.pk)
    for row in (image, operation, web):
        row.refresh_from_db()
    assert (image.status, operation.status, web.status) == ("error", "failed", "gone")
    assert image.reason["observed"]["power"] == "gone"


def test_cancel_before_anyone_began(web, alice, folder):
    """R11: without «delete the image as well» the row stays as Error and says who cancelled."""
    image, operation = make(web, alice, "vdb")
    cancel(by=alice, image=image, delete=False)
    perform(operation.pk)
    image.refresh_from_db()
    operation.refresh_from_db()
    assert (image.status, operation.status) == ("error", "cancelled")
    assert image.reason["data"]["by"] == "alice"
    assert not Snapshot.objects.exists()
    assert folder.store_files() == set()


def test_cancelled_after_the_files_were_sealed_no_row_names_one(folder, alice, monkeypatch):
    """R10: also not the mapping of a local system disk, whose file is its own."""
    db = folder.instance("db-1", alice, vda="local", vdb="cloud")
    image, operation = make(db, alice, "vdb")
    seal = Seal.do

    def cancelled_just_then(self, attempt):
        seal(self, attempt)
        cancel(by=alice, image=image, delete=False)

    monkeypatch.setattr(Seal, "do", cancelled_just_then)
    perform(operation.pk)
    image.refresh_from_db()
    assert image.status == "error"
    assert [mapping.external_id for mapping in image.mappings.all()] == ["", ""]
    assert folder.store_files() == set()


def test_cancel_and_delete(web, alice):
    """R11: ticked, the image goes once it is cleaned up."""
    image, operation = make(web, alice)
    cancel(by=alice, image=image, delete=True)
    perform(operation.pk)
    assert not Image.objects.exists()
    with pytest.raises(Image.DoesNotExist):
        image.refresh_from_db()


def test_staff_may_cancel_and_strangers_may_not(web, alice, charlie, dana):
    """R22."""
    image, operation = make(web, alice)
    with pytest.raises(NotAllowed):
        cancel(by=charlie, image=image, delete=True)
    with pytest.raises(NotAllowed):
        cancel(by=dana, image=image, delete=True)
    cancel(by=dana, image=image, delete=False)
    operation.refresh_from_db()
    assert operation.cancelled_by == dana


def test_cancel_after_the_end_is_refused(web, alice):
    image, operation = make(web, alice)
    perform(operation.pk)
    image.refresh_from_db()
    with pytest.raises(Refused, match="nothing to cancel"):
        cancel(by=alice, image=image, delete=False)


def test_delete_is_refused_while_it_is_made(web, alice):
    """R9."""
    image, _ = make(web, alice)
    with pytest.raises(Refused, match="until the image is available"):
        delete_image(by=alice, image=image, snapshots=True)


@pytest.mark.parametrize("snapshots", [True, False])
def test_delete_with_and_without_its_snapshots(web, alice, folder, snapshots):
    """R18."""
    image, operation = make(web, alice, "vdb")
    perform(operation.pk)
    delete_image(by=alice, image=image, snapshots=snapshots)
    deleting = Operation.objects.get(kind="delete_image")
    perform(deleting.pk)
    deleting.refresh_from_db()
    assert deleting.status == "done"
    assert not Image.objects.exists()
    assert Snapshot.objects.count() == (0 if snapshots else 2)
    assert folder.store_files() == (
        set() if snapshots else {f"{operation.pk}/{name}" for name in ("vda.raw", "vdb.raw", "sealed.json")}
    )


def test_an_image_in_error_can_be_deleted(web, alice, folder):
    image, operation = make(web, alice)
    folder.disk("web-1", "vda").unlink()
    perform(operation.pk)
    delete_image(by=alice, image=image, snapshots=True)
    perform(Operation.objects.get(kind="delete_image").pk)
    assert not Image.objects.exists()


def test_another_image_works_at_once_after_a_failure(web, alice, folder):
    """R24: the slate is clean."""
    path = folder.disk("web-1", "vdb")
    content = path.read_bytes()
    path.unlink()
    _, operation = make(web, alice, "vdb")
    perform(operation.pk)
    path.write_bytes(content)
    inventory.sync(web.region_id)
    _, again = make(web, alice, "vdb")
    perform(again.pk)
    again.refresh_from_db()
    assert again.status == "done"


def test_nothing_is_written_when_the_transaction_fails(web, alice):
    """The rows of one click stand or fall together."""
    with transaction.atomic():
        make(web, alice)
        transaction.set_rollback(True)
    assert not Image.objects.exists()
    assert not Snapshot.objects.exists()
    assert not Operation.objects.exists()

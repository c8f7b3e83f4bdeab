"""What cannot fit into the image store is refused before it begins, with the numbers (docs/rules.md R10, R24)."""

from __future__ import annotations

import copy

import pytest
from django.conf import settings as configured
from django.urls import reverse

from compute import inventory
from compute.models import Operation, Region
from compute.operations import perform
from compute.refusals import Refused
from compute.space import reserve_of, why_not_fit
from images.actions import create_image
from images.models import Image
from tests.factories import GIB, OperationFactory
from tests.world import MIB

pytestmark = pytest.mark.django_db(transaction=True)
REGION = "folder-1"


@pytest.fixture
def web(folder, alice):
    """Two disks of 2 MiB, half of each a hole."""
    return folder.instance("web-1", alice, vda="cloud", vdb="cloud")


@pytest.fixture
def reserve(settings):
    """``reserve(n)``: so many bytes stay free."""

    def set_to(count: int) -> None:
        engines = copy.deepcopy(configured.ENGINES)
        engines[REGION]["RESERVE"] = count
        settings.ENGINES = engines

    return set_to


def seen(free: int, total: int = 100 * GIB) -> None:
    Region.objects.filter(pk=REGION).update(free_bytes=free, total_bytes=total)


def make(web, alice, *devices: str) -> Image:
    disks = [web.disks.get(device=device).pk for device in devices]
    return create_image(by=alice, instance=web, name="web-1-v1", description="", disks=disks)


def test_at_the_click_it_is_refused_with_the_numbers_and_nothing_is_made(web, alice, reserve):
    reserve(MIB)
    seen(2 * MIB)
    with pytest.raises(Refused) as refused:
        make(web, alice, "vdb")
    assert str(refused.value) == (
        "It does not fit into the image store, so nothing was copied: it takes up to 2 MB, and of the 2 MB that are "
        "free others still have to write 0 B and 1 MB stay in reserve. Choose fewer disks or delete images, then try "
        "again."
    )
    assert not Image.objects.exists()
    assert not Operation.objects.exists()
    make(web, alice)  # the system disk alone fits exactly


def test_what_live_operations_still_have_to_write_is_not_free(web, alice, folder, reserve):
    reserve(MIB)
    other = folder.instance("db-1", alice, vda="cloud", vdb="cloud")
    seen(3 * MIB)
    making = make(web, alice).operations.get()
    with pytest.raises(Refused, match="others still have to write 1 MB"):
        make(other, alice, "vdb")
    perform(making.pk)
    make(other, alice, "vdb")


@pytest.mark.parametrize(
    ("status", "progress", "left"),
    [
        ("queued", {}, 60),
        ("running", {"phase": "copy", "parts": {"vda": [0, 100]}}, 60),
        ("running", {"phase": "copy", "parts": {"vda": [40, 100]}}, 60),  # the hole may have come first
        ("running", {"phase": "copy", "parts": {"vda": [90, 100]}}, 10),
        ("running", {"phase": "copy", "parts": {"vda": None}}, 60),
        ("running", {"phase": "check", "parts": {"vda": [5, 0]}}, 0),
        ("undoing", {"phase": "copy", "parts": {"vda": [40, 100]}}, 0),
        ("done", {}, 0),
    ],
)
def test_bytes_still_to_write_are_never_told_too_few(alice, status, progress, left):
    choices = {"parts": {"vda": {"disk": "x", "size": 100, "bytes": 60}}}
    assert OperationFactory(status=status, progress=progress, choices=choices).still_to_write == left


def test_the_operation_asks_again_before_its_first_byte(web, alice, folder, reserve):
    """The store filled up since: Error, with the numbers; nothing was made, and the instance was not touched."""
    image = make(web, alice)
    operation = image.operations.get()
    reserve(1 << 60)
    perform(operation.pk)
    image.refresh_from_db()
    operation.refresh_from_db()
    assert (operation.status, operation.step, image.status) == ("failed", "room", "error")
    assert operation.why.startswith("It does not fit into the image store, so nothing was copied: it takes up to 1 MB")
    assert image.reason["observed"]["power"] == "stopped"
    assert folder.store_files() == set()


def test_of_two_that_do_not_fit_together_the_older_is_made(web, alice, folder, reserve):
    """Whichever begins first."""
    older, younger = make(web, alice), make(folder.instance("db-1", alice, vda="cloud"), alice)
    total = 100 * MIB
    reserve(0)
    for image, fits in ((younger, False), (older, True)):
        operation = image.operations.get()
        why = why_not_fit(REGION, operation.still_to_write, (2 * MIB - 1, total), operation=operation)
        assert (why is None) is fits
    Operation.objects.filter(image=younger).update(progress={"phase": "copy", "parts": {"vda": [0, 2 * MIB]}})
    operation = older.operations.get()
    assert why_not_fit(REGION, operation.still_to_write, (2 * MIB - 1, total), operation=operation), "it writes already"


@pytest.mark.parametrize(("total", "reserve"), [(1000 * GIB, GIB), (10 * GIB, GIB // 2), (100 * MIB, 5 * MIB)])
def test_a_small_store_keeps_a_twentieth_and_a_large_one_a_gigabyte(total, reserve):
    assert reserve_of(REGION, total) == reserve


def test_free_space_that_nobody_knows_refuses_nothing(web, alice):
    Region.objects.update(free_bytes=None, total_bytes=None)
    assert make(web, alice).status == "creating"


@pytest.mark.parametrize(
    ("language", "told"), [("en", "does not fit into the image store"), ("zh-hans", "镜像存储放不下")]
)
def test_the_dialog_tells_before_the_click_and_refuses_at_it(client, web, alice, reserve, language, told):
    reserve(MIB)
    seen(2 * MIB)
    client.force_login(alice)
    client.cookies["django_language"] = language
    address = reverse("image-create", args=[REGION, web.pk])
    assert client.get(address).content.decode().count(told) == 1, "beside the bytes, for the boxes as they are"
    takes = reverse("image-create-takes", args=[REGION, web.pk])
    assert told not in client.get(takes).content.decode(), "without the data disk it fits"
    answer = client.post(address, {"name": "web-1-v1", "disks": [web.disks.get(device="vdb").pk]})
    assert answer.status_code == 422
    assert answer.content.decode().count(told) == 2, "and at the top"
    assert not Image.objects.exists()


def test_the_keeper_sees_what_is_free(web, folder):
    inventory.sync(REGION)
    free, total = folder.engine.space()
    row = Region.objects.get(pk=REGION)
    assert row.total_bytes == total
    assert abs(row.free_bytes - free) < GIB

"""A line per transition, with the operation it belongs to: docs/operating.md, Logs."""

from __future__ import annotations

import io
import logging
import re
from collections.abc import Callable, Iterator

import pytest
from django.db import transaction
from django.utils import timezone

from compute import operations
from compute.actions import start
from compute.models import Operation
from compute.operations import give_up, perform, undo_again
from images.actions import cancel, create_image, delete_image
from tests.factories import InstanceFactory, RegionFactory

pytestmark = pytest.mark.django_db(transaction=True)

Arrows = Callable[[], list[tuple[str, str, str]]]
LINE = re.compile(r"^\S+ \S+ (?:INFO|WARNING|ERROR) \S+ \[(\S+)\] (\S+ \S+): (\S+ → \S+)")


@pytest.fixture
def arrows() -> Iterator[Arrows]:
    """What the console's own log handler wrote of transitions: operation, row, arrow."""
    handler = next(one for one in logging.getLogger().handlers if one.name == "stderr")
    assert isinstance(handler, logging.StreamHandler)
    written = io.StringIO()
    before = handler.setStream(written)

    def read() -> list[tuple[str, str, str]]:
        told = written.getvalue().splitlines()
        written.truncate(written.seek(0))
        return [match.group(1, 2, 3) for line in told if (match := LINE.match(line))]

    yield read
    handler.setStream(before)


@pytest.fixture
def web(folder, alice):
    return folder.instance("web-1", alice, vda="cloud", vdb="cloud")


def make(web, alice):
    image = create_image(by=alice, instance=web, name="web-1-v1", description="", disks=[])
    return image, image.operations.get(), image.mappings.get().snapshot


def test_from_click_to_available(web, alice, arrows):
    image, operation, snapshot = make(web, alice)
    of = {"op": f"operation {operation.pk}", "img": f"image {image.pk}", "snap": f"snapshot {snapshot.pk}"}
    assert arrows() == [
        (operation.pk, of["op"], "new → queued"),
        (operation.pk, of["img"], "new → creating"),
        (operation.pk, of["snap"], "new → creating"),
    ]
    perform(operation.pk)
    assert arrows() == [
        (operation.pk, of["op"], "queued → running"),
        (operation.pk, of["img"], "creating → copying"),
        (operation.pk, of["snap"], "creating → available"),
        (operation.pk, of["img"], "copying → available"),
        (operation.pk, of["op"], "running → done"),
    ]
    delete_image(by=alice, image=image, snapshots=True)
    deleting = Operation.objects.get(kind="delete_image")
    perform(deleting.pk)
    assert arrows() == [
        (deleting.pk, f"operation {deleting.pk}", "new → queued"),
        (deleting.pk, of["img"], "available → deleting"),
        (deleting.pk, of["snap"], "available → deleting"),
        (deleting.pk, f"operation {deleting.pk}", "queued → running"),
        (deleting.pk, of["snap"], "deleting → deleted"),
        (deleting.pk, of["img"], "deleting → deleted"),
        (deleting.pk, f"operation {deleting.pk}", "running → done"),
    ]


def test_one_that_fails(web, alice, folder, arrows):
    image, operation, snapshot = make(web, alice)
    folder.disk("web-1", "vda").unlink()
    arrows()
    perform(operation.pk)
    told = arrows()
    assert {whose for whose, _, _ in told} == {operation.pk}
    assert [line[1:] for line in told] == [
        (f"operation {operation.pk}", "queued → running"),
        (f"image {image.pk}", "creating → copying"),
        (f"image {image.pk}", "copying → error"),
        (f"operation {operation.pk}", "running → undoing"),
        (f"snapshot {snapshot.pk}", "creating → deleted"),
        (f"operation {operation.pk}", "undoing → failed"),
    ]


def test_one_that_is_cancelled_with_its_image(web, alice, arrows):
    image, operation, snapshot = make(web, alice)
    cancel(by=alice, image=image, delete=True)
    arrows()
    perform(operation.pk)
    assert [line[1:] for line in arrows()] == [
        (f"operation {operation.pk}", "queued → running"),
        (f"image {image.pk}", "creating → error"),
        (f"operation {operation.pk}", "running → undoing"),
        (f"snapshot {snapshot.pk}", "creating → deleted"),
        (f"image {image.pk}", "error → deleted"),
        (f"operation {operation.pk}", "undoing → cancelled"),
    ]


def test_one_that_is_given_up_with_its_region(web, alice, arrows):
    image, operation, snapshot = make(web, alice)
    arrows()
    assert give_up(operation)
    assert arrows() == [
        (operation.pk, f"image {image.pk}", "creating → error"),
        (operation.pk, f"snapshot {snapshot.pk}", "creating → deleted"),
        (operation.pk, f"instance {web.pk}", "stopped → error"),
        (operation.pk, f"operation {operation.pk}", "queued → failed"),
    ]


def test_one_that_is_undone_again(web, alice, arrows):
    image, operation, snapshot = make(web, alice)
    Operation.objects.filter(pk=operation.pk).update(status="failed", ended_at=timezone.now())
    arrows()
    assert undo_again(operation)
    perform(operation.pk)
    assert arrows() == [
        (operation.pk, f"image {image.pk}", "creating → error"),
        (operation.pk, f"operation {operation.pk}", "failed → undoing"),
        (operation.pk, f"snapshot {snapshot.pk}", "creating → deleted"),
        (operation.pk, f"operation {operation.pk}", "undoing → failed"),
    ]


def test_an_instance_that_is_started(alice, arrows, monkeypatch):
    monkeypatch.setattr("compute.actions.why_not_start", lambda row: None)  # plain folders have no power
    row = InstanceFactory(owner=alice)
    operation = start(by=alice, instance=row)
    assert (operation.pk, f"instance {row.pk}", "stopped → starting") in arrows()


def test_what_was_rolled_back_is_not_told(alice, arrows):
    with transaction.atomic():
        operations.submit("start", region=RegionFactory(), subject="web-1")
        transaction.set_rollback(True)
    assert arrows() == []

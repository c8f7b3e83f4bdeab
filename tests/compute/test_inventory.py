"""What the engine shows becomes rows (docs/rules.md R21, R23)."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import timedelta

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext

from compute import inventory
from compute.engines.base import InstanceFacts, Power
from compute.models import Disk, Instance, Region
from compute.states import InstanceStatus
from tests.factories import InstanceFactory, OperationFactory

pytestmark = pytest.mark.django_db


def test_an_unknown_instance_becomes_a_row_without_an_owner(folder, alice):
    row = folder.instance("web-1", None, vda="cloud", vdb="local")
    assert (row.owner, row.name, row.status) == (None, "web-1", "stopped")
    assert [(disk.device, disk.medium, disk.size_bytes) for disk in row.disks.order_by("device")] == [
        ("vda", "cloud", 2 << 20),
        ("vdb", "local", 2 << 20),
    ]
    assert not Instance.objects.visible_to(alice).exists()


def test_looking_again_changes_nothing_that_people_said(folder, alice):
    row = folder.instance("web-1", alice, vda="cloud")
    Instance.objects.filter(pk=row.pk).update(name="renamed")
    inventory.sync(folder.region)
    row.refresh_from_db()
    assert (row.name, row.owner, Instance.objects.count(), Disk.objects.count()) == ("renamed", alice, 1, 1)


def test_what_vanished_is_gone_and_what_comes_back_is_recognised(folder, alice):
    row = folder.instance("web-1", alice, vda="cloud")
    description = folder.root / "instances/web-1/instance.json"
    away = description.rename(description.with_suffix(".away"))
    inventory.sync(folder.region)
    row.refresh_from_db()
    assert row.status == "gone"
    away.rename(description)
    inventory.sync(folder.region)
    row.refresh_from_db()
    assert (row.status, row.owner) == ("stopped", alice)


def test_a_disk_that_was_detached_is_attached_to_nothing(folder, alice):
    row = folder.instance("web-1", alice, vda="cloud", vdb="cloud")
    description = folder.root / "instances/web-1/instance.json"
    about = json.loads(description.read_text())
    about["disks"] = [disk for disk in about["disks"] if disk["device"] == "vda"]
    description.write_text(json.dumps(about))
    inventory.sync(folder.region)
    assert [disk.device for disk in row.disks.all()] == ["vda"]
    assert Disk.objects.get(instance=None).status == "available"


def test_the_region_says_when_it_was_seen_and_what_is_free(folder):
    inventory.sync(folder.region)
    region = Region.objects.get()
    assert region.seen_at is not None
    assert 0 < region.free_bytes <= region.total_bytes


def test_what_cannot_be_written_of_one_does_not_hide_the_others(folder, alice, caplog):
    """A guest says what it likes of itself."""
    bad = folder.instance("aaa", alice, vda="cloud")
    good = folder.instance("web-1", alice, vda="cloud")
    Instance.objects.update(vcpus=7)
    description = folder.root / "instances/aaa/instance.json"
    description.write_text(description.read_text().replace('"os": ""', '"os": "\\ud800"'))
    inventory.sync(folder.region)
    bad.refresh_from_db()
    good.refresh_from_db()
    assert (bad.vcpus, good.vcpus) == (7, 1)
    assert "aaa could not be written" in caplog.text


def test_a_disk_that_two_instances_name_stays_with_the_first(folder, alice):
    """Its row must not wander between them, or nothing would protect it (R12)."""
    first = folder.instance("web-1", alice, vda="cloud", vdb="cloud")
    region = Region.objects.get()
    seen = folder.engine.inventory()
    twin = replace(seen.instances[0], id="web-2", name="web-2")
    for _ in range(2):
        inventory._record(region, replace(seen, instances=(*seen.instances, twin)), inventory.timezone.now())
        assert first.disks.count() == 2


def test_looking_costs_no_more_for_many_that_did_not_change(folder, alice):
    for number in range(5):
        folder.instance(f"web-{number}", alice, vda="cloud", vdb="cloud")
    with CaptureQueriesContext(connection) as queries:
        inventory.sync(folder.region)
    writes = [query["sql"] for query in queries if query["sql"].startswith(("UPDATE", "INSERT"))]
    assert len(writes) == 2, "the region, and when all of them were seen"


def facts(power: Power) -> InstanceFacts:
    return InstanceFacts("x", "web-1", power, 1, 256, ())


@pytest.mark.parametrize("status", [status for status in InstanceStatus if not status.settled])
def test_passing_statuses_belong_to_their_operation(folder, status):
    row = InstanceFactory(status=status)
    inventory.show(row, facts(Power.RUNNING), row.created_at)
    row.refresh_from_db()
    assert row.status == status


def test_an_old_look_does_not_overrule_an_operation_that_ended_since(folder):
    row = InstanceFactory(status=InstanceStatus.STOPPED)
    before = row.created_at
    OperationFactory(instance=row, status="done", ended_at=inventory.timezone.now())
    inventory.show(row, facts(Power.RUNNING), before)
    row.refresh_from_db()
    assert row.status == "stopped"
    inventory.show(row, facts(Power.RUNNING), inventory.timezone.now())
    row.refresh_from_db()
    assert row.status == "running"


def test_after_the_clock_has_stepped_back_looks_still_count(folder, alice):
    """R24: what ended, or was made, in what is now the future must not hide an hour of what is to be seen."""
    row = folder.instance("web-1", alice, vda="cloud")
    hence = inventory.timezone.now() + timedelta(hours=1)
    OperationFactory(instance=row, status="done", ended_at=hence)
    Instance.objects.update(created_at=hence)
    inventory.show(row, facts(Power.RUNNING), inventory.timezone.now())
    row.refresh_from_db()
    assert row.status == "running"
    (folder.root / "instances/web-1/instance.json").unlink()
    inventory.sync(folder.region)
    row.refresh_from_db()
    assert row.status == "gone"


def test_what_could_not_be_observed_after_an_operation_is_an_error(folder):
    row = InstanceFactory(status=InstanceStatus.RUNNING)
    inventory.settle(row, None, {"code": "did-not-stop", "data": {"seconds": 3}})
    row.refresh_from_db()
    assert (row.status, row.reason["code"]) == ("error", "did-not-stop")

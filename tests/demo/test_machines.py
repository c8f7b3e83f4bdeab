"""The demo on a real libvirtd: its machines run, go off with the console, and come back with it."""

from __future__ import annotations

import shutil
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from django.conf import LazySettings

from compute.engines.base import Power
from compute.engines.libvirt import LibvirtEngine
from compute.engines.libvirt.domain import DiskSource, domain_xml
from compute.inventory import sync
from compute.models import Instance
from console.demo import machines, story
from console.libvirtd import PrivateLibvirtd

pytestmark = pytest.mark.qemu

SECONDS = 120


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)


@pytest.fixture(scope="module")
def libvirtd() -> Iterator[PrivateLibvirtd]:
    # Not pytest's directory: its path is too long for sockets.
    root = Path(tempfile.mkdtemp(prefix="sf-", dir="/tmp"))
    daemon = PrivateLibvirtd(root)
    daemon.start()
    try:
        daemon.wait_ready()
        yield daemon
    finally:
        daemon.stop()
        shutil.rmtree(root)


@pytest.fixture
def options(libvirtd: PrivateLibvirtd, tmp_path: Path) -> Iterator[dict[str, Any]]:
    """Of a region without machines, whose disks lie in the test's directory."""
    places = {name: tmp_path / name.lower() for name in ("DISKS", "STORE", "LOCAL_POOLS")}
    for place in places.values():
        place.mkdir()
    pools = [str(places["LOCAL_POOLS"])]
    yield {"URI": libvirtd.uri, "DISKS": str(places["DISKS"]), "STORE": str(places["STORE"]), "LOCAL_POOLS": pools}
    import libvirt

    connection = libvirt.open(libvirtd.uri)
    for domain in connection.listAllDomains():
        if domain.isActive():
            domain.destroy()
        domain.undefine()
    connection.close()


def power(options: dict[str, Any]) -> dict[str, Power]:
    return {facts.name: facts.power for facts in LibvirtEngine("test", options).inventory().instances}


def deaf(options: dict[str, Any], name: str, memory_mib: int = 32) -> None:
    """A running machine with an empty disk: no system is there to notice the power button."""
    disk = Path(options["DISKS"]) / f"{name}.raw"
    disk.write_bytes(bytes(1 << 20))
    disks = [DiskSource("vda", disk, "raw")]
    machines.define(options, name, uuid=_uuid(name), memory_mib=memory_mib, disks=disks, running=True)


def _uuid(name: str) -> str:
    return str(uuid.uuid5(uuid.NAMESPACE_URL, name))


@pytest.mark.django_db
def test_demo_runs_goes_off_and_comes_back(
    options: dict[str, Any],
    guest_cache: Path,
    tmp_path: Path,
    settings: LazySettings,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # A name of its own: engines are kept by the name of their region.
    region = f"demo-{tmp_path.name}"
    settings.ENGINES = {region: {"BACKEND": "compute.engines.libvirt.LibvirtEngine", "OPTIONS": options}}
    settings.DATA = guest_cache.parent
    small = [replace(plan, disks=tuple(replace(disk, data_mib=10) for disk in plan.disks)) for plan in story.PLANS]
    monkeypatch.setattr(story, "PLANS", small)

    def shown() -> dict[str, tuple[str, str, list[tuple[str, str]]]]:
        sync(region)
        return {
            row.name: (
                row.owner.get_username(),
                row.status,
                [(disk.name, disk.medium) for disk in row.disks.order_by("device")],
            )
            for row in Instance.objects.filter(region=region)
        }

    story.tell(lambda said: None)
    web = [("web-1-system", "cloud"), ("web-1-data", "cloud"), ("web-1-logs", "cloud")]
    db = [("db-1-system", "local"), ("db-1-scratch", "local"), ("db-1-tables", "cloud")]
    cache = [("cache-1-system", "cloud")]
    running = {
        "web-1": ("alice", "running", web),
        "db-1": ("alice", "stopped", db),
        "cache-1": ("bob", "running", cache),
    }
    assert shown() == running

    console = Path(options["DISKS"]) / "web-1.console.log"
    until(lambda: console.exists() and "ready" in console.read_text(errors="replace"))
    said = console.read_text(errors="replace")
    assert "mounted /dev/vdb on /srv/data (ext4)" in said
    assert "mounted /dev/vdc on /srv/logs (ext4)" in said
    assert "counting on /srv/counter /srv/data/counter /srv/logs/counter" in said

    assert machines.power_off(options, SECONDS) == ["stillframe-cache-1", "stillframe-web-1"]
    assert "Power down" in console.read_text(errors="replace")
    off = {name: (owner, "stopped", disks) for name, (owner, _, disks) in running.items()}
    assert shown() == off
    # The demo itself starts nothing that it has made before.
    story.tell(lambda said: None)
    assert shown() == off
    machines.power_on(options)
    assert shown() == running
    # Asked while they still boot, they go off all the same, and not by force.
    machines.power_off(options, SECONDS)
    assert console.read_text(errors="replace").count("Power down") == 2


def test_machine_that_does_not_notice_is_forced_off_in_time(options: dict[str, Any]) -> None:
    deaf(options, "deaf")
    began = time.monotonic()
    assert machines.power_off(options, 1) == ["stillframe-deaf"]
    assert 1 <= time.monotonic() - began < 15
    assert power(options) == {"stillframe-deaf": Power.STOPPED}


def test_what_ran_is_remembered_over_an_interrupted_power_off(options: dict[str, Any]) -> None:
    for name in ("first", "second"):
        deaf(options, name)
    machines.power_off(options, 0)
    # As after a crash between the two: only one of them ran when it was asked again.
    deaf(options, "first")
    assert machines.power_off(options, 0) == ["stillframe-first"]
    machines.power_on(options)
    assert power(options) == {"stillframe-first": Power.RUNNING, "stillframe-second": Power.RUNNING}


def test_power_on_starts_nothing_that_did_not_run(options: dict[str, Any]) -> None:
    deaf(options, "quiet")
    machines.power_off(options, 0)
    machines.power_on(options)
    # Stopped while the console ran: what ran before is of the past.
    import libvirt

    connection = libvirt.open(options["URI"])
    connection.lookupByName("stillframe-quiet").destroy()
    connection.close()
    machines.power_on(options)
    assert power(options) == {"stillframe-quiet": Power.STOPPED}


def test_one_that_does_not_start_holds_up_nobody(options: dict[str, Any]) -> None:
    for name in ("broken", "whole"):
        deaf(options, name)
    machines.power_off(options, 0)
    (Path(options["DISKS"]) / "broken.raw").unlink()
    machines.power_on(options)
    assert power(options) == {"stillframe-broken": Power.STOPPED, "stillframe-whole": Power.RUNNING}


def test_other_machines_of_the_host_are_left_alone(options: dict[str, Any], tmp_path: Path) -> None:
    import libvirt

    connection = libvirt.open(options["URI"])
    xml = domain_xml(
        name="other", uuid=_uuid("other"), memory_mib=32, vcpus=1, disks=[], console_log=tmp_path / "other.log"
    )
    connection.defineXML(xml).create()
    connection.close()
    assert machines.power_off(options, 0) == []
    assert power(options) == {"other": Power.RUNNING}


def test_existing_definition_is_left_as_it_is(options: dict[str, Any]) -> None:
    deaf(options, "mine", memory_mib=32)
    deaf(options, "mine", memory_mib=64)
    machines_shown = LibvirtEngine("test", options).inventory().instances
    assert [facts.memory_mib for facts in machines_shown] == [32]

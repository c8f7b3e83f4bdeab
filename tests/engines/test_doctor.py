"""What is left among machines is told and removed (R24): jobs, stand-ins, a guest that is still frozen."""

from __future__ import annotations

import shutil
from datetime import timedelta

import pytest
from django.utils import timezone

from compute import inventory
from compute.engines.base import WorkState
from compute.models import Instance, Operation
from images import doctor
from images.doctor import examine
from tests.engines.worlds import Guest, LibvirtWorld
from tests.factories import OperationFactory

pytestmark = [pytest.mark.qemu, pytest.mark.django_db(transaction=True)]


@pytest.fixture(autouse=True)
def _at_once(monkeypatch):
    monkeypatch.setattr(doctor, "BETWEEN_LOOKS", 0)


@pytest.fixture
def known(settings, tmp_path):
    """Makes a world the console's one region; its name."""

    def known(world: LibvirtWorld) -> str:
        name = f"kvm-{tmp_path.name[-20:]}"  # an engine is made once per name
        entry = {"BACKEND": "compute.engines.libvirt.LibvirtEngine", "OPTIONS": world.options(), "LONG_LIMIT": 2}
        settings.ENGINES = {name: entry}
        inventory.sync(name)
        return name

    return known


def over(region: str, instance: str, *devices: str) -> Operation:
    """A making of an image that has ended."""
    row = Instance.objects.get(external_id=instance)
    parts = {device: {} for device in devices}
    return OperationFactory(
        kind="create_image", status="failed", region_id=region, instance=row, choices={"parts": parts}
    )


def told() -> list[str]:
    return [str(finding) for finding in examine()]


def repaired() -> None:
    for finding in examine():
        assert finding.remedy
        finding.remedy()
    assert told() == []


def test_a_job_that_nobody_watches_is_ended_and_the_guest_goes_on(guest: Guest, known) -> None:
    region = known(guest.world)
    operation = over(region, guest.id, "vdb", "vdc")
    guest.world.engine().make_room(operation.pk)
    handle, _ = guest.world.begin_slowly(operation.pk, guest.id, guest.world.parts(guest.id, "vdb", "vdc"))

    assert told() == [
        f"{operation.pk}.creating lies in the image store of {region}, left behind by {operation.pk}, which is over.",
        f"counts in {region} still copies disks for {operation.pk}, which is over.",
    ]
    repaired()

    assert guest.world.left() == []
    assert guest.world.engine().look(handle).state is WorkState.LOST
    guest.counts()


@pytest.mark.parametrize("with_room", [True, False])
def test_a_stand_in_that_was_left_is_destroyed(libvirt_world: LibvirtWorld, known, with_room) -> None:
    web = libvirt_world.instance("web-1", "vda", mib=libvirt_world.long_mib)
    region = known(libvirt_world)
    operation = over(region, web, "vda")
    libvirt_world.engine().make_room(operation.pk)
    libvirt_world.begin_slowly(operation.pk, web, libvirt_world.parts(web, "vda"))
    if not with_room:
        shutil.rmtree(libvirt_world.store / f"{operation.pk}.creating")
    (stand_in,) = (name for name in libvirt_world.names() if name.startswith("stillframe-"))

    assert told()[-1] == f"{stand_in} in {region} still copies disks for {operation.pk}, which is over."
    repaired()

    assert libvirt_world.left() == []
    assert not any(name.startswith("stillframe-") for name in libvirt_world.names())
    libvirt_world.engine().start(web)


def test_a_stand_in_of_nobody_is_left_alone(libvirt_world: LibvirtWorld, known) -> None:
    web = libvirt_world.instance("web-1", "vda", mib=libvirt_world.long_mib)
    region = known(libvirt_world)
    libvirt_world.engine().make_room("op-unheard")
    libvirt_world.begin_slowly("op-unheard", web, libvirt_world.parts(web, "vda"))

    findings = examine()

    assert [finding.remedy for finding in findings] == [None] * 3
    assert str(findings[0]).startswith(f"op-unheard.creating lies in the image store of {region}, and no row says")
    assert "writes into the image store, and no row says what for" in str(findings[-1])


def test_a_guest_that_is_still_frozen_is_thawed(guest: Guest, known) -> None:
    known(guest.world)
    Instance.objects.filter(external_id=guest.id).update(thaw_owed=timezone.now() - timedelta(minutes=1))
    with guest.world.connected() as conn:
        assert conn.lookupByUUIDString(guest.id).fsFreeze() > 0

    assert told() == ["counts was to be frozen, and has not answered since that it is thawed."]
    repaired()

    with guest.world.connected() as conn:
        assert conn.lookupByUUIDString(guest.id).fsThaw() == 0, "nothing was frozen any more"


def test_a_region_is_proved_by_a_copy_that_qemu_makes(libvirt_world: LibvirtWorld, known) -> None:
    region = known(libvirt_world)
    assert told() == []
    assert libvirt_world.left() == []
    assert not any(name.startswith("stillframe-") for name in libvirt_world.names())

    libvirt_world.libvirtd.stop(kill=True)
    try:
        (sentence,) = told()
    finally:
        libvirt_world.libvirtd.start()
        libvirt_world.libvirtd.wait_ready()
    assert sentence.startswith(f"{region} does not answer (")
    assert told() == []

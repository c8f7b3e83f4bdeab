"""Reading and writing domain XML, which needs no libvirt."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from compute.engines.libvirt import domain

MACHINE = """<domain><name>n</name><uuid>u</uuid><memory unit="KiB">131072</memory><vcpu>2</vcpu>
<devices>{}</devices></domain>"""


def file_disk(more: str = "", *, device: str = "disk", format: str = "qcow2", running: bool = False) -> str:
    index = 'index="1"' if running else ""
    return f"""<disk type="file" device="{device}"><driver name="qemu" type="{format}"/>
    <source file="/pool/a.qcow2" {index}/><target dev="vda" bus="virtio"/>{more}</disk>"""


def read(*disks: str) -> domain.DomainFacts:
    return domain.read(MACHINE.format("".join(disks)))


PROBLEMS = [
    (file_disk(), ""),
    (file_disk("<shareable/>"), "disk-shared"),
    (file_disk("<readonly/>"), "disk-readonly"),
    (file_disk("<transient/>"), "disk-kind"),
    (file_disk(device="lun"), "disk-kind"),
    (file_disk('<encryption format="luks"/>'), "disk-encrypted"),
    (file_disk(format="vmdk"), "disk-format"),
    ('<disk type="block"><source dev="/dev/sdx"/><target dev="vda"/></disk>', "disk-kind"),
    ('<disk type="network"><source protocol="rbd" name="p/v"/><target dev="vda"/></disk>', "disk-kind"),
]


@pytest.mark.parametrize(("xml", "problem"), PROBLEMS)
def test_why_a_disk_cannot_be_captured_is_told_by_its_declaration(xml: str, problem: str) -> None:
    (disk,) = read(xml).disks
    assert disk.problem == problem
    assert disk.encrypted is (problem == "disk-encrypted")


def test_a_disk_keeps_its_id_whether_its_machine_runs_or_not() -> None:
    running, stopped = read(file_disk(running=True)), read(file_disk())
    assert running.disks == stopped.disks
    assert running.disks[0].source == "/pool/a.qcow2"


def test_a_format_that_is_not_declared_is_raw_and_never_guessed() -> None:
    (disk,) = read("<disk type='file'><source file='/a'/><target dev='vda'/></disk>").disks
    assert disk.format == "raw"


def test_disks_come_in_device_order_and_drives_are_none() -> None:
    devices = ["vdb", "vdaa", "vda"]
    xml = "".join(f"<disk type='file'><source file='/{name}'/><target dev='{name}'/></disk>" for name in devices)
    facts = read(xml + "<disk type='file' device='cdrom'><target dev='hdc'/></disk>")
    assert [disk.device for disk in facts.disks] == ["vda", "vdb", "vdaa"]
    assert facts.other_drives == ("hdc",)
    assert facts.memory_mib == 128
    assert facts.vcpus == 2


def test_every_drive_is_named_in_a_backup_so_that_none_is_copied_by_default() -> None:
    xml = "".join(f"<disk type='file'><source file='/{name}'/><target dev='{name}'/></disk>" for name in ("vda", "vdb"))
    facts = read(xml + "<disk type='file' device='cdrom'><target dev='hdc'/></disk>")
    backup = domain.backup_xml(facts, {"vdb": Path("/store/a<b&'.qcow2")})
    assert backup.count("backup=") == 3
    assert backup.count('backup="yes"') == 1
    assert domain.backup_targets(backup) == {"vdb": Path("/store/a<b&'.qcow2")}


def test_a_stand_in_is_known_by_its_mark_and_holds_its_disks_read_only() -> None:
    mark = domain.StandIn("/store", "k")
    sources = [domain.DiskSource("vda", "/a", "qcow2"), domain.DiskSource("vdc", "/c", "raw")]
    facts = domain.read(domain.stand_in_xml(mark, sources))
    assert facts.stand_in == mark
    assert facts.uuid == domain.stand_in_uuid(mark)
    assert facts.uuid != domain.stand_in_uuid(domain.StandIn("/store", "other"))
    assert [disk.problem for disk in facts.disks] == ["disk-readonly", "disk-readonly"]


def test_a_devices_letter_is_its_place_on_the_bus() -> None:
    sources = [domain.DiskSource(device, "/x", "raw") for device in ("vdc", "vda", "vdw")]
    xml = domain.domain_xml(name="n", uuid="u", memory_mib=1, vcpus=1, disks=sources, console_log="/log")
    assert [f'slot="{slot}"' in xml for slot in ("0x08", "0x09", "0x0a", "0x1e")] == [True, False, True, True]


def test_what_a_region_can_do_is_known_without_the_libvirt_binding() -> None:
    """The web reads it, and need not have the binding at all."""
    code = "import sys; from compute.engines.libvirt import LibvirtEngine as E; assert E.abilities.one_instant"
    subprocess.run((sys.executable, "-c", f"{code}; assert 'libvirt' not in sys.modules"), check=True)

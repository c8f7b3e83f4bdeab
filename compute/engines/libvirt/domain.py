"""Domain XML: what we write, and what we read from it. Written by an XML library only, never by pasting strings."""

from __future__ import annotations

import string
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from os import fspath
from pathlib import Path
from xml.etree import ElementTree
from xml.etree.ElementTree import Element, SubElement

NAMESPACE = "urn:stillframe:capture:1"
AGENT_CHANNEL = "org.qemu.guest_agent.0"
# The letters of R16: one PCI slot each, and all of them fit on the one bus of an i440FX machine.
DEVICES = tuple(f"vd{letter}" for letter in string.ascii_lowercase[:23])
FIRST_SLOT = 0x08

ElementTree.register_namespace("stillframe", NAMESPACE)


@dataclass(frozen=True)
class DiskSource:
    """One disk for a new domain: ``device`` "vda" … "vdw", ``serial`` its name inside the guest (≤ 20 characters)."""

    device: str
    path: str | Path
    format: str
    serial: str = ""


@dataclass(frozen=True)
class DomainDisk:
    """One disk of an existing domain, as declared. ``source`` identifies it; ``path`` is "" when it is not a file."""

    device: str
    source: str
    path: str
    format: str
    encrypted: bool
    problem: str


@dataclass(frozen=True)
class StandIn:
    """The mark on a domain that we made only for a capture: of which store and operation it is."""

    store: str
    key: str


@dataclass(frozen=True)
class DomainFacts:
    name: str
    uuid: str
    vcpus: int
    memory_mib: int
    disks: tuple[DomainDisk, ...]
    other_drives: tuple[str, ...]  # device names of CD-ROM and floppy drives
    agent: bool  # is a guest agent connected to its channel
    stand_in: StandIn | None


def domain_xml(
    *,
    name: str,
    uuid: str,
    memory_mib: int,
    vcpus: int,
    disks: Iterable[DiskSource],
    console_log: str | Path,
    domain_type: str = "qemu",
) -> str:
    """A small machine with virtio disks, a serial console logged to a file, and a channel for the guest agent."""
    domain = _domain(domain_type, name, uuid, memory_mib, vcpus)
    devices = domain.find("devices")
    assert devices is not None
    for disk in disks:
        _disk(devices, disk, discard=True)
    serial = SubElement(devices, "serial", type="pty")
    SubElement(serial, "log", file=fspath(console_log), append="on")
    channel = SubElement(devices, "channel", type="unix")
    SubElement(channel, "target", type="virtio", name=AGENT_CHANNEL)
    return ElementTree.tostring(domain, encoding="unicode")


def stand_in_xml(mark: StandIn, disks: Iterable[DiskSource], domain_type: str = "qemu") -> str:
    """A machine that never runs: it holds the disks of a stopped instance read-only while they are copied.

    QEMU's own file locks then refuse a start of the real one.
    """
    identity = stand_in_uuid(mark)
    domain = _domain(domain_type, f"stillframe-{identity}", identity, memory_mib=16, vcpus=1)
    metadata = Element("metadata")
    SubElement(metadata, f"{{{NAMESPACE}}}capture", store=mark.store, key=mark.key)
    domain.insert(0, metadata)
    devices = domain.find("devices")
    assert devices is not None
    for disk in disks:
        SubElement(_disk(devices, disk, discard=False), "readonly")
    return ElementTree.tostring(domain, encoding="unicode")


def stand_in_uuid(mark: StandIn) -> str:
    """Always the same for one operation, so that its stand-in can be found, and there can be only one."""
    return str(uuid.uuid5(uuid.NAMESPACE_URL, f"{NAMESPACE}/{mark.store}/{mark.key}"))


def backup_xml(facts: DomainFacts, targets: Mapping[str, Path]) -> str:
    """A push backup of the devices in ``targets`` into those files. All others are named too, to be left out."""
    backup = Element("domainbackup", mode="push")
    disks = SubElement(backup, "disks")
    for device in (*(disk.device for disk in facts.disks), *facts.other_drives):
        if device in targets:
            disk = SubElement(disks, "disk", name=device, backup="yes", type="file")
            SubElement(disk, "driver", type="qcow2")
            SubElement(disk, "target", file=fspath(targets[device]))
        else:
            SubElement(disks, "disk", name=device, backup="no")
    return ElementTree.tostring(backup, encoding="unicode")


def backup_targets(xml: str) -> dict[str, Path]:
    """Device → target file of a running backup, as libvirt describes it."""
    targets = {}
    for disk in _parse(xml).iterfind("disks/disk"):
        target = disk.find("target")
        if target is not None:
            targets[disk.get("name", "")] = Path(target.get("file", ""))
    return targets


def read(xml: str) -> DomainFacts:
    """What a domain is, from the XML that libvirt gives."""
    domain = _parse(xml)
    disks, other_drives = [], []
    for disk in domain.iterfind("devices/disk"):
        device = _attribute(disk, "target", "dev")
        if disk.get("device", "disk") in ("cdrom", "floppy"):
            other_drives.append(device)
        else:
            disks.append(_read_disk(disk, device))
    mark = domain.find(f"metadata/{{{NAMESPACE}}}capture")
    channels = domain.iterfind(f"devices/channel/target[@name='{AGENT_CHANNEL}']")
    return DomainFacts(
        name=domain.findtext("name", ""),
        uuid=domain.findtext("uuid", ""),
        vcpus=int(domain.findtext("vcpu", "1")),
        # libvirt always answers in KiB, whatever unit was written.
        memory_mib=int(domain.findtext("memory", "0")) >> 10,
        disks=tuple(sorted(disks, key=lambda disk: (len(disk.device), disk.device))),
        other_drives=tuple(other_drives),
        agent=any(channel.get("state") == "connected" for channel in channels),
        stand_in=None if mark is None else StandIn(mark.get("store", ""), mark.get("key", "")),
    )


def _domain(domain_type: str, name: str, uuid: str, memory_mib: int, vcpus: int) -> Element:
    domain = Element("domain", type=domain_type)
    SubElement(domain, "name").text = name
    SubElement(domain, "uuid").text = uuid
    SubElement(domain, "memory", unit="MiB").text = str(memory_mib)
    SubElement(domain, "vcpu").text = str(vcpus)
    os = SubElement(domain, "os")
    SubElement(os, "type", arch="x86_64", machine="pc").text = "hvm"
    SubElement(os, "boot", dev="hd")
    features = SubElement(domain, "features")
    SubElement(features, "acpi")
    if domain_type == "qemu":
        # The default cache of translated code is far larger than a small guest.
        SubElement(SubElement(features, "tcg"), "tb-cache", unit="MiB").text = "32"
    devices = SubElement(domain, "devices")
    SubElement(devices, "controller", type="usb", model="none")
    SubElement(devices, "memballoon", model="none")
    return domain


def _disk(devices: Element, source: DiskSource, *, discard: bool) -> Element:
    disk = SubElement(devices, "disk", type="file", device="disk")
    driver = SubElement(disk, "driver", name="qemu", type=source.format, cache="none")
    if discard:
        driver.set("discard", "unmap")
    SubElement(disk, "source", file=fspath(source.path))
    SubElement(disk, "target", dev=source.device, bus="virtio")
    if source.serial:
        SubElement(disk, "serial").text = source.serial
    # At boot the PCI address decides the name in the guest, whatever the order of the elements.
    slot = f"0x{FIRST_SLOT + DEVICES.index(source.device):02x}"
    SubElement(disk, "address", type="pci", domain="0x0000", bus="0x00", slot=slot, function="0x0")
    return disk


def _read_disk(disk: Element, device: str) -> DomainDisk:
    source = disk.find("source")
    attributes = {} if source is None else source.attrib
    path = attributes.get("file", "")
    # Where nothing is declared libvirt treats the disk as raw, and so do we: never by probing.
    format = _attribute(disk, "driver", "type") or "raw"
    encrypted = disk.find("encryption") is not None or disk.find("source/encryption") is not None
    if disk.get("device", "disk") != "disk" or not path or disk.find("transient") is not None:
        problem = "disk-kind"
    elif encrypted:
        problem = "disk-encrypted"
    elif format not in ("qcow2", "raw"):
        problem = "disk-format"
    elif disk.find("shareable") is not None:
        problem = "disk-shared"
    elif disk.find("readonly") is not None:
        problem = "disk-readonly"
    else:
        problem = ""
    # Not all attributes: libvirt adds some while the domain runs.
    elsewhere = "/".join(
        attributes[name] for name in ("protocol", "pool", "dev", "name", "volume") if name in attributes
    )
    return DomainDisk(device, path or elsewhere, path, format, encrypted, problem)


def _parse(xml: str) -> Element:
    # It comes from libvirt, which made it from its own structures: no guest and no user writes XML that gets here.
    return ElementTree.fromstring(xml)  # noqa: S314


def _attribute(parent: Element, child: str, name: str) -> str:
    found = parent.find(child)
    return "" if found is None else found.get(name, "")

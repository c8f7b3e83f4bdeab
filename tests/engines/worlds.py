"""A real region per engine in which the contract is tried: instances with disks, and a look at their bytes."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import tempfile
import threading
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar
from xml.etree import ElementTree

from compute.engines.base import Captured, Engine, Handle, InstanceFacts, Look, Part, Sealed, WorkState
from compute.engines.folder import FolderEngine
from compute.engines.libvirt import LibvirtEngine
from compute.engines.libvirt.domain import DiskSource, StandIn, domain_xml, stand_in_uuid
from console.demo.guest import build_guest
from console.libvirtd import PrivateLibvirtd

T = TypeVar("T")

MIB = 1 << 20
SLOWED = 1.0  # seconds after which whoever is not slowed down has ended
DEADLINE = 60  # seconds: for a busy machine, not the usual time
BOOT = 240  # the same for a guest that boots under emulation while others do
COUNTER_DIGITS = 15
GUEST = "counts"
# QEMU walks through a hole of this size in half a second, and through a slowed down one for ever.
LARGE = 64 << 30


def until(condition: Callable[[], T], seconds: float = DEADLINE) -> T:
    """The first true value of the condition."""
    end = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)
    return value


def ended(engine: Engine, handle: Handle) -> Look:
    """How the capture ended."""

    def over() -> bool:
        return engine.look(handle).state is not WorkState.RUNNING

    until(over)
    return engine.look(handle)


def sealed(engine: Engine, key: str, sizes: Mapping[str, int]) -> dict[str, Sealed]:
    return sealed_by(engine.seal(key, sizes))


def sealed_by(work: Generator[dict[str, int], None, dict[str, Sealed]]) -> dict[str, Sealed]:
    while True:
        try:
            next(work)
        except StopIteration as stop:
            parts: dict[str, Sealed] = stop.value
            return parts


def noise(name: str, mib: int) -> bytes:
    source = random.Random(name)
    return b"".join(source.randbytes(MIB) for _ in range(mib))


class World(ABC):
    """One region. ``store`` is the image store's directory."""

    # A system disk of this size cannot be copied before somebody slows the copy down.
    long_mib = 8

    def __init__(self, root: Path) -> None:
        self.root = root
        self.store = root / "store"

    @abstractmethod
    def engine(self) -> Engine:
        """A client of the region that knows nothing of any other."""

    @abstractmethod
    def instance(self, name: str, *devices: str, mib: int = 8) -> str:
        """A stopped instance with one disk of noise per device, the system disk of so many MiB, others of 8; its id."""

    @abstractmethod
    def content(self, instance: str, device: str) -> bytes:
        """What is on the disk of a stopped instance, as a guest would see it."""

    @abstractmethod
    def begin_slowly(self, key: str, instance: str, parts: tuple[Part, ...]) -> tuple[Handle, Captured]:
        """``begin``, of a capture that will take its time until ``hurry``; the system disk has ``long_mib``."""

    @abstractmethod
    def hurry(self, handle: Handle) -> None: ...

    def facts(self, instance: str) -> InstanceFacts:
        facts = self.engine().observe(instance)
        assert facts is not None
        return facts

    def parts(self, instance: str, *devices: str) -> tuple[Part, ...]:
        return tuple(Part(disk.id, disk.device) for disk in self.facts(instance).disks if disk.device in devices)

    def sizes(self, instance: str, *devices: str) -> dict[str, int]:
        return {disk.device: disk.size for disk in self.facts(instance).disks if disk.device in devices}

    def stored(self, part: Sealed) -> bytes:
        """The disk that an image's file holds."""
        return raw_content(self.store / part.id, part.format)

    def stored_counter(self, part: Sealed) -> int:
        """The number on the disk that an image's file holds."""
        with tempfile.TemporaryDirectory() as place:
            block = Path(place, "block")
            ends = (f"if={self.store / part.id}", f"of={block}")
            qemu_img("dd", "-f", part.format, "-O", "raw", "bs=4096", "count=1", *ends)
            return counter(block)

    def left(self) -> list[str]:
        """Everything that lies in the store."""
        return sorted(str(path.relative_to(self.store)) for path in self.store.rglob("*"))


class FolderWorld(World):
    """Plain files; ``RATE`` makes a copy slow, and nothing makes it faster again: 8 MiB take 4 s."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        FolderEngine.create(root)

    def engine(self) -> FolderEngine:
        return FolderEngine("test", {"ROOT": self.root})

    def instance(self, name: str, *devices: str, mib: int = 8) -> str:
        place = self.root / "instances" / name
        place.mkdir()
        for device in devices:
            (place / f"{device}.raw").write_bytes(noise(name + device, mib if device == "vda" else 8))
        disks = [{"device": device, "file": f"{device}.raw", "medium": "cloud"} for device in devices]
        self.engine().add_instance(name, name, disks)
        return name

    def content(self, instance: str, device: str) -> bytes:
        return (self.root / "instances" / instance / f"{device}.raw").read_bytes()

    def begin_slowly(self, key: str, instance: str, parts: tuple[Part, ...]) -> tuple[Handle, Captured]:
        return FolderEngine("test", {"ROOT": self.root, "RATE": 4 * MIB}).begin(key, instance, parts)

    def hurry(self, handle: Handle) -> None:
        pass


class LibvirtWorld(World):
    """A private libvirtd and real QEMU. System disks are thin, the first data disk raw, others qcow2."""

    long_mib = 192

    def __init__(self, root: Path, libvirtd: PrivateLibvirtd) -> None:
        super().__init__(root)
        self.store.mkdir(mode=0o700)
        self.libvirtd = libvirtd

    def engine(self) -> LibvirtEngine:
        return LibvirtEngine("test", self.options())

    def options(self) -> dict[str, Any]:
        return {"URI": self.libvirtd.uri, "STORE": str(self.store), "LOCAL_POOLS": [str(self.root / "local")]}

    def instance(self, name: str, *devices: str, mib: int = 8) -> str:
        disks = []
        for device in devices:
            plain = self.root / f"{name}-{device}.raw"
            plain.write_bytes(noise(name + device, mib if device == "vda" else 8))
            if device == "vdb":
                disks.append(DiskSource(device, plain, "raw"))
                continue
            disk = plain.with_suffix(".qcow2")
            if device == "vda":
                thin_disk(disk, plain)
            else:
                qemu_img("convert", "-f", "raw", "-O", "qcow2", plain, disk)
            disks.append(DiskSource(device, disk, "qcow2", name[:20]))
        return self.define(name, disks)

    def define(self, name: str, disks: list[DiskSource]) -> str:
        """Such an instance, with an empty CD-ROM drive as well."""
        identity = str(uuid.uuid4())
        text = domain_xml(
            name=name, uuid=identity, memory_mib=128, vcpus=1, disks=disks, console_log=self.root / f"{name}.log"
        )
        tree = ElementTree.fromstring(text)
        devices = tree.find("devices")
        assert devices is not None
        drive = ElementTree.SubElement(devices, "disk", type="file", device="cdrom")
        ElementTree.SubElement(drive, "target", dev="hdc", bus="ide")
        with self.connected() as conn:
            conn.defineXML(ElementTree.tostring(tree, encoding="unicode"))
        return identity

    def source(self, instance: str, device: str) -> DiskSource:
        disk = next(disk for disk in self.facts(instance).disks if disk.device == device)
        return DiskSource(device, disk.id, disk.format)

    def content(self, instance: str, device: str) -> bytes:
        disk = self.source(instance, device)
        return raw_content(Path(disk.path), disk.format)

    def begin_slowly(self, key: str, instance: str, parts: tuple[Part, ...]) -> tuple[Handle, Captured]:
        # QEMU may have copied it all before anybody could slow it down: then once more.
        for _ in range(10):
            handle, captured = self._begin_while_slowing(key, instance, parts)
            if self.engine().look(handle).state is WorkState.RUNNING:
                return handle, captured
            until(lambda: self.engine().discard(key, None))
            self.engine().make_room(key)
        raise AssertionError("each copy had ended before it could be slowed down")

    def _begin_while_slowing(self, key: str, instance: str, parts: tuple[Part, ...]) -> tuple[Handle, Captured]:
        copiers = (instance, stand_in_uuid(StandIn(str(self.store), key)))
        ready, over = threading.Event(), threading.Event()

        def slow_down() -> None:
            with self.connected() as conn:
                ready.set()
                waiting = [part.name for part in parts]
                while waiting and not over.is_set():
                    waiting = [device for device in waiting if not _set_speed(conn, copiers, device, 64 << 10)]
                    time.sleep(0.001)

        helper = threading.Thread(target=slow_down)
        helper.start()
        try:
            assert ready.wait(DEADLINE)
            begun = self.engine().begin(key, instance, parts)
            helper.join(SLOWED)
            return begun
        finally:
            over.set()
            helper.join()

    def hurry(self, handle: Handle) -> None:
        with self.connected() as conn:
            for device in handle["devices"].values():
                _set_speed(conn, (handle["domain"],), device, 0)

    @contextmanager
    def connected(self) -> Iterator[Any]:
        """A connection of the tests' own, to look and to break things with."""
        import libvirt

        # The engine has started libvirt's event loop in this process, or has not: a connection needs none.
        conn = libvirt.open(self.libvirtd.uri)
        try:
            yield conn
        finally:
            conn.close()

    def names(self) -> set[str]:
        """All machines there are, helpers of the engine's own included."""
        with self.connected() as conn:
            return {dom.name() for dom in conn.listAllDomains(0)}

    def machine_pid(self, instance: str) -> int:
        with self.connected() as conn:
            name = conn.lookupByUUIDString(instance).name()
        return int((self.libvirtd.root / "r/libvirt/qemu/run" / f"{name}.pid").read_text())

    def kill_machine(self, domain: str) -> None:
        os.kill(self.machine_pid(domain), signal.SIGKILL)

    def clear(self) -> None:
        """Remove every machine but the guest, which is booted once for all tests."""
        with self.connected() as conn:
            for dom in conn.listAllDomains(0):
                if dom.name() != GUEST:
                    remove(dom)


class Guest:
    """A machine that really runs and counts on three disks: A is vdb, B is vdc and large (a hole), C is vdd.

    Started again when a test has stopped or killed it.
    """

    def __init__(self, world: LibvirtWorld, cache: Path, files: Mapping[str, bytes] | None = None) -> None:
        system = world.root / "guest-vda.qcow2"
        counts = "/dev/vdb /dev/vdc /dev/vdd 500"
        build_guest(system, cache, size=64 * MIB, hostname="counts", counter=counts, files=files)
        self.a, self.b, self.c = (world.root / f"guest-{device}" for device in ("vdb", "vdc", "vdd"))
        for path in (self.a, self.b, self.c):
            path.write_bytes(bytes(4096) + noise(path.name, 64)[4096:])
        plain = self.b.rename(self.b.with_name("plain"))
        qemu_img("convert", "-f", "raw", "-O", "qcow2", plain, self.b)
        qemu_img("resize", "-f", "qcow2", self.b, str(LARGE))
        plain.unlink()
        self.world = world
        disks = [
            DiskSource("vda", system, "qcow2", "system"),
            DiskSource("vdb", self.a, "raw", "a"),
            DiskSource("vdc", self.b, "qcow2", "b"),
            DiskSource("vdd", self.c, "raw", "c"),
        ]
        self.id = world.define(GUEST, disks)

    def ready(self) -> None:
        """Return once it runs, its agent answers and its counter moves."""
        engine = self.world.engine()
        until(lambda: self.world.facts(self.id).power != "changing")
        if self.world.facts(self.id).power == "paused":
            with self.world.connected() as conn:
                conn.lookupByUUIDString(self.id).resume()
        engine.start(self.id)
        until(lambda: self.world.facts(self.id).agent, BOOT)
        assert engine.thaw(self.id)
        self.counts()

    def rest(self) -> None:
        """Let it stand still: counting, it would take a processor from the tests that follow."""
        if self.world.facts(self.id).power == "running":
            with self.world.connected() as conn:
                conn.lookupByUUIDString(self.id).suspend()

    def counts(self) -> None:
        """Return once the counter has moved."""
        now = counter(self.c)
        until(lambda: counter(self.c) > now)


def counter(raw: Path) -> int:
    """The number on a raw disk that a guest may be writing at this moment."""
    with raw.open("rb") as disk:
        return int(disk.read(COUNTER_DIGITS).strip(b"\0") or 0)


def raw_content(path: Path, format: str) -> bytes:
    with tempfile.TemporaryDirectory() as place:
        plain = Path(place, "plain")
        qemu_img("convert", "-f", format, "-O", "raw", path, plain)
        return plain.read_bytes()


def thin_disk(disk: Path, below: Path) -> None:
    qemu_img("create", "-f", "qcow2", "-b", below, "-F", "raw", disk)


def qemu_img(verb: str, *arguments: str | Path) -> None:
    quiet = ("-q",) if verb in ("create", "resize") else ()
    subprocess.run(("qemu-img", verb, *quiet, *arguments), check=True, capture_output=True)


def remove(dom: Any) -> None:
    import libvirt

    with suppress(libvirt.libvirtError):
        dom.destroy()
    with suppress(libvirt.libvirtError):  # a stand-in is gone already
        dom.undefine()


def _set_speed(conn: Any, domains: tuple[str, ...], device: str, speed: int) -> bool:
    import libvirt

    for domain in domains:
        with suppress(libvirt.libvirtError):
            dom = conn.lookupByUUIDString(domain)
            dom.blockJobSetSpeed(device, speed, libvirt.VIR_DOMAIN_BLOCK_JOB_SPEED_BANDWIDTH_BYTES)
            return True
    return False

"""What the QEMU cells share: a private libvirtd with two machines, used by one cell after another.

``counts`` runs, answers by its guest agent and writes one counter to vdb, then vdc, then vdd (A, B, C): at every
instant A ≥ B ≥ C and A − C ≤ 1. ``still`` is stopped and has noise on its disks.
"""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import suppress
from difflib import unified_diff
from pathlib import Path
from typing import Any, NamedTuple, Self
from xml.etree import ElementTree

from compute.engines.libvirt import domain
from compute.engines.libvirt.domain import DiskSource
from console import processes
from console.demo.guest import build_guest
from console.libvirtd import PrivateLibvirtd
from tests.engines import agent
from tests.engines.worlds import BOOT, LARGE, LibvirtWorld, counter, qemu_img, until
from tests.kill.forks import aside, forked

MIB = 1 << 20
BLOCK = 4096  # bytes that the counter writes
NOISE = 8 * MIB
FROZEN_AT_MOST = 10.0  # seconds
COUNTS, STILL = "counts", "still"
# The system disk of the one that counts is a whole guest; the others are noise.
DISKS = {
    COUNTS: {"vda": "qcow2", "vdb": "raw", "vdc": "qcow2", "vdd": "raw"},
    STILL: {"vda": "qcow2", "vdb": "raw"},
}
# These end in a hole, so that a copy of them lasts as long as it should: small disks are copied before anybody could
# slow that down.
WITH_HOLE = {(COUNTS, "vdc"), (STILL, "vda")}


class Machine(NamedTuple):
    """One machine as libvirt shows it."""

    number: int  # another one each time it is started, -1 while it is stopped
    live: str  # its XML, as it runs
    defined: str  # and as it would be started next
    disks: list[str]  # the files behind its disks


def plain(xml: str) -> str:
    """Without the aliases, not all of which survive a restart of libvirtd."""
    tree = ElementTree.fromstring(xml)
    for parent in list(tree.iter()):
        for alias in parent.findall("alias"):
            parent.remove(alias)
    return ElementTree.canonicalize(ElementTree.tostring(tree, encoding="unicode"), strip_text=True)


def noise(machine: str, device: str) -> bytes:
    """What a disk began with when it was made."""
    return random.Random(machine + device).randbytes(NOISE)


def beginning(disk: Path, format: str) -> bytes:
    """What a disk that nobody uses, or an image's file, begins with."""
    with tempfile.TemporaryDirectory() as place:
        plain = Path(place, "plain")
        ends = (f"if={disk}", f"of={plain}")
        qemu_img("dd", "-f", format, "-O", "raw", f"bs={MIB}", f"count={NOISE // MIB}", *ends)
        return plain.read_bytes()


class Lab:
    """Everything it makes lies in one short directory and ends with it."""

    def __enter__(self) -> Self:
        # Not where pytest or the matrix keep theirs: sockets' paths are short, and disks want a file system.
        self.root = Path(tempfile.mkdtemp(prefix="sf-", dir="/tmp"))
        self.libvirtd = PrivateLibvirtd(self.root)
        place = self.root / "m"
        place.mkdir()
        self.machines = LibvirtWorld(place, self.libvirtd)
        self.supervisor = forked(self._supervise)
        self.libvirtd.wait_ready()
        self._make_disks()
        self.ids = aside(self._define)
        aside(self.ready)
        return self

    def __exit__(self, *raised: object) -> None:
        processes.kill([self.supervisor, *processes.marked([self.root])])
        os.waitpid(self.supervisor, 0)
        shutil.rmtree(self.root)

    def _supervise(self) -> None:
        """As the supervisor does: libvirtd is started again when it has ended, and what it leaves behind is reaped."""
        processes.adopt_orphans()
        while True:
            command, env, quiet = self.libvirtd.command(), self.libvirtd.env, subprocess.DEVNULL
            with (self.root / "libvirtd.log").open("ab") as log:
                daemon = subprocess.Popen(command, env=env, cwd="/", stdin=quiet, stdout=log, stderr=log)
            while os.wait()[0] != daemon.pid:
                pass

    def _make_disks(self) -> None:
        build_guest(
            self.disk(COUNTS, "vda"),
            self.root / "cache",
            size=64 * MIB,
            hostname=COUNTS,
            counter="/dev/vdb /dev/vdc /dev/vdd 2000",
            files=agent.FILES,
        )
        for machine, disks in DISKS.items():
            for device, format in disks.items():
                disk = self.disk(machine, device)
                if disk.exists():
                    continue
                plain = disk.with_suffix(".plain")
                content = noise(machine, device)
                plain.write_bytes(content if machine == STILL else bytes(BLOCK) + content[BLOCK:])
                qemu_img("convert", "-f", "raw", "-O", format, plain, disk)
                plain.unlink()
                if (machine, device) in WITH_HOLE:
                    qemu_img("resize", "-f", format, disk, str(LARGE))

    def disk(self, machine: str, device: str) -> Path:
        return self.root / f"{machine}-{device}"

    def _define(self) -> dict[str, str]:
        return {
            machine: self.machines.define(
                machine, [DiskSource(device, self.disk(machine, device), format) for device, format in disks.items()]
            )
            for machine, disks in DISKS.items()
        }

    # For processes of their own (``aside``) ---------------------------------------------------------------------------

    def ready(self) -> dict[str, Machine]:
        """Whatever the last cell left: nothing but the two machines, one running and counting, the other stopped."""
        import libvirt

        with self.machines.connected() as conn:
            for dom in conn.listAllDomains(libvirt.VIR_CONNECT_LIST_DOMAINS_ACTIVE):
                with suppress(libvirt.libvirtError):  # it ended by itself a moment ago
                    if dom.name() != COUNTS:
                        dom.destroy()
                    elif dom.jobStats().get("type"):
                        dom.abortJob()
            counts = conn.lookupByName(COUNTS)
            until(lambda: counts.state()[0] != libvirt.VIR_DOMAIN_SHUTDOWN)
            if counts.state()[0] == libvirt.VIR_DOMAIN_PAUSED:
                counts.resume()
            if not counts.isActive():
                counts.create()
        engine, identity = self.machines.engine(), self.ids[COUNTS]
        until(lambda: self.machines.facts(identity).agent, BOOT)
        assert engine.thaw(identity)
        with self.machines.connected() as conn:
            agent.forget_freezes(conn.lookupByName(COUNTS))
        before = self.written("vdd")
        until(lambda: self.written("vdd") > before)
        with self.machines.connected() as conn:
            return self._described(conn)

    def _described(self, conn: Any) -> dict[str, Machine]:
        import libvirt

        found = {}
        for dom in conn.listAllDomains():
            paths = [disk.path for disk in domain.read(dom.XMLDesc(0)).disks]
            defined = dom.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE)
            found[dom.name()] = Machine(dom.ID(), plain(dom.XMLDesc(0)), plain(defined), paths)
        return found

    def complaints(self, before: Mapping[str, Machine], running: Mapping[str, bool]) -> Iterator[str]:
        """Whatever of libvirt's and the guest's is not as it was, but for who should run."""
        with self.machines.connected() as conn:
            now = self._described(conn)
            yield from (f"machine {name} is left" for name in now.keys() - before.keys())
            for name, was in before.items():
                dom, it = conn.lookupByName(name), now[name]
                if bool(dom.isActive()) != running[name]:
                    yield f"{name} {'is stopped' if running[name] else 'runs'}"
                if it.defined != was.defined or it.disks != was.disks:
                    yield f"{name} is no longer defined as it was"
                if it.number == was.number and it.live != was.live:
                    changes = unified_diff(was.live.split("><"), it.live.split("><"), lineterm="", n=0)
                    yield f"{name} no longer runs as it did: {list(changes)}"
                if dom.isActive():
                    yield from self._jobs(dom, DISKS[name])
            if running[COUNTS]:
                yield from self._frozen(conn.lookupByName(COUNTS))
        for device, format in {} if running[STILL] else DISKS[STILL].items():  # QEMU locks the disks of one that runs
            if beginning(self.disk(STILL, device), format) != noise(STILL, device):
                yield f"{STILL} {device} has changed"

    def _jobs(self, dom: Any, devices: Mapping[str, str]) -> Iterator[str]:
        if dom.jobStats().get("type"):
            yield f"{dom.name()} has a job"
        for device in devices:
            if dom.blockJobInfo(device, 0):
                yield f"{dom.name()} has a job on {device}"

    def _frozen(self, dom: Any) -> Iterator[str]:
        import libvirt

        try:
            if agent.is_frozen(dom):
                yield "the guest is frozen"
                return
            yield from (
                f"the guest was frozen for {took:.1f} s" for took in agent.freezes(dom) if took > FROZEN_AT_MOST
            )
        except libvirt.libvirtError as error:
            yield f"the guest agent does not answer: {error}"
            return
        before = self.written("vdd")
        try:
            until(lambda: self.written("vdd") > before, 5)
        except AssertionError:
            yield "the guest does not count"

    # For anybody -----------------------------------------------------------------------------------------------------

    def written(self, device: str) -> int:
        """The number on a raw disk of the guest that counts, now."""
        return counter(self.disk(COUNTS, device))

    def pid_of(self, machine: str) -> int:
        return int((self.root / "r/libvirt/qemu/run" / f"{machine}.pid").read_text())

    def helpers(self) -> set[int]:
        """QEMUs of ours that are neither of the two machines."""
        found = set()
        for pid in processes.marked([self.root]):
            words = processes.command_line(pid)
            if "qemu-" in words and not any(f"guest={name}," in words for name in DISKS):
                found.add(pid)
        return found

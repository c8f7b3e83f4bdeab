"""Where things fail: a real guest, a private libvirtd and the product's own processes, beside a store of 160 MiB.

The small store is a tmpfs in a mount namespace of its own, in which libvirtd, QEMU, workers and keeper live. It takes
no root: a user namespace lets its maker mount, and a second one inside gives everybody their own account back.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

from compute import inventory
from compute.models import Instance, Operation
from console.libvirtd import PrivateLibvirtd
from images.actions import create_image
from tests.engines import agent
from tests.engines.worlds import LARGE, DiskSource, Guest, LibvirtWorld, noise, qemu_img, thin_disk
from tests.processes import MANAGE, copying, ended, wait_until

REGION, SMALL = "kvm-1", "kvm-small"
SMALL_MIB = 160


class Apart:
    """A mount namespace in which ``small`` is a file system of ``mib`` MiB."""

    def __init__(self, small: Path, mib: int) -> None:
        script = 'mount -t tmpfs -o "size=$1m,mode=0700" none "$2" && echo ready && exec sleep infinity'
        self.small = small
        self.holder = subprocess.Popen(
            ["unshare", "-rm", "sh", "-c", script, "sh", str(mib), str(small)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.holder.stdout
        assert self.holder.stdout.readline() == "ready\n"

    def command(self, *words: str) -> list[str]:
        """The words, run inside by the same account; each process on the way becomes the next."""
        enter = ["nsenter", f"--target={self.holder.pid}", "--user", "--mount", "--preserve-credentials"]
        back = ["unshare", "--user", f"--map-user={os.geteuid()}", f"--map-group={os.getegid()}"]
        return [*enter, "--", *back, "--", *words]

    @property
    def seen(self) -> Path:
        """``small`` as it is inside."""
        return Path(f"/proc/{self.holder.pid}/root{self.small}")

    def end(self) -> None:
        self.holder.kill()
        self.holder.communicate()


class ApartLibvirtd(PrivateLibvirtd):
    def __init__(self, root: Path, apart: Apart) -> None:
        super().__init__(root)
        self.apart = apart

    def command(self) -> list[str]:
        return self.apart.command(*super().command())


class Place:
    def __init__(self, root: Path, guest_cache: Path) -> None:
        self.small = root / "small"
        self.small.mkdir()
        self.apart = Apart(self.small, SMALL_MIB)
        self.libvirtd = ApartLibvirtd(root / "l", self.apart)
        self.libvirtd.root.mkdir()
        self.libvirtd.start()
        self.libvirtd.wait_ready()
        self.world = LibvirtWorld(root, self.libvirtd)
        self.guest = Guest(self.world, guest_cache, agent.FILES)
        self.plain = self._plain()
        self.env: dict[str, str] = {}

    def _plain(self) -> str:
        """A machine that runs without a system, and so without an agent; its second disk is a large hole."""
        disks = []
        for device, mib in (("vda", 8), ("vdb", 8)):
            below, disk = self.world.root / f"plain-{device}.raw", self.world.root / f"plain-{device}.qcow2"
            below.write_bytes(noise(device, mib))
            if device == "vda":
                thin_disk(disk, below)
            else:
                qemu_img("convert", "-f", "raw", "-O", "qcow2", below, disk)
                qemu_img("resize", "-f", "qcow2", disk, str(LARGE))
            disks.append(DiskSource(device, disk, "qcow2"))
        return self.world.define("plain", disks)

    def engines(self) -> dict[str, Any]:
        entry = {"BACKEND": "compute.engines.libvirt.LibvirtEngine", "LONG_LIMIT": 2}
        options = self.world.options()
        return {
            REGION: entry | {"OPTIONS": options},
            SMALL: entry | {"OPTIONS": options | {"STORE": str(self.small)}},
        }

    def end(self) -> None:
        import libvirt

        conn = libvirt.open(self.libvirtd.uri)
        for dom in conn.listAllDomains(libvirt.VIR_CONNECT_LIST_DOMAINS_ACTIVE):
            dom.destroy()
        conn.close()
        self.libvirtd.stop()
        self.apart.end()

    @contextmanager
    def no_libvirtd(self) -> Iterator[None]:
        """It is killed, and started again at the end."""
        self.libvirtd.stop(kill=True)
        try:
            yield
        finally:
            self.libvirtd.start()
            self.libvirtd.wait_ready()

    # The product's processes -------------------------------------------------------------------------------------

    @contextmanager
    def process(self, *words: str, **env: str) -> Iterator[subprocess.Popen[bytes]]:
        """``python …`` inside; killed at the end if it still runs."""
        running = subprocess.Popen(
            self.apart.command(sys.executable, *words), env=self.env | env, stdin=subprocess.DEVNULL
        )
        try:
            yield running
        finally:
            running.kill()
            running.wait()

    def worker(self, operation: Operation, **env: str) -> Any:
        return self.process(MANAGE, "perform", operation.pk, **env)

    def stuck(self, call: str, number: str, operation: Operation) -> Any:
        """A worker that meets a signal right before this call; see ``tests.failures.stuck``."""
        return self.process("-m", "tests.failures.stuck", call, number, operation.pk)

    def keeper(self, **env: str) -> Any:
        return self.process(MANAGE, "keeper", **env)

    def ahead(self, module: str, *words: str) -> Any:
        """``python -m module …`` an hour ahead; SIGUSR1 steps its clock back."""
        return self.process("-m", "tests.failures.clock", module, *words)

    # Rows --------------------------------------------------------------------------------------------------------

    def instance(self, external_id: str, owner: Any, region: str = REGION) -> Instance:
        """Its row, as the region shows it now."""
        inventory.sync(region)
        row = Instance.objects.get(external_id=external_id, region=region)
        Instance.objects.filter(pk=row.pk).update(owner=owner)
        row.refresh_from_db()
        return row

    def instance_row(self, external_id: str) -> Instance:
        return Instance.objects.get(external_id=external_id, region=REGION)

    def making(self, external_id: str, owner: Any, *devices: str, region: str = REGION) -> Operation:
        """An image of its system disk and these data disks is asked for."""
        row = self.instance(external_id, owner, region)
        disks = [row.disks.get(device=device).pk for device in devices]
        image = create_image(by=owner, instance=row, name="v1", description="", disks=disks)
        operation: Operation = image.operations.get()
        return operation

    # The guest ---------------------------------------------------------------------------------------------------

    @contextmanager
    def domain(self, external_id: str) -> Iterator[Any]:
        """The domain, by a client that is not ours, as `virsh` is."""
        with self.world.connected() as conn:
            yield conn.lookupByUUIDString(external_id)

    def shell(self, words: str) -> None:
        """Run this in the guest, and do not wait for it."""
        arguments = {"path": "/bin/sh", "arg": ["-c", f"export PATH=/bin:/sbin; {words}"]}
        with self.domain(self.guest.id) as dom:
            agent.ask(dom, "guest-exec", **arguments)

    def read(self, path: str) -> str:
        with self.domain(self.guest.id) as dom:
            return agent.read(dom, path)

    def is_frozen(self) -> bool:
        with self.domain(self.guest.id) as dom:
            return agent.is_frozen(dom)

    def frozen(self) -> list[float]:
        """How many seconds each freeze has lasted; see ``agent.freezes``."""
        with self.domain(self.guest.id) as dom:
            return agent.freezes(dom)


class Slowly:
    """Copies of a machine stand nearly still from their first moment, until ``hurry`` or the end of the context."""

    def __init__(self, uri: str, *domains: str, device: str = "vdb") -> None:
        self.uri, self.domains, self.device = uri, domains, device
        self.over = threading.Event()
        self.thread = threading.Thread(target=self._hold)

    def _hold(self) -> None:
        import libvirt

        conn = None
        while not self.over.is_set():
            try:
                conn = conn or libvirt.open(self.uri)
                for dom in conn.listAllDomains(libvirt.VIR_CONNECT_LIST_DOMAINS_ACTIVE):
                    if dom.UUIDString() in self.domains or dom.name().startswith("stillframe-"):
                        dom.blockJobSetSpeed(self.device, 64 << 10, libvirt.VIR_DOMAIN_BLOCK_JOB_SPEED_BANDWIDTH_BYTES)
            except libvirt.libvirtError as error:
                # No job on it now; or libvirtd itself is away.
                if error.get_error_domain() == libvirt.VIR_FROM_RPC:
                    conn = None
            time.sleep(0.002)
        if conn is not None:
            conn.close()

    def hurry(self) -> None:
        self.over.set()
        self.thread.join()
        import libvirt

        with closing(libvirt.open(self.uri)) as conn:
            for dom in conn.listAllDomains(libvirt.VIR_CONNECT_LIST_DOMAINS_ACTIVE):
                with suppress(libvirt.libvirtError):
                    dom.blockJobSetSpeed(self.device, 0, 0)

    def __enter__(self) -> Slowly:
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.over.set()
        self.thread.join()


def wait_copying(operation: Operation) -> None:
    wait_until(lambda: copying(operation) or ended(operation), seconds=60, what="a byte")
    assert operation.is_live, operation.why


def wait_ended(operation: Operation, seconds: float = 90) -> None:
    wait_until(lambda: ended(operation), seconds=seconds, what="the end")


def wait_stopped(process: subprocess.Popen[bytes]) -> None:
    """Return once the process stands still (SIGSTOP)."""

    def stands() -> bool:
        assert process.poll() is None, "it ended"
        return Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"

    wait_until(stands, seconds=60, what="the stop")

"""What `make run` shows: four accounts, and three instances with real disks in the first region.

``web-1`` of alice runs and counts on its three disks, ``db-1`` of alice is stopped and has local disks, ``cache-1``
of bob runs. On a folder region nothing runs, and system disks are plain file systems.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import shake_128
from pathlib import Path

from django.conf import settings
from django.contrib.auth import get_user_model
from django.db import transaction

from compute.engines.folder import FolderEngine
from compute.inventory import sync
from compute.models import Disk, Instance, Medium, Quota, Region
from compute.regions import engine_for
from console.demo import ACCOUNTS, ADMIN, PASSWORD
from console.demo.guest import MIB, build_guest, data_disk


@dataclass(frozen=True)
class DiskPlan:
    device: str
    name: str
    size_mib: int
    # MiB of data that no compression makes smaller, and the directory on this disk in which it lies.
    data_mib: int
    directory: str
    # Where the instance's own /etc/fstab mounts it; a system disk is always "/".
    mount: str = "/"
    medium: str = Medium.CLOUD

    @property
    def format(self) -> str:
        return "raw" if self.medium == Medium.LOCAL else "qcow2"


@dataclass(frozen=True)
class Plan:
    name: str
    owner: str
    running: bool
    memory_mib: int
    disks: tuple[DiskPlan, ...]
    # Arguments of counter.c: three files and a pause in microseconds.
    counter: str = ""

    def identity(self, region: str, device: str = "") -> str:
        """A UUID for it, or for one of its file systems: the same each time, so that an interrupted run goes on."""
        return str(uuid.uuid5(uuid.NAMESPACE_URL, f"urn:stillframe:demo:{region}/{self.name}/{device}"))

    def fstab(self, region: str) -> str:
        data = (disk for disk in self.disks if disk.mount != "/")
        return "".join(
            f"UUID={self.identity(region, disk.device)} {disk.mount} ext4 defaults,nofail 0 2\n" for disk in data
        )


PLANS = (
    Plan(
        "web-1",
        "alice",
        running=True,
        memory_mib=256,
        counter="/srv/counter /srv/data/counter /srv/logs/counter 100000",
        disks=(
            DiskPlan("vda", "web-1-system", 2048, 200, "/srv/www"),
            DiskPlan("vdb", "web-1-data", 2048, 300, "/photos", mount="/srv/data"),
            DiskPlan("vdc", "web-1-logs", 1024, 100, "/access", mount="/srv/logs"),
        ),
    ),
    Plan(
        "db-1",
        "alice",
        running=False,
        memory_mib=192,
        disks=(
            DiskPlan("vda", "db-1-system", 1024, 50, "/srv/db", medium=Medium.LOCAL),
            DiskPlan("vdb", "db-1-scratch", 1024, 20, "/sorting", mount="/srv/scratch", medium=Medium.LOCAL),
            DiskPlan("vdc", "db-1-tables", 1024, 50, "/tables", mount="/srv/tables"),
        ),
    ),
    Plan(
        "cache-1",
        "bob",
        running=True,
        memory_mib=192,
        disks=(DiskPlan("vda", "cache-1-system", 1024, 20, "/srv/cache"),),
    ),
)


def tell(say: Callable[[str], object]) -> None:
    """Make whatever of the demo has not been made yet. Interrupted anywhere, the next call goes on.

    What was made once is left alone, also when its owner has changed or deleted it since.
    """
    region = next(iter(settings.ENGINES))
    wanted = [name for name in ACCOUNTS if not _told(region, name)]
    if not wanted:
        return
    plans = [plan for plan in PLANS if plan.owner in wanted]
    for plan in plans:
        say(f"making {plan.name} and its disks")
        _make(region, plan)
    row = sync(region)
    with transaction.atomic():
        for name in wanted:
            _enter(row, name, [plan for plan in plans if plan.owner == name])


def _told(region: str, account: str) -> bool:
    # The quota row is the last thing made for an account and a region, together with all that is theirs.
    return Quota.objects.filter(region=region, owner__username=account).exists()


def _enter(region: Region, account: str, plans: list[Plan]) -> None:
    """The account, and everything that is theirs in this region."""
    users = get_user_model().objects
    user = users.filter(username=account).first()
    if user is None:
        make = users.create_superuser if account == ADMIN else users.create_user
        user = make(account, password=PASSWORD)
    for plan in plans:
        instance = Instance.objects.get(region=region, external_id=plan.identity(region.pk))
        Instance.objects.filter(pk=instance.pk).update(owner=user, name=plan.name)
        for disk in plan.disks:
            Disk.objects.filter(instance=instance, device=disk.device).update(owner=user, name=disk.name)
    Quota.objects.create(region=region, owner=user)


def _make(region: str, plan: Plan) -> None:
    """The disks, then the instance on them. A disk that is there is whole, and is not made again."""
    engine = engine_for(region)
    if isinstance(engine, FolderEngine):
        FolderEngine.create(Path(engine.options["ROOT"]))
        place = engine.instances / plan.identity(region)
        for disk in plan.disks:
            _write(place / f"{disk.device}.raw", "raw", region, plan, disk, bootable=False)
        disks = [{"device": disk.device, "file": f"{disk.device}.raw", "medium": disk.medium} for disk in plan.disks]
        engine.add_instance(place.name, plan.name, disks, memory_mib=plan.memory_mib)
        return

    # Imported here: a folder region needs no libvirt.
    from compute.engines.libvirt.domain import DiskSource
    from console.demo.machines import define

    cloud, local = Path(engine.options["DISKS"]), Path(engine.options["LOCAL_POOLS"][0])
    for place in (cloud, local, Path(engine.options["STORE"])):
        place.mkdir(mode=0o700, parents=True, exist_ok=True)
    sources = []
    for disk in plan.disks:
        file = (local if disk.medium == Medium.LOCAL else cloud) / f"{plan.name}-{disk.device}.{disk.format}"
        _write(file, disk.format, region, plan, disk, bootable=True)
        sources.append(DiskSource(disk.device, file, disk.format, serial=f"{plan.name}-{disk.device}"))
    define(
        engine.options,
        plan.name,
        uuid=plan.identity(region),
        memory_mib=plan.memory_mib,
        disks=sources,
        running=plan.running,
    )


def _write(file: Path, format: str, region: str, plan: Plan, disk: DiskPlan, *, bootable: bool) -> None:
    """One disk with its file system and data; ``bootable``: a system disk is a whole guest."""
    if file.exists():
        return
    size = disk.size_mib * MIB
    files = _data(f"{plan.name}/{disk.device}", disk)
    if bootable and disk.mount == "/":
        cache = settings.DATA / "guest"
        fstab = plan.fstab(region)
        build_guest(
            file, cache, size=size, format=format, hostname=plan.name, fstab=fstab, counter=plan.counter, files=files
        )
    else:
        data_disk(file, uuid=plan.identity(region, disk.device), size=size, format=format, files=files)


def _data(seed: str, disk: DiskPlan) -> dict[str, bytes]:
    """Files of 10 MiB that cannot be compressed, the same each time."""
    count = disk.data_mib // 10
    return {f"{disk.directory}/{n:03}.bin": shake_128(f"{seed}/{n}".encode()).digest(10 * MIB) for n in range(count)}

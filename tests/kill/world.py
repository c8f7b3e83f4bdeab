"""One cell's world: rows of its own, a folder region with two instances and an image, all in one directory.

The rows are an SQLite file there, or a database of the same name on the matrix's own PostgreSQL.

``db-1`` has a local system disk and two cloud data disks, so that an image of it has a file of its own as well as
snapshots; ``web-1`` has a switch. ``old`` is an image of ``db-1``.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any, ClassVar

from django.conf import settings
from django.contrib.auth import get_user_model
from django.core.management import call_command
from django.db import connections
from django.utils import timezone

from compute import actions, inventory, operations
from compute.engines.base import Abilities, EngineError, InstanceFacts, Power
from compute.engines.folder import FolderEngine
from compute.engines.store import RECORD
from compute.models import Instance, Litter, Operation, Resource, Snapshot
from compute.regions import engine_for
from compute.states import LIVE, status_of
from console import processes
from images.actions import create_image, delete_image
from images.models import DeviceMapping, Image
from images.rules import uses
from tests.kill.points import watched
from tests.postgres import Server, see

REGION = "region-1"
SIZE = 128 << 10  # bytes of a disk, half of it a hole
# Of a transaction on PostgreSQL in which nothing happens, in seconds: more than a holder's silence.
IDLE = 4.0
RATE = 160 << 10  # three disks are copied in about 1.2 s
DISKS = {"db-1": {"vda": "local", "vdb": "cloud", "vdc": "cloud"}, "web-1": {"vda": "cloud"}}


class PoweredFolder(FolderEngine):
    """The folder engine with a file as the power switch, which takes a moment to turn: for start and stop."""

    abilities = Abilities(power=True, live_capture=True, one_instant=True, freeze=False)

    def observe(self, instance: str) -> InstanceFacts | None:
        facts = super().observe(instance)
        if facts is None:
            return None
        try:
            power, since = json.loads((self._instance(instance) / "power").read_text())
        except FileNotFoundError:
            return facts
        return replace(facts, power=Power(power) if time.time() > since else Power.CHANGING)

    def start(self, instance: str) -> None:
        self._switch(instance, Power.RUNNING)

    def stop(self, instance: str, *, force: bool) -> None:
        self._switch(instance, Power.STOPPED)

    def _switch(self, instance: str, power: Power) -> None:
        place = self._instance(instance)
        if not (place / "instance.json").exists():
            raise EngineError("instance-gone")
        new = place / f"power.{os.getpid()}"
        new.write_text(json.dumps([power, time.time() + 0.6]))
        new.rename(place / "power")


WatchedFolder, WatchedPowered = watched(FolderEngine), watched(PoweredFolder)


@dataclass(frozen=True)
class Scenario:
    """How one kind of operation comes about, and on which engine."""

    instance: str
    click: Callable[[], Any]
    engine: str = "WatchedFolder"
    on: bool = False  # is the instance running before


def alice() -> Any:
    return get_user_model().objects.get(username="alice")


def create(instance: str, name: str) -> Image:
    row = Instance.objects.get(external_id=instance)
    disks = [disk.pk for disk in row.data_disks]
    return create_image(by=alice(), instance=row, name=name, description="", disks=disks)


def _delete() -> None:
    delete_image(by=alice(), image=Image.objects.get(name="old"), snapshots=True)


SCENARIOS = {
    "create_image": Scenario("db-1", lambda: create("db-1", "new")),
    "delete_image": Scenario("db-1", _delete),
    "start": Scenario(
        "web-1",
        lambda: actions.start(by=alice(), instance=Instance.objects.get(external_id="web-1")),
        "WatchedPowered",
    ),
    "stop": Scenario(
        "web-1",
        lambda: actions.stop(by=alice(), instance=Instance.objects.get(external_id="web-1")),
        "WatchedPowered",
        on=True,
    ),
}


def make_template(root: Path, server: Server | None) -> None:
    """The world as every cell finds it."""
    root.mkdir()
    if server:
        server.create(root.name)
    World(root, server).enter("WatchedFolder")
    call_command("migrate", verbosity=0)
    get_user_model().objects.create(username="alice")
    FolderEngine.create(root / "folder")
    for name, disks in DISKS.items():
        place = root / "folder" / "instances" / name
        place.mkdir()
        for device in disks:
            with (place / f"{device}.raw").open("wb") as file:
                file.write(random.Random(name + device).randbytes(SIZE // 2))
                file.truncate(SIZE)
        described = [{"device": device, "file": f"{device}.raw", "medium": medium} for device, medium in disks.items()]
        FolderEngine(REGION, {"ROOT": root / "folder"}).add_instance(name, name, described)
    inventory.sync(REGION)
    Instance.objects.update(owner=alice())
    operations.perform(create("db-1", "old").operations.get().pk)
    assert Image.objects.get().status == "available"
    connections.close_all()


@dataclass
class World:
    root: Path
    server: Server | None
    began: datetime = field(default_factory=timezone.now)
    notes: ClassVar[tuple[str, ...]] = (RECORD,)  # beside the files of an image

    @classmethod
    def copy(cls, template: Path, root: Path, server: Server | None) -> World:
        shutil.copytree(template, root)
        if server:
            server.create(root.name, template=template.name)
        return cls(root, server)

    def enter(self, engine: str, rate: int | None = None) -> None:
        """From now on this process, and those it forks, see this world."""
        see(
            self.server.url(self.root.name) if self.server else f"sqlite:///{self.root}/rows.sqlite3", idle_seconds=IDLE
        )
        options = {"ROOT": str(self.root / "folder"), "RATE": rate}
        settings.ENGINES = {REGION: {"BACKEND": f"tests.kill.world.{engine}", "OPTIONS": options, "LONG_LIMIT": 2}}

    def prepare(self, scenario: Scenario) -> None:
        if scenario.on:
            power = self.root / "folder" / "instances" / scenario.instance / "power"
            power.write_text(json.dumps([Power.RUNNING, 0]))
            Instance.objects.filter(external_id=scenario.instance).update(status="running")

    # Marks: files by which the processes of a cell tell each other what has happened.

    def mark(self, name: str, text: str = "") -> bool:
        """True for the first who makes it."""
        try:
            with (self.root / name).open("x") as file:
                file.write(text)
        except FileExistsError:
            return False
        return True

    def marked(self, name: str) -> str | None:
        try:
            return (self.root / name).read_text()
        except FileNotFoundError:
            return None

    # What has to be true once an operation has ended.

    def operation(self, kind: str) -> Operation | None:
        """The one that the cell is about: ``old`` was made before."""
        return Operation.objects.filter(kind=kind, created_at__gt=self.began).first()

    def complaints(self) -> list[str]:
        """Everything here that no row explains, every row that nothing explains, every promise that is not kept."""
        return [*self._files(), *self._contents(), *self._rows(), *self._instances()]

    @property
    def store(self) -> Path:
        return self.root / "folder" / "store"

    def _explained(self) -> dict[str, Snapshot | DeviceMapping]:
        files = (*Snapshot.objects.exclude(external_id=""), *DeviceMapping.objects.exclude(external_id=""))
        return {row.external_id: row for row in files}

    def _files(self) -> Iterator[str]:
        explained = self._explained()
        expected = set(explained) | {f"{name.split('/')[0]}/{note}" for name in explained for note in self.notes}
        store = self.store
        present = {str(path.relative_to(store)) for path in store.rglob("*") if not path.is_dir()}
        empty = {str(path.relative_to(store)) for path in store.rglob("*") if path.is_dir() and not any(path.iterdir())}
        yield from (f"no row explains {name}" for name in sorted((present | empty) - expected))
        # A deletion that was given up may have removed files whose rows are still there: it can be asked for again.
        halfway = {
            row.external_id.split("/")[0]
            for image in Image.objects.filter(status="error").exclude(available_at=None)
            for row in (mapping.file for mapping in image.mappings.all())
            if row.external_id
        }
        missing = (name for name in sorted(expected - present) if name.split("/")[0] not in halfway)
        yield from (f"a row names {name}, which is not there" for name in missing)

    def _contents(self) -> Iterator[str]:
        for image in Image.objects.filter(status="available"):
            for mapping in image.mappings.all():
                source = self.root / "folder" / "instances" / "db-1" / f"{mapping.device}.raw"
                if image.instance_name == "web-1":
                    source = source.parent.with_name("web-1") / source.name
                file = self.store / mapping.file.external_id
                if not mapping.file.external_id or not file.is_file() or file.read_bytes() != source.read_bytes():
                    yield f"{image.name} {mapping.device} is not what the disk was"

    def _rows(self) -> Iterator[str]:
        for operation in Operation.objects.filter(status__in=LIVE):
            yield f"{operation} is live: {operation.status} {operation.step}"
        for operation in Operation.objects.exclude(status__in=LIVE):
            if operation.holder or operation.ended_at is None or (operation.status != "done") != bool(operation.reason):
                yield f"{operation} ended {operation.status}, {operation.holder!r}, {operation.reason}"
        for litter in Litter.objects.all():
            yield f"litter {litter}"
        for image in Image.objects.all():
            rows = [mapping.snapshot for mapping in image.mappings.all() if mapping.snapshot]
            ended = {"available": {"available"}, "error": {"error"}}.get(image.status)
            told = bool(image.reason) == (image.status == "error")
            if ended is None or not told or not {str(row.status) for row in rows} <= ended:
                yield f"{image.name} is {image.status} ({image.reason}), snapshots {[row.status for row in rows]}"
            # The snapshots of a making that failed are gone; those of a deletion that failed can be asked for again.
            if image.status == "error" and rows and not image.available_at:
                yield f"{image.name} was not made and has snapshots"
        for snapshot in Snapshot.objects.filter(mappings=None):
            yield f"{snapshot} belongs to nothing"
        counted = uses(alice(), REGION)[Resource.SNAPSHOTS].used
        real = DeviceMapping.objects.exclude(snapshot=None).count()
        if counted != real:
            yield f"quota counts {counted} snapshots of {real}"

    def _instances(self) -> Iterator[str]:
        engine = engine_for(REGION)
        for row in Instance.objects.all():
            shown = status_of(engine.observe(row.external_id))
            if row.status != shown:
                yield f"{row} says {row.status}, the engine {shown}"
            if row.thaw_owed:
                yield f"{row} owes a thaw"
            for device in DISKS[row.name]:
                disk = self.root / "folder" / "instances" / row.name / f"{device}.raw"
                if disk.read_bytes() != random.Random(row.name + device).randbytes(SIZE // 2) + bytes(SIZE // 2):
                    yield f"{row} {device} has changed"

    def copiers(self) -> set[int]:
        """Living copiers of this world."""
        mark = f"{self.root}/"
        return {pid for pid in _pids() if "copier.py" in (words := processes.command_line(pid)) and mark in words}

    def everything(self) -> dict[str, Any]:
        """All that a ghost could change, for comparing."""
        tables = (Operation, Image, Snapshot, DeviceMapping, Litter)
        store = self.store
        return {
            **{table.__name__: sorted(map(str, table.objects.values_list())) for table in tables},
            "Instance": sorted(map(str, Instance.objects.values_list("name", "status", "reason", "thaw_owed"))),
            "store": sorted(
                f"{path.relative_to(store)} {path.stat().st_size} {path.stat().st_mtime_ns}"
                for path in store.rglob("*")
            ),
        }


def _pids() -> list[int]:
    return [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]


def image_again(instance: str) -> Image:
    """A new image of the same instance, as its owner would make it."""
    return create(instance, f"again-{timezone.now():%S%f}")

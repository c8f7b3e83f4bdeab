"""The cells on real QEMU, by name: what the folder engine cannot do, and what only QEMU and libvirtd can die of.

The mechanism is that of the folder cells. Libvirtd and its machines are shared by all of them (``tests.kill.lab``), so
they are played one by one. More points lie inside the engine's ``begin``: before its stand-in is made, before its
job is begun and after it, which for a running instance is between freeze and thaw. Every copy takes two seconds.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any, ClassVar

from django.conf import settings
from django.contrib.auth import get_user_model
from django.core.management import call_command
from django.db import connections

from compute import actions, inventory
from compute.engines.libvirt import LibvirtEngine, capture, domain
from compute.engines.store import RECORD
from compute.models import Disk, Instance
from compute.regions import engine_for
from compute.states import status_of
from images.models import Image
from tests.engines.worlds import COUNTER_DIGITS, qemu_img
from tests.kill import points
from tests.kill.cells import Cell, Shot
from tests.kill.director import Director, Pace
from tests.kill.faults import ACTIONS
from tests.kill.forks import aside
from tests.kill.lab import BLOCK, COUNTS, STILL, Lab, Machine, beginning, noise
from tests.kill.matrix import Matrix, Outcome
from tests.kill.points import Point, Points, watched
from tests.kill.world import IDLE, REGION, Scenario, World, alice, create
from tests.postgres import see

WatchedLibvirt = watched(LibvirtEngine)
COPY_SECONDS = 2
CLOSE = 2.0  # seconds between the instant that an image names and the one at which its job was seen to have begun
NEW = "new"


@dataclass(frozen=True)
class QemuCell(Cell):
    engine: str = "qemu"
    machine: str = COUNTS
    # What the image reached, "" when that depends on who was faster; and why it was not made.
    level: str = ""
    reason: str = ""
    begins: int = 1  # how often its instant was fixed
    runs: bool = True  # the one that counts, after it
    short: bool = False  # part of `make test`


# The named list ------------------------------------------------------------------------------------------------------


def at(phase: str, what: str, nth: int = 1) -> Point:
    return Point(phase, what, None, nth)


PLACES = {
    "before the room": at("room", "before"),
    "after the room": at("room", "after"),
    "before the freeze": at("capture", "engine begin"),
    "between freeze and job": at("capture", "engine backup"),
    "between job and thaw": at("capture", "engine backup returned"),
    "begun, not on the row": at("capture", "engine begin returned"),
    "while copying": at("capture", "engine look", 2),
    "as the job ends": at("capture", "engine end"),
    "during seal": at("seal", "engine seal"),
    "before the finish": at("seal", "after"),
}
OFFLINE = {
    "stopped: before the stand-in": at("capture", "engine stand-in"),
    "stopped: stand-in, no job": at("capture", "engine backup"),
    "stopped: job, not on the row": at("capture", "engine backup returned"),
    "stopped: while copying": at("capture", "engine look", 2),
    "stopped: as the job ends": at("capture", "engine end"),
}
UNDOING = {
    "before undoing seal": at("undo seal", "before"),
    "before undoing capture": at("undo capture", "before"),
    "before the discard": at("undo room", "engine discard"),
    "after the discard": at("undo room", "engine discard returned"),
}
INSIDE = ("between freeze and job", "between job and thaw")
LATE = Shot(PLACES["before the finish"], "cancel")
MIDDLE = Shot(PLACES["while copying"], "cancel")
SHORT = {
    ("horse", "SIGKILL", "between freeze and job"),
    ("horse", "SIGKILL", "begun, not on the row"),
    ("worker and horse", "SIGKILL", "while copying"),
    ("libvirtd", "SIGKILL", "while copying"),
    ("libvirtd", "SIGKILL", "between freeze and job"),
    ("owner", "cancels", "while copying"),
    ("owner cancels, horse", "SIGKILL", "between freeze and job"),
    ("ghost", "cancelled, revived after", "between freeze and job"),
    ("horse", "SIGKILL", "stopped: stand-in, no job"),
    ("horse", "SIGKILL", "start asked"),
}


def _cell(place: str, point: Point, victim: str, fault: str, end: str, *actions: str | Shot, **facts: Any) -> QemuCell:
    kind = facts.pop("kind", "create_image")
    always = facts.pop("always", False)
    shots = tuple(one if isinstance(one, Shot) else Shot(point, one, always) for one in actions)
    short = (victim, fault, place) in SHORT
    return QemuCell(kind, point.phase, place, victim, fault, end, shots, short=short, **facts)


def _made(place: str) -> str:
    """What an image reaches whose maker died there: nobody can claim a thaw that nobody lived to count."""
    return "crash" if place == "between job and thaw" else "frozen"


def named() -> Iterator[QemuCell]:
    nothing = at("", "")
    yield _cell("", nothing, "nobody", "nothing", "done", level="frozen")
    for place, point in PLACES.items():
        yield _cell(place, point, "horse", "SIGKILL", "done", "die", level=_made(place))
    for place, point in PLACES.items():
        # The guest is thawed by the time the next one comes. Who it was that began a job which ends meanwhile nobody
        # has written down, so it is begun again.
        begins = 2 if place == "between job and thaw" else 1
        yield _cell(place, point, "horse", "SIGSTOP", "done", "stop", level="frozen", begins=begins)
    for place in ("between freeze and job", "while copying"):
        point = PLACES[place]
        yield _cell(place, point, "worker and horse", "SIGKILL", "done", "die together", level=_made(place))
    for place in ("between job and thaw", "while copying"):
        yield _cell(place, PLACES[place], "keeper", "SIGKILL", "done", "keeper dies", level="frozen")
    # The holder is writing, so the keeper is not: stopped while it writes to SQLite it would hold up everybody.
    for nth, place in enumerate(("before the freeze", "while copying"), 1):
        writing = at("capture", "sql UPDATE compute_operation", nth)
        yield _cell(place, writing, "keeper", "SIGSTOP", "done", "keeper stops", level="frozen")
    for place in (*INSIDE, "while copying"):
        yield _cell(place, PLACES[place], "libvirtd", "SIGKILL", "done", "libvirtd dies")
    yield _cell("before the freeze", PLACES["before the freeze"], "engine", "refuses", "failed", "engine")
    place = "between freeze and job"
    yield _cell(place, PLACES[place], "engine", "refuses", "failed", "engine", reason="injected")
    yield _cell(place, PLACES[place], "horse", "SIGKILL always", "failed", "die", always=True, reason="gave-up")
    thaw = at("capture", "engine thaw")
    yield _cell("thaw", thaw, "engine", "broken until later", "failed", "nothing", broken="thaw", reason="injected")

    for place in ("before the room", "before the freeze", *INSIDE, "while copying", "during seal"):
        yield _cell(place, PLACES[place], "owner", "cancels", "cancelled", "cancel")
    for place in INSIDE:
        yield _cell(place, PLACES[place], "owner cancels, horse", "SIGKILL", "cancelled", "cancel", "die")
    for place, point in UNDOING.items():
        yield _cell(place, point, "horse", "SIGKILL", "cancelled", LATE, "die")
    place = "before the discard"
    yield _cell(place, UNDOING[place], "horse", "SIGSTOP", "cancelled", MIDDLE, "stop")
    yield _cell(place, UNDOING[place], "libvirtd", "SIGKILL", "cancelled", MIDDLE, "libvirtd dies")
    broken = {"broken": "discard", "litters": True}
    yield _cell(place, UNDOING[place], "engine", "broken until later", "cancelled", MIDDLE, "nothing", **broken)
    ghost = {"foreign": True, "alarmed": False}
    yield _cell("before the freeze", PLACES["before the freeze"], "ghost", "revived early", "done", "stop",
                revive="early", **ghost)  # fmt: skip
    for place in ("before the freeze", *INSIDE):
        facts = ghost | {"revive": "after", "cancelled_meanwhile": True}
        yield _cell(place, PLACES[place], "ghost", "cancelled, revived after", "cancelled", "stop", **facts)

    still = {"machine": STILL}
    yield _cell("stopped", nothing, "nobody", "nothing", "done", level="offline", **still)
    for place, point in OFFLINE.items():
        yield _cell(place, point, "horse", "SIGKILL", "done", "die", level="offline", **still)
    place = "stopped: before the stand-in"
    yield _cell(place, OFFLINE[place], "libvirtd", "SIGKILL", "done", "libvirtd dies", level="offline", **still)
    place = "stopped: stand-in, no job"
    yield _cell(place, OFFLINE[place], "horse", "SIGSTOP", "done", "stop", level="offline", **still)
    yield _cell(place, OFFLINE[place], "libvirtd", "SIGKILL", "done", "libvirtd dies", level="offline", **still)
    yield _cell(place, OFFLINE[place], "owner", "cancels", "cancelled", "cancel", **still)
    place = "stopped: while copying"
    yield _cell(place, OFFLINE[place], "libvirtd", "SIGKILL", "done", "libvirtd dies", level="offline", **still)
    yield _cell(place, OFFLINE[place], "owner", "cancels", "cancelled", "cancel", **still)
    vanished = still | {"reason": "copier-vanished"}
    yield _cell(place, OFFLINE[place], "stand-in", "SIGKILL", "failed", "stand-in dies", **vanished)

    for kind, phase, verb in (("start", "power_on", "start"), ("stop", "power_off", "stop")):
        facts = {"kind": kind, **still}
        yield _cell("", nothing, "nobody", "nothing", "done", **facts)
        asked, heard = at(phase, f"engine {verb}"), at(phase, f"engine {verb} returned")
        for place, point in ((f"{verb} not asked", asked), (f"{verb} asked", heard)):
            yield _cell(place, point, "horse", "SIGKILL", "done", "die", **facts)
            yield _cell(place, point, "libvirtd", "SIGKILL", "done", "libvirtd dies", **facts)

    # After these the guest has to boot again.
    off = {"runs": False}
    yield _cell("shutdown asked", at("power_off", "engine stop returned"), "horse", "SIGKILL", "done", "die",
                kind="stop", **off)  # fmt: skip
    place = "during seal"
    yield _cell(place, PLACES[place], "instance's QEMU", "SIGKILL", "done", "machine dies", level="frozen", **off)
    place = "while copying"
    stopped = off | {"reason": "instance-stopped"}
    yield _cell(place, PLACES[place], "instance's QEMU", "SIGKILL", "failed", "machine dies", **stopped)


# Points and faults ---------------------------------------------------------------------------------------------------


def _kill(pid_of: Callable[[QemuWorld], int]) -> Callable[[Points, World], None]:
    def kill(_: Points, world: World) -> None:
        assert isinstance(world, QemuWorld)
        os.kill(pid_of(world), signal.SIGKILL)

    return kill


ACTIONS.update(
    {
        "libvirtd dies": _kill(lambda world: int((world.lab.root / "r/libvirt/libvirtd.pid").read_text())),
        "machine dies": _kill(lambda world: world.lab.pid_of(COUNTS)),
        "stand-in dies": _kill(lambda world: world.lab.helpers().pop()),
    }
)


def watch_inside(world: QemuWorld) -> None:
    """Inside ``begin``: its points, what the guest had written when the job had begun, and a slow copy."""
    for name, what in (("stand_in_xml", "engine stand-in"), ("backup_xml", "engine backup")):
        setattr(domain, name, _met_before(getattr(domain, name), what))
    backup = capture._backup

    def watched_backup(dom: Any, facts: Any, targets: Any) -> None:
        backup(dom, facts, targets)
        if points.here is None or world.marked("over") is not None:
            return
        with (world.root / "begun").open("a") as file:
            file.write(json.dumps({"at": time.time(), "a": world.lab.written("vdb")}) + "\n")
        _slow(dom, targets)
        points.here.meet("engine backup returned", sys._getframe(1))

    capture._backup = watched_backup


def _met_before(describe: Callable[..., str], what: str) -> Callable[..., str]:
    """What is described is asked for at once."""

    def described(*args: Any) -> str:
        if points.here:
            points.here.meet(what, sys._getframe(1))
        return describe(*args)

    return described


def _slow(dom: Any, devices: Iterable[str]) -> None:
    import libvirt

    for device in devices:
        with suppress(libvirt.libvirtError):  # it is done already
            speed = dom.blockInfo(device)[0] // COPY_SECONDS
            dom.blockJobSetSpeed(device, speed, libvirt.VIR_DOMAIN_BLOCK_JOB_SPEED_BANDWIDTH_BYTES)


# A cell's world ------------------------------------------------------------------------------------------------------


@dataclass
class QemuWorld(World):
    """Rows and a store of its own, beside the machines of all cells."""

    cell: QemuCell = field(kw_only=True)
    lab: Lab = field(kw_only=True)
    before: dict[str, Machine] = field(default_factory=dict, kw_only=True)
    notes: ClassVar[tuple[str, ...]] = (RECORD, capture.NOTE, capture.COPIED)

    @property
    def store(self) -> Path:
        return self.root / "store"

    def enter(self, engine: str, rate: int | None = None) -> None:
        see(f"sqlite:///{self.root}/rows.sqlite3", idle_seconds=IDLE)
        options = {"URI": self.lab.libvirtd.uri, "STORE": str(self.store)}
        settings.ENGINES = {REGION: {"BACKEND": "tests.kill.qemu.WatchedLibvirt", "OPTIONS": options}}

    def prepare(self, scenario: Scenario) -> None:
        self.before = aside(self.lab.ready)
        if scenario.on and scenario.instance == self.lab.ids[STILL]:
            aside(lambda: engine_for(REGION).start(scenario.instance))
            Instance.objects.filter(external_id=scenario.instance).update(status="running")

    def complaints(self) -> list[str]:
        running = {COUNTS: self.cell.runs, STILL: self.cell.kind == "start"}
        now = [*self._files(), *self._rows(), *self._instances(), *self.lab.complaints(self.before, running)]
        return now or [*self._contents(), *self._told()]

    def _instances(self) -> Iterator[str]:
        for row in Instance.objects.all():
            shown = status_of(engine_for(REGION).observe(row.external_id))
            if row.status != shown:
                yield f"{row} says {row.status}, the engine {shown}"
            if row.thaw_owed:
                yield f"{row} owes a thaw"

    def _contents(self) -> Iterator[str]:
        for image in Image.objects.filter(status="available"):
            numbers = {}
            for mapping in image.mappings.all():
                device, row = mapping.device, mapping.file
                path, what = self.store / row.external_id, f"{image.name} {mapping.device}"
                qemu_img("check", "-f", row.format, path)
                if sha256(path.read_bytes()).hexdigest() != row.sha256:
                    yield f"{what} is not what was hashed"
                if image.instance_name == COUNTS and device == "vda":
                    continue
                content = beginning(path, row.format)
                counted = BLOCK if image.instance_name == COUNTS else 0
                numbers[device] = int(content[:COUNTER_DIGITS]) if counted else 0
                if content[counted:] != noise(image.instance_name, device)[counted:]:
                    yield f"{what} is not what the disk was"
            if image.instance_name == COUNTS:
                a, b, c = (numbers[device] for device in ("vdb", "vdc", "vdd"))
                if not (a >= b >= c and a - c <= 1):
                    yield f"{image.name} is of no instant: {a}, {b}, {c}"
                yield from self._of_its_time(image, a, c)

    def _of_its_time(self, image: Image, a: int, c: int) -> Iterator[str]:
        if c < int(self.marked("asked") or 0):
            yield f"{image.name} is older than the click"
        if image.name == NEW and a > self._begun()[-1]["a"]:
            yield f"{image.name} is younger than its job"

    def _begun(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.marked("begun") or "").splitlines()]

    def _told(self) -> Iterator[str]:
        """What the image says of itself, and how often its instant was fixed."""
        cell = self.cell
        for image in Image.objects.filter(name=NEW, status="error"):
            if cell.reason and image.reason["code"] != cell.reason:
                yield f"{image.name} says {image.reason}"
        for image in Image.objects.filter(name=NEW, status="available"):
            if cell.level and image.consistency != cell.level:
                yield f"{image.name} is {image.consistency}"
            begun = self._begun()
            if len(begun) != cell.begins:
                yield f"its job was begun {len(begun)} times"
            elif abs(image.instant.timestamp() - begun[-1]["at"]) > CLOSE:
                yield f"{image.name} names {image.instant}, its job was begun at {begun[-1]['at']}"

    def copiers(self) -> set[int]:
        return self.lab.helpers()


class QemuDirector(Director):
    pace = Pace(silence=6.0, stall=8.0, maximum=40.0, thaw_after=2.0, inventory_every=1.0, settled=15.0, deadline=100.0)
    cell: QemuCell
    world: QemuWorld

    def scenario_of(self, cell: Cell) -> Scenario:
        lab, kind = self.world.lab, cell.kind
        identity = lab.ids[self.cell.machine]

        def click() -> None:
            row = Instance.objects.get(external_id=identity)
            if kind == "create_image":
                self.world.mark("asked", str(lab.written("vdd")))
                create(identity, NEW)
            elif kind == "start":
                actions.start(by=alice(), instance=row)
            else:
                actions.stop(by=alice(), instance=row, force=self.cell.machine == STILL)

        return Scenario(identity, click, on=kind == "stop")

    def complaints(self) -> list[str]:
        return aside(self.world.complaints)

    def diagnosis(self) -> list[str]:
        return aside(super().diagnosis)


class QemuMatrix(Matrix):
    """One cell after another. The machines are there while they are played."""

    last = 400.0
    in_memory = False  # a store is a few hundred MiB

    def __init__(self, without: frozenset[str], jobs: int, *, keep: bool = False, postgres: bool = False) -> None:
        super().__init__(without, 1, keep=keep)  # its rows are always in SQLite

    def cells(self) -> list[Cell]:
        return list(named())

    def play(self, cells: Sequence[Cell]) -> Generator[Outcome, None, None]:
        if cells:
            with Lab() as self.lab:
                self._make_template()
                yield from super().play(cells)

    def prepare(self) -> None:
        """Nothing yet: no machine has to boot before there is something to play."""

    def _make_template(self) -> None:
        world = self._world(named().__next__(), self.template)
        world.store.mkdir(mode=0o700, parents=True)

        def fill() -> None:
            world.enter("")
            call_command("migrate", verbosity=0)
            get_user_model().objects.create(username="alice")
            inventory.sync(REGION)
            Instance.objects.update(owner=alice())
            Disk.objects.update(owner=alice())
            connections.close_all()

        aside(fill)

    def _world(self, cell: QemuCell, root: Path) -> QemuWorld:
        return QemuWorld(root, None, cell=cell, lab=self.lab)

    def director(self, cell: Cell, root: Path) -> Director:
        assert isinstance(cell, QemuCell)
        shutil.copytree(self.template, root)
        world = self._world(cell, root)
        watch_inside(world)
        return QemuDirector(cell, world, self.without)

"""Plain files with no machine behind them: for laptops without QEMU, and for crash tests.

::

    ROOT/instances/<id>/instance.json   {"name", "vcpus", "memory_mib", "os", "disks": [{"device", "file", "medium"}]}
    ROOT/instances/<id>/<file>          a raw disk
    ROOT/store/                         the image store

Power is an ability it lacks: instances are always stopped. A capture is real: a detached copier moves the bytes.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Generator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from compute.engines import copier, processes
from compute.engines.base import (
    Abilities,
    Captured,
    Consistency,
    DiskFacts,
    Engine,
    EngineError,
    Handle,
    Holding,
    InstanceFacts,
    Inventory,
    Look,
    Part,
    Power,
    Sealed,
    Unreachable,
    WorkState,
)
from compute.engines.store import Store, told

START_DEADLINE = 10  # seconds until a copier must hold its lock
COPIER_FILES = ("copy.json", "copy.lock", "copy.progress", "copy.result")
COPIER_MEMORY = 1 << 30

_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")


class FolderEngine(Engine):
    """Options: ``ROOT``, an absolute directory; ``RATE``, bytes per second of a copy (optional: as fast as it goes)."""

    abilities = Abilities(power=False, live_capture=False, one_instant=True, freeze=False)

    def __init__(self, region: str, options: Mapping[str, Any]) -> None:
        super().__init__(region, options)
        self.instances = Path(options["ROOT"]) / "instances"
        self.store = Store(Path(options["ROOT"]) / "store", check_qcow2=False, notes=COPIER_FILES)
        self.rate: int | None = options.get("RATE")

    @classmethod
    def create(cls, root: Path) -> None:
        """Make the two directories of a region. A missing one is never made on the way: it may not be mounted."""
        for place in (root / "instances", root / "store"):
            place.mkdir(parents=True, exist_ok=True, mode=0o700)

    def add_instance(self, identity: str, name: str, disks: list[dict[str, Any]], **facts: Any) -> None:
        """Describe an instance whose raw disk files already lie in its directory; it exists from then on."""
        place = self._instance(identity)
        draft = place / "instance.json.new"
        draft.write_text(json.dumps({"name": name, "vcpus": 1, "memory_mib": 256, "os": "", "disks": disks} | facts))
        draft.rename(place / "instance.json")

    def versions(self) -> dict[str, str]:
        return {"folder": "1"}

    def inventory(self) -> Inventory:
        self._present()
        places = sorted(place for place in self.instances.iterdir() if (place / "instance.json").is_file())
        free, total = self.store.space()
        return Inventory(tuple(facts for place in places if (facts := self.observe(place.name))), free, total)

    def space(self) -> tuple[int, int] | None:
        return self.store.space()

    def holdings(self) -> list[Holding]:
        held = self.store.holdings()
        for key in {holding.key for holding in held if holding.key}:
            room = self._room(key)
            if room is not None and (copier := _holder(room)):
                held.append(Holding(f"PID {copier.split('/')[2]}", key, works=True))
        return held

    def prove(self) -> None:
        self._present()
        self.store.prove("raw", shutil.copyfile)

    def observe(self, instance: str) -> InstanceFacts | None:
        self._present()
        place = self._instance(instance)
        try:
            about = json.loads((place / "instance.json").read_bytes())
        except FileNotFoundError:
            return None
        disks = tuple(self._disk(instance, disk) for disk in sorted(about["disks"], key=lambda disk: disk["device"]))
        return InstanceFacts(
            instance, about["name"], Power.STOPPED, about["vcpus"], about["memory_mib"], disks, os=about["os"]
        )

    def start(self, instance: str) -> None:
        raise EngineError("no-power")

    def stop(self, instance: str, *, force: bool) -> None:
        raise EngineError("no-power")

    def thaw(self, instance: str) -> bool:
        return True

    def make_room(self, key: str) -> None:
        self.store.make_room(key)

    def begin(self, key: str, instance: str, parts: tuple[Part, ...]) -> tuple[Handle, Captured]:
        room = self.store.room(key)
        with told():
            if not (room / "copy.result").exists() and not _holder(room):
                # Either nobody began, or a copier died: whatever it wrote is of no use.
                self._start_copier(key, room, parts)
            instant = datetime.fromisoformat(json.loads((room / "copy.json").read_bytes())["instant"])
        handle: Handle = {"key": key, "parts": [part.name for part in parts]}
        return handle, Captured(Consistency.OFFLINE, instant)

    def look(self, handle: Handle) -> Look:
        room = self._room(handle["key"])
        if room is None:
            return Look(WorkState.LOST)
        holder = _holder(room)  # asked before the result is read: it is written before the lock is let go
        if holder is not None and processes.is_stopped(holder):
            processes.go_on(holder)  # it is ours, and nobody else would
        parts: dict[str, tuple[int, int] | None] = dict.fromkeys(handle["parts"])
        if (progress := _read(room / "copy.progress")) is not None:
            parts |= {name: (done, total) for name, (done, total) in progress.items()}
        result = _read(room / "copy.result")
        if result is None:
            return Look(WorkState.RUNNING if holder else WorkState.LOST, parts)
        if "code" in result:
            return Look(WorkState.FAILED, parts, EngineError(result["code"], **result["data"]))
        return Look(WorkState.DONE, parts)

    def end(self, handle: Handle) -> None:
        room = self._room(handle["key"])
        if room is None:
            return  # sealed or discarded already
        for name in COPIER_FILES:
            (room / name).unlink(missing_ok=True)

    def seal(self, key: str, parts: Mapping[str, int]) -> Generator[dict[str, int], None, dict[str, Sealed]]:
        return (yield from self.store.seal(key, parts))

    def discard(self, key: str, handle: Handle | None) -> bool:
        room = self._room(key)
        if room is not None and (holder := _holder(room)) is not None:
            processes.kill(holder)
            return False  # the room goes once it has gone
        return self.store.discard(key)

    def erase(self, stored: str) -> bool:
        return self.store.erase(stored)

    def _present(self) -> None:
        if not self.instances.is_dir():
            raise Unreachable(store=str(self.instances))

    def _room(self, key: str) -> Path | None:
        try:
            return self.store.room(key)
        except EngineError as error:
            if error.code != "no-room":
                raise
            return None

    def _instance(self, identity: str) -> Path:
        if not _ID.fullmatch(identity):
            raise ValueError(f"not an instance of this engine: {identity!r}")
        return self.instances / identity

    def _file(self, disk: str) -> Path:
        instance, _, file = disk.partition("/")
        if not _ID.fullmatch(file):
            raise ValueError(f"not a disk of this engine: {disk!r}")
        return self._instance(instance) / file

    def _disk(self, instance: str, about: dict[str, Any]) -> DiskFacts:
        identity = f"{instance}/{about['file']}"
        path = self._file(identity)
        size, allocated, problem = 0, None, "disk-missing"
        if path.is_file() and not path.is_symlink():
            stat = path.stat()
            size, allocated, problem = stat.st_size, stat.st_blocks * 512, ""
        return DiskFacts(identity, about["device"], size, "raw", about["medium"], allocated, False, problem)

    def _start_copier(self, key: str, room: Path, parts: tuple[Part, ...]) -> None:
        """Start it so that it belongs to nobody, and return once one, this or another, holds the room's lock."""
        targets = {part.name: {"source": str(self._file(part.disk)), "target": f"{part.name}.raw"} for part in parts}
        order = json.dumps({"rate": self.rate, "parts": targets}).encode()
        limits = ("prlimit", f"--as={COPIER_MEMORY}", "--core=0")
        command = (*limits, "setsid", "--fork", sys.executable, "-I", copier.__file__, str(room))
        quiet = subprocess.DEVNULL
        subprocess.run(command, input=order, stdout=quiet, stderr=quiet, check=True, timeout=START_DEADLINE)
        deadline = time.monotonic() + START_DEADLINE
        while _holder(room) is None and not (room / "copy.result").exists():
            self.store.room(key)  # gone, it is nothing to wait for
            if time.monotonic() > deadline:
                raise EngineError("copier-did-not-start")
            time.sleep(0.01)


def _holder(room: Path) -> str | None:
    """Name of the copier that lives in this room (see ``processes``), or None."""
    try:
        lock = os.open(room / "copy.lock", os.O_RDWR | os.O_NOFOLLOW)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return None
    except BlockingIOError:
        pid = os.pread(lock, 20, 0)
    finally:
        os.close(lock)
    try:
        # It takes the lock first and writes its pid later: between the two, the pid is none or an old one's.
        name = processes.name_of(int(pid))
        command = Path(f"/proc/{int(pid)}/cmdline").read_bytes().split(b"\0")
    except (ValueError, FileNotFoundError, ProcessLookupError):
        return None
    return name if str(room).encode() in command else None


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError:
        return None

"""A capture: one push backup job inside QEMU, of all chosen disks as of one instant.

A running instance copies its own disks, inside a freeze. The disks of a stopped one are copied by a stand-in: a
paused domain of ours that holds them read-only. Either job goes on without us and without libvirtd, and is found
again by the files it writes, which lie in the operation's room. Two notes lie there too:

* ``capture.json``: handle and instant, written when the job has begun; begin again and it answers the same;
* ``copied``: written when the job was seen to have succeeded, since libvirt forgets results.
"""

from __future__ import annotations

import fcntl
import json
import os
import struct
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from compute.engines.base import Captured, Consistency, EngineError, Handle, Holding, Look, Part, Power, WorkState
from compute.engines.libvirt import agent, disks, domain, machines
from compute.engines.libvirt import binding as lv
from compute.engines.libvirt.connection import cut_off, hangs
from compute.engines.store import OPEN, Store, put, told

NOTE, COPIED = "capture.json", "copied"
ABORT_SECONDS = 5
FLOCK = "hhqqi4x"  # struct flock of Linux
# The first byte, and how many, by which QEMU's processes tell each other what they do with a file.
QEMU_LOCKS = (100, 200)
PROOF_SECONDS = 20


@dataclass(frozen=True)
class Room:
    """Where one operation's files lie while it runs, and the mark on what works for it."""

    path: Path
    mark: domain.StandIn

    def target(self, part: str) -> Path:
        return self.path / f"{part}.qcow2"


def begin(conn: Any, room: Room, instance: str, parts: tuple[Part, ...], domain_type: str) -> tuple[Handle, Captured]:
    """Start or find the job that fills the room; see ``Engine.begin``."""
    if (room.path / NOTE).exists():
        return _read_note(room)
    dom = machines.present(conn, instance)
    facts = domain.read(dom.XMLDesc(0))
    chosen = {part.name: _chosen(facts, part) for part in parts}
    sizes = {name: disks.measured(disk).size for name, disk in chosen.items()}
    targets = {disk.device: room.target(name) for name, disk in chosen.items()}
    stand_in = machines.find(conn, domain.stand_in_uuid(room.mark))
    worker = stand_in or dom

    if _fills(worker, room):
        # The one who began died before the note was written: what it froze and thawed, nobody knows.
        if worker is dom:
            agent.thaw(dom)
        asked = worker is dom
        began = datetime.now(UTC) - timedelta(milliseconds=worker.jobStats().get("time_elapsed", 0))
        captured = Captured(Consistency.CRASH if asked else Consistency.OFFLINE, began, asked=asked)
    else:
        for target in targets.values():
            target.unlink(missing_ok=True)  # of a job that nobody can say the end of
        if stand_in is None and machines.power(dom) is Power.RUNNING:
            captured = _begin_running(dom, facts, targets)
        else:
            sources = [domain.DiskSource(disk.device, disk.path, disk.format) for disk in chosen.values()]
            xml = domain.stand_in_xml(room.mark, sources, domain_type)
            worker = stand_in or _stand_in(conn, dom, xml)
            captured = _begin_stopped(worker, targets)

    handle = {
        "key": room.mark.key,
        "domain": worker.UUIDString(),
        "stand_in": worker is not dom,
        "devices": {name: disk.device for name, disk in chosen.items()},
        "sizes": sizes,
    }
    try:
        _write_note(room, handle, captured)
    except OSError:
        abort(conn, room, handle)
        raise
    return handle, captured


def look(conn: Any, handle: Handle, room: Room) -> Look:
    """How far the job is; see ``Engine.look``."""
    try:
        return _look(conn, handle, room)
    except lv.libvirtError as error:
        # It went away between two of the questions; that it is gone is an answer.
        if not machines.gone(error):
            raise
        return _look(conn, handle, room)


def end(conn: Any, handle: Handle) -> None:
    """Destroy the stand-in, or let libvirt forget the job's result."""
    dom = machines.find(conn, handle["domain"])
    if dom is None:
        return
    if handle["stand_in"]:
        _destroy(dom)
    else:
        _result(dom, keep=False)


def abort(conn: Any, room: Room, handle: Handle | None) -> bool:
    """Stop whatever fills the room, also without knowing who it is. True once nothing does."""
    if handle is None and (room.path / NOTE).exists():
        handle, _ = _read_note(room)
    stand_in = machines.find(conn, domain.stand_in_uuid(room.mark))
    if stand_in is not None:
        _destroy(stand_in)
    busy = [dom for dom in conn.listAllDomains(lv.VIR_CONNECT_LIST_DOMAINS_ACTIVE) if _fills(dom, room)]
    for dom in busy:
        with suppress(lv.libvirtError):  # it ended by itself a moment ago
            dom.abortJob()
    deadline = time.monotonic() + ABORT_SECONDS
    while any(_fills(dom, room) for dom in busy):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    if handle is not None and (dom := machines.find(conn, handle["domain"])) is not None:
        _wake(dom)
    return True


def works(conn: Any, store: Store) -> list[Holding]:
    """Stand-ins of the store, and jobs that write into one of its rooms."""
    found = []
    for dom in conn.listAllDomains(lv.VIR_CONNECT_LIST_DOMAINS_ACTIVE):
        try:
            facts = domain.read(dom.XMLDesc(0))
            rooms = {target.parent for target in _targets(dom).values()}
        except lv.libvirtError as error:
            if not machines.gone(error):
                raise
            continue
        keys = {room.name.removesuffix(OPEN) for room in rooms if room.parent == store.root}
        if facts.stand_in is not None and facts.stand_in.store == str(store.root):
            keys.add(facts.stand_in.key)
        found += [Holding(facts.name, key, works=True) for key in sorted(keys)]
    return found


def prove(conn: Any, room: Room, disk: Path, file: Path, domain_type: str) -> None:
    """Let QEMU copy a raw disk as it would a stopped instance's. The stand-in dies with us."""
    xml = domain.stand_in_xml(room.mark, [domain.DiskSource("vda", disk, "raw")], domain_type)
    stand_in = _created(conn, xml, lv.VIR_DOMAIN_START_PAUSED | lv.VIR_DOMAIN_START_AUTODESTROY)
    try:
        _backup(stand_in, domain.read(stand_in.XMLDesc(0)), {"vda": file})
        deadline = time.monotonic() + PROOF_SECONDS
        while _fills(stand_in, room) or _is_open(file):
            if time.monotonic() > deadline:
                raise EngineError("stalled", seconds=PROOF_SECONDS)
            time.sleep(0.02)
        result = _result(stand_in, keep=False)
        if not result.get("success"):
            raise EngineError("copy-failed", errno=result.get("errmsg") or "?")
    finally:
        _destroy(stand_in)


def clear_orphan(dom: Any, mark: domain.StandIn, store: Store) -> None:
    """Destroy a stand-in of this store whose room is gone: its maker died while libvirt was still starting it."""
    if mark.store == str(store.root) and not store.opened(mark.key).is_dir():
        _destroy(dom)


def _look(conn: Any, handle: Handle, room: Room) -> Look:
    sizes: Mapping[str, int] = handle["sizes"]
    complete = {name: (size, size) for name, size in sizes.items()}
    if not (room.path / COPIED).exists():
        dom = machines.find(conn, handle["domain"])
        if dom is not None and _fills(dom, room):
            seen = {name: _progress(dom, handle["devices"][name], size) for name, size in sizes.items()}
            return Look(WorkState.RUNNING, seen)
        if (failure := _failure(dom, handle, room)) is not None:
            return Look(WorkState.FAILED, error=failure)
        if any(_is_open(room.target(name)) for name in sizes):
            return Look(WorkState.RUNNING, complete)
        if not _answers(dom, handle):
            return Look(WorkState.FAILED, error=_stopped(handle))
        (room.path / COPIED).touch()
    return Look(WorkState.DONE, complete)


def _begin_running(dom: Any, facts: domain.DomainFacts, targets: Mapping[str, Path]) -> Captured:
    if dom.jobStats().get("type"):
        # libvirt would wait half a minute for it and then refuse.
        raise EngineError("instance-busy")
    asked = time.monotonic()
    # One that is not connected hears nothing, now or later: then nothing is owed.
    frozen = agent.freeze(dom) if facts.agent else None
    thawed = None
    try:
        instant = datetime.now(UTC)
        _backup(dom, facts, targets)
    except EngineError:
        _wake(dom)
        raise
    finally:
        if facts.agent:
            thawed = agent.thaw(dom)
    if frozen and thawed == frozen:
        milliseconds = round(1000 * (time.monotonic() - asked))
        return Captured(Consistency.FROZEN, instant, frozen, thawed, milliseconds, asked=True)
    return Captured(Consistency.CRASH, instant, frozen, thawed, asked=facts.agent)


def _begin_stopped(stand_in: Any, targets: Mapping[str, Path]) -> Captured:
    instant = datetime.now(UTC)
    try:
        _backup(stand_in, domain.read(stand_in.XMLDesc(0)), targets)
    except EngineError:
        _destroy(stand_in)
        raise
    return Captured(Consistency.OFFLINE, instant)


def _stand_in(conn: Any, dom: Any, xml: str) -> Any:
    if (power := machines.power(dom)) is not Power.STOPPED:
        raise EngineError("instance-state", power=power)
    if dom.hasManagedSaveImage():
        # Its disks are those of a machine that still runs, only its memory lies in a file.
        raise EngineError("instance-saved")
    return _created(conn, xml, lv.VIR_DOMAIN_START_PAUSED)


def _created(conn: Any, xml: str, flags: int) -> Any:
    try:
        return conn.createXML(xml, flags)
    except lv.libvirtError as error:
        if cut_off(error):
            raise
        said = error.get_error_message() or ""
        raise EngineError("disk-in-use" if "lock" in said else "stand-in-failed", said=said) from error


def _backup(dom: Any, facts: domain.DomainFacts, targets: Mapping[str, Path]) -> None:
    # What libvirt may still keep of an earlier job must not be taken for ours.
    _result(dom, keep=False)
    try:
        dom.backupBegin(domain.backup_xml(facts, targets), None, 0)
    except lv.libvirtError as error:
        if cut_off(error):
            raise
        said = error.get_error_message() or ""
        raise EngineError("store-full" if "No space left" in said else "capture-refused", said=said) from error


def _chosen(facts: domain.DomainFacts, part: Part) -> domain.DomainDisk:
    for disk in facts.disks:
        if disk.source == part.disk:
            if disk.problem:
                raise EngineError(disk.problem, device=disk.device)
            return disk
    raise EngineError("disk-vanished", device=part.name)


def _fills(dom: Any, room: Room) -> bool:
    """Does a backup run on this domain that writes into the room?"""
    return any(target.parent == room.path for target in _targets(dom).values())


def _targets(dom: Any) -> dict[str, Path]:
    """Device → file of the backup that runs on this domain; {} when none does."""
    try:
        return domain.backup_targets(dom.backupGetXMLDesc(0))
    except lv.libvirtError as error:
        none = (lv.VIR_ERR_NO_DOMAIN_BACKUP, lv.VIR_ERR_NO_DOMAIN, lv.VIR_ERR_OPERATION_INVALID)
        if error.get_error_code() not in none:
            raise
        return {}


def _progress(dom: Any, device: str, size: int) -> tuple[int, int] | None:
    try:
        job = dom.blockJobInfo(device, 0)
    except lv.libvirtError as error:
        if cut_off(error) or hangs(error):
            raise
        # QEMU is just dying; the next look will see it.
        return None
    # A disk whose job has ended while others go on is complete.
    return (min(job["cur"], size) if job else size), size


def _failure(dom: Any | None, handle: Handle, room: Room) -> EngineError | None:
    """Why a job that no longer runs did not succeed; None when it did."""
    if dom is None:
        return EngineError("copier-vanished" if handle["stand_in"] else "instance-vanished")
    result = _result(dom, keep=True)
    if result.get("success") and all(room.target(name).exists() for name in handle["sizes"]):
        return None
    said = result.get("errmsg", "")
    if "No space left" in said:
        return EngineError("store-full")
    if not dom.isActive():
        return _stopped(handle)
    # A guest that switched itself off is between running and stopped for half a minute.
    if machines.power(dom) is Power.CHANGING:
        return EngineError("instance-stopped")
    return EngineError("copy-failed", errno=said or "?") if result.get("type") else EngineError("result-lost")


def _stopped(handle: Handle) -> EngineError:
    return EngineError("copier-vanished" if handle["stand_in"] else "instance-stopped")


def _is_open(target: Path) -> bool:
    """Does QEMU still have the file open? libvirt tells of success before QEMU has written the last of its tables.

    Ended before that, it would leave a file that ``qemu-img check`` calls clean and that lacks what was copied last.
    """
    with told(), target.open("rb") as file:
        asked = struct.pack(FLOCK, fcntl.F_WRLCK, os.SEEK_SET, *QEMU_LOCKS, 0)
        held, *_ = struct.unpack(FLOCK, fcntl.fcntl(file, fcntl.F_OFD_GETLK, asked))
    return bool(held != fcntl.F_UNLCK)


def _answers(dom: Any, handle: Handle) -> bool:
    """Does the QEMU that copied still live, so that it has closed the files, and did not just die with them open?"""
    try:
        dom.blockStats(next(iter(handle["devices"].values())))
    except lv.libvirtError as error:
        if cut_off(error) or hangs(error):
            raise
        return False
    return True


def _result(dom: Any, *, keep: bool) -> dict[str, Any]:
    """How the last job on this domain ended, {} when libvirt does not know; not kept, it is forgotten."""
    flags = lv.VIR_DOMAIN_JOB_STATS_COMPLETED | (lv.VIR_DOMAIN_JOB_STATS_KEEP_COMPLETED if keep else 0)
    try:
        result: dict[str, Any] = dom.jobStats(flags)
    except lv.libvirtError as error:
        # So it answers for a domain that is not running when there is nothing to tell.
        if error.get_error_code() != lv.VIR_ERR_OPERATION_INVALID:
            raise
        return {}
    return result


def _wake(dom: Any) -> None:
    """Let a guest go on that waits since one of its writes could not be copied first, as when the store is full.

    QEMU fails such a write and pauses the guest. With the job gone the write is repeated, and nothing is lost.
    """
    if dom.state() == [lv.VIR_DOMAIN_PAUSED, lv.VIR_DOMAIN_PAUSED_IOERROR]:
        dom.resume()


def _destroy(dom: Any) -> None:
    try:
        dom.destroy()
    except lv.libvirtError as error:
        if error.get_error_code() not in (lv.VIR_ERR_NO_DOMAIN, lv.VIR_ERR_OPERATION_INVALID):
            raise


def _write_note(room: Room, handle: Handle, captured: Captured) -> None:
    instant = None if captured.instant is None else captured.instant.isoformat()
    put(room.path / NOTE, {"handle": handle, "captured": {**asdict(captured), "instant": instant}})


def _read_note(room: Room) -> tuple[Handle, Captured]:
    note = json.loads((room.path / NOTE).read_text())
    facts = note["captured"]
    facts["consistency"] = Consistency(facts["consistency"])
    facts["instant"] = None if facts["instant"] is None else datetime.fromisoformat(facts["instant"])
    return note["handle"], Captured(**facts)

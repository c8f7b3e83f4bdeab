"""What only an engine with real machines can show: running instances, and deaths in the middle (R8, R10, R24)."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time

import pytest

from compute.engines.base import Captured, Consistency, EngineError, Handle, Power, Unreachable, WorkState
from compute.engines.libvirt import capture
from compute.operations import Released
from tests.engines.worlds import GUEST, LARGE, MIB, Guest, LibvirtWorld, ended, sealed, until

pytestmark = pytest.mark.qemu

KEY = "c0ffee"


def slowly(guest: Guest) -> tuple[Handle, Captured]:
    """A capture of the running guest's large disk and a small one that is in the middle of its copy."""
    world = guest.world
    world.engine().make_room(KEY)
    handle, captured = world.begin_slowly(KEY, guest.id, world.parts(guest.id, "vdb", "vdc"))
    assert world.engine().look(handle).state is WorkState.RUNNING
    return handle, captured


def finished(guest: Guest, handle: Handle) -> None:
    """Let it go on, and see it end well and whole."""
    world = guest.world
    world.hurry(handle)
    assert ended(world.engine(), handle).state is WorkState.DONE
    world.engine().end(handle)
    parts = sealed(world.engine(), KEY, world.sizes(guest.id, "vdb", "vdc"))
    assert {part.size for part in parts.values()} == {64 * MIB, LARGE}


def described(guest: Guest) -> list[str]:
    """The machine's definition, as it runs and as it would be started next."""
    import libvirt

    with guest.world.connected() as conn:
        dom = conn.lookupByUUIDString(guest.id)
        return [dom.XMLDesc(flags) for flags in (0, libvirt.VIR_DOMAIN_XML_INACTIVE)]


def test_a_running_instance_is_captured_inside_a_freeze_and_goes_on_unchanged(guest: Guest) -> None:
    before = described(guest)
    facts = guest.world.facts(guest.id)
    assert facts.power is Power.RUNNING
    assert facts.agent is True
    assert facts.os.startswith("Stillframe")

    handle, captured = slowly(guest)
    assert captured.consistency is Consistency.FROZEN
    assert captured.frozen is not None
    assert captured.frozen > 0
    assert captured.thawed == captured.frozen
    assert captured.freeze_ms is not None
    assert 0 < captured.freeze_ms < 10_000
    seen = guest.world.engine().look(handle)
    assert seen.parts["vdc"] is not None
    assert seen.parts["vdc"][0] < seen.parts["vdc"][1] == LARGE
    guest.counts()
    finished(guest, handle)

    assert described(guest) == before
    guest.counts()
    assert not [path for path in guest.world.left() if "vda" in path or "vdd" in path]


def test_cancelling_leaves_no_file_and_a_guest_that_runs(guest: Guest) -> None:
    handle, _ = slowly(guest)

    until(lambda: guest.world.engine().discard(KEY, handle))

    assert guest.world.left() == []
    guest.counts()


def test_a_capture_whose_maker_died_before_it_could_say_so_is_found_by_its_files(guest: Guest) -> None:
    handle, first = slowly(guest)
    (guest.world.store / f"{KEY}.creating" / capture.NOTE).unlink()

    again, captured = guest.world.engine().begin(KEY, guest.id, guest.world.parts(guest.id, "vdb", "vdc"))

    assert again == handle
    assert captured.consistency is Consistency.CRASH, "nobody knows whether its thaw gave back all it froze"
    assert captured.instant is not None
    assert first.instant is not None
    assert abs((captured.instant - first.instant).total_seconds()) < 3
    finished(guest, handle)


def test_a_capture_outlives_the_death_of_libvirtd(guest: Guest) -> None:
    engine = guest.world.engine()
    handle, _ = slowly(guest)
    assert engine.look(handle).state is WorkState.RUNNING

    guest.world.libvirtd.stop(kill=True)
    for ask in (lambda: engine.look(handle), engine.inventory, lambda: engine.discard("other", None)):
        with pytest.raises(Unreachable):
            ask()
    guest.world.libvirtd.start()
    guest.world.libvirtd.wait_ready()

    assert engine.look(handle).state is WorkState.RUNNING
    finished(guest, handle)


def test_a_capture_whose_machine_is_killed_fails_with_a_reason_and_leaves_nothing(guest: Guest) -> None:
    handle, _ = slowly(guest)

    guest.world.kill_machine(guest.id)

    look = ended(guest.world.engine(), handle)
    assert look.state is WorkState.FAILED
    assert look.error is not None
    assert look.error.code == "instance-stopped"
    until(lambda: guest.world.engine().discard(KEY, handle))
    assert guest.world.left() == []
    assert guest.world.facts(guest.id).power is Power.STOPPED


def test_a_guest_that_hangs_holds_up_nobody_else(guest: Guest) -> None:
    handle, _ = slowly(guest)
    engine = guest.world.engine()
    pid = guest.world.machine_pid(guest.id)
    os.kill(pid, signal.SIGSTOP)
    try:
        with pytest.raises(Unreachable):
            engine.look(handle)
        assert GUEST in {facts.name for facts in engine.inventory().instances}
    finally:
        os.kill(pid, signal.SIGCONT)
    assert until(lambda: engine.look(handle).state) is WorkState.RUNNING
    finished(guest, handle)


def test_a_finished_capture_is_ended_also_after_its_machine_has_stopped(guest: Guest) -> None:
    handle, _ = slowly(guest)
    engine = guest.world.engine()
    guest.world.hurry(handle)
    assert ended(engine, handle).state is WorkState.DONE

    engine.stop(guest.id, force=True)

    assert engine.look(handle).state is WorkState.DONE, "what was seen to succeed is not forgotten with the machine"
    engine.end(handle)
    assert sealed(engine, KEY, guest.world.sizes(guest.id, "vdb", "vdc"))


def test_a_frozen_guest_is_thawed(guest: Guest) -> None:
    with guest.world.connected() as conn:
        assert conn.lookupByUUIDString(guest.id).fsFreeze() > 0
    assert guest.world.facts(guest.id).agent is True, "it answers while it is frozen"

    assert guest.world.engine().thaw(guest.id)

    with guest.world.connected() as conn:
        assert conn.lookupByUUIDString(guest.id).fsThaw() == 0, "nothing was frozen any more"


def test_a_copy_is_done_once_its_files_are_closed(libvirt_world: LibvirtWorld) -> None:
    """libvirt calls it a success while QEMU still writes tables, without which what was copied cannot be found."""
    name = libvirt_world.instance("web-1", "vda", mib=libvirt_world.long_mib)
    engine = libvirt_world.engine()
    engine.make_room(KEY)
    handle, _ = libvirt_world.begin_slowly(KEY, name, libvirt_world.parts(name, "vda"))
    libvirt_world.hurry(handle)
    target = libvirt_world.store / f"{KEY}.creating" / "vda.qcow2"
    with libvirt_world.connected() as conn:
        dom = conn.lookupByUUIDString(handle["domain"])
        until(lambda: capture._result(dom, keep=True).get("success"))
        until(lambda: not capture._is_open(target))
    # As QEMU that is slow to close it.
    with subprocess.Popen(["qemu-io", "-f", "qcow2", target], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as slow:
        until(lambda: capture._is_open(target))
        assert engine.look(handle).state is WorkState.RUNNING
        slow.kill()
    assert engine.look(handle).state is WorkState.DONE


def test_a_frozen_guest_that_is_paused_is_not_taken_for_thawed(guest: Guest) -> None:
    """Its agent cannot be asked, and it will still be frozen when it goes on."""
    with guest.world.connected() as conn:
        dom = conn.lookupByUUIDString(guest.id)
        assert dom.fsFreeze() > 0
        dom.suspend()
        try:
            assert not guest.world.engine().thaw(guest.id)
        finally:
            dom.resume()
        assert guest.world.engine().thaw(guest.id)
        assert dom.fsThaw() == 0


def test_whoever_is_asked_to_go_lets_a_call_end(libvirt_world: LibvirtWorld) -> None:
    """It may be between a freeze and its thaw."""
    calls: list[str] = []

    def freeze_and_thaw(conn: object) -> None:
        calls.append("frozen")
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR1)
        time.sleep(0.5)
        calls.append("thawed")

    def let_go(signum: int, frame: object) -> None:
        raise Released

    before = signal.signal(signal.SIGUSR1, let_go)
    try:
        with pytest.raises(Released):
            libvirt_world.engine()._host.call(freeze_and_thaw)
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert calls == ["frozen", "thawed"]


def test_a_store_that_is_not_there_makes_no_stand_in_an_orphan(libvirt_world: LibvirtWorld) -> None:
    name = libvirt_world.instance("web-1", "vda", mib=libvirt_world.long_mib)
    engine = libvirt_world.engine()
    engine.make_room(KEY)
    handle, _ = libvirt_world.begin_slowly(KEY, name, libvirt_world.parts(name, "vda"))
    elsewhere = libvirt_world.store.rename(libvirt_world.store.with_name("not-mounted"))
    try:
        with pytest.raises(Unreachable):
            engine.inventory()
        assert any(name.startswith("stillframe-") for name in libvirt_world.names())
    finally:
        elsewhere.rename(libvirt_world.store)
    libvirt_world.hurry(handle)
    assert ended(engine, handle).state is WorkState.DONE


def test_without_an_agent_a_capture_says_that_it_is_crash_consistent(libvirt_world: LibvirtWorld) -> None:
    name = libvirt_world.instance("no-system", "vda")
    engine = libvirt_world.engine()
    engine.start(name)
    assert libvirt_world.facts(name).agent is False
    engine.make_room(KEY)

    handle, captured = engine.begin(KEY, name, libvirt_world.parts(name, "vda"))

    assert captured.consistency is Consistency.CRASH
    assert captured.freeze_ms is None
    assert ended(engine, handle).state is WorkState.DONE
    engine.end(handle)
    part = sealed(engine, KEY, libvirt_world.sizes(name, "vda"))["vda"]
    engine.stop(name, force=True)
    assert libvirt_world.stored(part) == libvirt_world.content(name, "vda")


def test_a_stopped_instance_cannot_be_started_while_it_is_captured(libvirt_world: LibvirtWorld) -> None:
    name = libvirt_world.instance("web-1", "vda", "vdb", mib=libvirt_world.long_mib)
    engine = libvirt_world.engine()
    engine.make_room(KEY)
    handle, _ = libvirt_world.begin_slowly(KEY, name, libvirt_world.parts(name, "vda", "vdb"))

    with pytest.raises(EngineError, match="lock"):
        engine.start(name)
    assert [facts.name for facts in engine.inventory().instances if facts.name != GUEST] == ["web-1"]
    assert any(name.startswith("stillframe-") for name in libvirt_world.names())

    libvirt_world.hurry(handle)
    assert ended(engine, handle).state is WorkState.DONE
    engine.end(handle)
    assert not any(name.startswith("stillframe-") for name in libvirt_world.names())
    engine.start(name)


def test_a_running_disk_is_not_captured_as_if_its_machine_were_stopped(libvirt_world: LibvirtWorld) -> None:
    """Between the look at the instance and the stand-in's start somebody else may have started it."""
    name = libvirt_world.instance("web-1", "vda")
    other = libvirt_world.define("other", [libvirt_world.source(name, "vda")])
    engine = libvirt_world.engine()
    engine.start(other)
    engine.make_room(KEY)

    with pytest.raises(EngineError, match="disk-in-use"):
        engine.begin(KEY, name, libvirt_world.parts(name, "vda"))

    assert engine.discard(KEY, None)
    assert libvirt_world.left() == []


def test_a_stand_in_that_is_killed_fails_the_capture(libvirt_world: LibvirtWorld) -> None:
    name = libvirt_world.instance("web-1", "vda", mib=libvirt_world.long_mib)
    engine = libvirt_world.engine()
    engine.make_room(KEY)
    handle, _ = libvirt_world.begin_slowly(KEY, name, libvirt_world.parts(name, "vda"))

    libvirt_world.kill_machine(handle["domain"])

    look = ended(engine, handle)
    assert look.error is not None
    assert look.error.code == "copier-vanished"
    until(lambda: engine.discard(KEY, handle))
    assert libvirt_world.left() == []


def test_a_stand_in_whose_operation_is_gone_is_cleared_away(libvirt_world: LibvirtWorld) -> None:
    name = libvirt_world.instance("web-1", "vda", mib=libvirt_world.long_mib)
    engine = libvirt_world.engine()
    engine.make_room(KEY)
    libvirt_world.begin_slowly(KEY, name, libvirt_world.parts(name, "vda"))
    room = libvirt_world.store / f"{KEY}.creating"
    for path in room.iterdir():
        path.unlink()
    room.rmdir()

    engine.inventory()

    assert not any(name.startswith("stillframe-") for name in libvirt_world.names())


def test_a_disk_that_is_gone_or_cannot_be_read_says_so(libvirt_world: LibvirtWorld) -> None:
    name = libvirt_world.instance("web-1", "vda", "vdb")
    parts = libvirt_world.parts(name, "vda", "vdb")
    (libvirt_world.root / "web-1-vdb.raw").unlink()
    engine = libvirt_world.engine()
    engine.make_room(KEY)

    disks = {disk.device: disk for disk in libvirt_world.facts(name).disks}

    assert disks["vda"].problem == ""
    assert disks["vdb"].problem == "disk-unreadable"
    assert disks["vdb"].medium == "local"
    with pytest.raises(EngineError, match="disk-unreadable"):
        engine.begin(KEY, name, parts)
    assert not any(path.endswith(".qcow2") for path in libvirt_world.left())


@pytest.mark.parametrize("runs", [True, False])
def test_a_machine_that_comes_to_be_so_by_itself_is_no_error(libvirt_world: LibvirtWorld, monkeypatch, runs) -> None:
    """Between the look and the call: libvirt refuses to start what runs and to stop what is stopped."""
    import libvirt

    engine, machine = libvirt_world.engine(), libvirt_world.instance("web-1", "vda")
    if runs:
        engine.start(machine)
    look, looks = libvirt.virDomain.isActive, iter([not runs])
    monkeypatch.setattr(libvirt.virDomain, "isActive", lambda dom: next(looks, look(dom)))
    if runs:
        engine.start(machine)
    else:
        engine.stop(machine, force=True)
    assert libvirt_world.facts(machine).power is (Power.RUNNING if runs else Power.STOPPED)


def test_disks_in_a_local_pool_are_local_ones(libvirt_world: LibvirtWorld) -> None:
    pool = libvirt_world.root / "local"
    pool.mkdir()
    name = libvirt_world.instance("web-1", "vda", "vdb")
    for file in ("web-1-vda.qcow2", "web-1-vda.raw"):
        (libvirt_world.root / file).rename(pool / file)
    (libvirt_world.root / "web-1-vda.qcow2").symlink_to(pool / "web-1-vda.qcow2")

    assert [disk.medium for disk in libvirt_world.facts(name).disks] == ["local", "cloud"]

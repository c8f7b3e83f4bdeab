"""What can go wrong with a machine, its disks, its agent, its host: how it ends, and what its owner reads (R10, R24).

Operations are done by the product's own processes on real QEMU; one guest serves all tests.
"""

from __future__ import annotations

import json
import signal
import socket
from contextlib import suppress
from datetime import timedelta
from pathlib import Path

import pytest
from django.utils import timezone

from compute.models import Instance, Operation
from compute.refusals import Refused
from images.actions import cancel
from tests.engines.worlds import MIB, qemu_img
from tests.failures.place import SMALL, Place, Slowly, wait_copying, wait_ended, wait_stopped
from tests.processes import wait_until

pytestmark = [pytest.mark.qemu, pytest.mark.django_db(transaction=True)]

STOPPED = "The instance stopped while its disks were copied. Start it, then make the image again."
MOST_OF_AN_HOUR = timedelta(minutes=50)
LOST = "Nobody can say how the copy ended, so it was thrown away. Try again."


def available(operation: Operation, consistency: str) -> None:
    """It ended well, and its image says how good it is."""
    operation.refresh_from_db()
    assert operation.status == "done", operation.why
    assert operation.image is not None
    assert (operation.image.status, operation.image.consistency) == ("available", consistency)


def paid() -> None:
    """Return once no guest owes a thaw."""
    wait_until(lambda: not Instance.objects.exclude(thaw_owed=None).exists(), what="the thaw")


def fill(file: Path, leave: int) -> None:
    """Let it take all the space but so many bytes."""
    with file.open("wb", buffering=0) as out:
        with suppress(OSError):
            while out.write(bytes(MIB)):
                pass
        out.truncate(out.tell() - leave)


# The image store ----------------------------------------------------------------------------------------------------


def test_a_store_that_fills_up_in_the_middle_ends_the_copy_and_nothing_else(place: Place, guest, alice, told, clean):
    """It fits when the guest is asked, and no longer when QEMU has copied a few MiB."""
    operation = place.making(guest, alice, "vdd", region=SMALL)
    filler = place.apart.seen / "of somebody else"
    with place.stuck("_backup", "SIGSTOP", operation) as worker:
        wait_stopped(worker)
        fill(filler, leave=8 * MIB)
        worker.send_signal(signal.SIGCONT)
        wait_ended(operation)
    told(
        operation,
        "The image store filled up while the disks were copied, so the copy was thrown away. Delete images, then try "
        "again.",
        "was seen running",
    )
    clean(filler.name)


def test_what_does_not_fit_is_refused_before_the_guest_is_asked_for_anything(place: Place, guest, alice, told, clean):
    """At the click it seemed to fit."""
    operation = place.making(guest, alice, "vdb", region=SMALL)
    filler = place.apart.seen / "of somebody else"
    filler.write_bytes(bytes(100 * MIB))
    before = place.read("/run/frozen")
    with place.worker(operation):
        wait_ended(operation)
    assert operation.why.startswith("It does not fit into the image store, so nothing was copied: it takes up to ")
    assert " MB that are free others still have to write 0 B and 8 MB stay in reserve. Choose fewer" in operation.why
    told(operation, operation.why, "was seen running")
    assert place.read("/run/frozen") == before
    clean(filler.name)


# The machine --------------------------------------------------------------------------------------------------------


def test_a_machine_that_another_client_destroys_in_the_middle(place: Place, plain, alice, told, clean):
    place.world.engine().start(plain)
    operation = place.making(plain, alice, "vdb")
    with Slowly(place.libvirtd.uri, plain), place.worker(operation):
        wait_copying(operation)
        with place.domain(plain) as dom:
            dom.destroy()
        wait_ended(operation)
    told(operation, STOPPED, "was seen stopped")
    clean(running=False)


def test_a_machine_that_another_client_suspends_is_copied_all_the_same(place: Place, plain, alice, clean):
    """A machine without an agent: nothing is asked of it, and nothing owed."""
    place.world.engine().start(plain)
    operation = place.making(plain, alice, "vdb")
    with Slowly(place.libvirtd.uri, plain) as slowly, place.worker(operation):
        wait_copying(operation)
        with place.domain(plain) as dom:
            dom.suspend()
        slowly.hurry()
        wait_ended(operation)
    available(operation, "crash")
    assert place.instance(plain, alice).status == "paused"
    clean(operation.pk, running=False)


def test_a_stopped_machine_that_another_client_would_start_is_not(place: Place, plain, alice, clean):
    """QEMU's own locks refuse it until the copy is done."""
    import libvirt

    operation = place.making(plain, alice, "vdb")
    with Slowly(place.libvirtd.uri, plain) as slowly, place.worker(operation):
        wait_copying(operation)
        with place.domain(plain) as dom, pytest.raises(libvirt.libvirtError, match="lock"):
            dom.create()
        slowly.hurry()
        wait_ended(operation)
    available(operation, "offline")
    with place.domain(plain) as dom:
        dom.create()
    clean(operation.pk, running=False)


def test_a_disk_file_that_has_become_a_directory(place: Place, plain, alice, told, clean):
    operation = place.making(plain, alice, "vdb")
    disk = place.world.root / "plain-vdb.qcow2"
    away = disk.rename(disk.with_suffix(".away"))
    disk.mkdir()
    try:
        with place.worker(operation):
            wait_ended(operation)
        told(operation, "The file of vdb cannot be read on the host. Tell your administrator.", "was seen stopped")
        assert place.instance(plain, alice).disks.get(device="vdb").problem == "disk-unreadable"
    finally:
        disk.rmdir()
        away.rename(disk)
    clean(running=False)


# libvirtd -----------------------------------------------------------------------------------------------------------


def test_libvirtd_killed_in_the_middle_is_waited_for(place: Place, guest, alice, clean):
    operation = place.making(guest, alice, "vdc")
    with Slowly(place.libvirtd.uri, guest, device="vdc") as slowly, place.keeper():
        wait_copying(operation)
        with place.no_libvirtd():
            wait_until(lambda: operation.refresh_from_db() or operation.waiting_since, what="the wait")
        slowly.hurry()
        wait_ended(operation)
        available(operation, "frozen")
        paid()
    clean(operation.pk)


def test_a_copy_that_ends_while_libvirtd_is_dead_is_found_when_it_is_back(place: Place, guest, alice, clean):
    operation = place.making(guest, alice, "vdc")
    with Slowly(place.libvirtd.uri, guest, device="vdc") as slowly, place.worker(operation):
        wait_copying(operation)
        slowly.hurry()
        with place.no_libvirtd():
            wait_until(lambda: concluded(place), what="the end of the job")
    with place.keeper():
        wait_ended(operation)
    available(operation, "frozen")
    assert holds(place, operation, "vdc", place.guest.b)
    clean(operation.pk)


def holds(place: Place, operation: Operation, device: str, disk: Path) -> bool:
    """Are the image's bytes those of the disk, but for the block in which the guest goes on counting?"""
    mapping = operation.image.mappings.get(device=device)
    ends = []
    for file in (place.world.store / mapping.file.external_id, disk):
        out = place.world.root / f"{file.parent.name}-{device}.beginning"
        qemu_img("dd", "-U", "-f", "qcow2", "-O", "raw", "bs=1M", "count=64", f"if={file}", f"of={out}")
        ends.append(out.read_bytes()[4096:])
        out.unlink()
    return ends[0] == ends[1]


def test_a_result_that_libvirtd_forgot_counts_as_failed(place: Place, guest, alice, told, clean):
    """The job had ended, nobody had asked yet, and libvirtd died."""
    operation = place.making(guest, alice, "vdc")
    with Slowly(place.libvirtd.uri, guest, device="vdc") as slowly, place.worker(operation) as worker:
        wait_copying(operation)
        worker.send_signal(signal.SIGSTOP)
        slowly.hurry()
        with place.domain(guest) as dom:
            wait_until(lambda: not dom.jobStats()["type"], what="the end of the job")
        with place.no_libvirtd():
            pass
        worker.send_signal(signal.SIGCONT)
        wait_ended(operation)
    told(operation, LOST, "was seen running")
    clean()


def concluded(place: Place) -> bool:
    """Are all jobs of the guest's QEMU at their end? Asked of QEMU itself, whose monitor is free without libvirtd."""
    (monitor,) = place.libvirtd.root.glob("c/libvirt/qemu/lib/domain-*-counts/monitor.sock")
    with socket.socket(socket.AF_UNIX) as qmp:
        qmp.connect(str(monitor))
        with qmp.makefile("rw") as lines:
            lines.readline()
            for verb in ("qmp_capabilities", "query-jobs"):
                lines.write(json.dumps({"execute": verb}) + "\n")
                lines.flush()
                while "return" not in (answer := json.loads(lines.readline())):
                    pass
    jobs = answer["return"]
    assert jobs, "libvirtd had not died in time"
    return all(job["status"] == "concluded" for job in jobs)


# The guest agent ----------------------------------------------------------------------------------------------------


def test_an_agent_that_hangs_costs_the_freeze_and_nothing_else(place: Place, guest, alice, clean):
    """It goes on later, with the questions it has not answered; then the guest is not frozen."""
    place.shell("p=$(pidof qemu-ga); kill -STOP $p; sleep 22; kill -CONT $p")
    operation = place.making(guest, alice, "vdb")
    with place.worker(operation):
        wait_ended(operation)
    available(operation, "crash")
    assert Instance.objects.exclude(thaw_owed=None).exists(), "it may still freeze"
    with place.keeper():
        paid()
    assert all(seconds < 10 for seconds in place.frozen())
    clean(operation.pk)


def test_a_freeze_that_happens_after_its_time_out_is_thawed(place: Place, guest, alice, clean):
    """A slow disk, or a hook: long after everybody has given it up, the guest is frozen."""
    known = len(place.frozen())
    place.shell("echo 18 >/run/slow")
    wait_until(lambda: place.read("/run/slow"), what="the slow hook")
    operation = place.making(guest, alice, "vdb")
    with place.keeper():
        wait_ended(operation)
        available(operation, "crash")
        paid()
    (seconds,) = place.frozen()[known:]
    assert seconds < 10
    clean(operation.pk)


def test_an_agent_that_refuses_to_freeze_costs_the_freeze_and_nothing_else(place: Place, guest, alice, clean):
    place.shell("chmod 644 /etc/hook")
    wait_until(lambda: not asks(place), what="the refusal")
    try:
        operation = place.making(guest, alice, "vdb")
        with place.worker(operation):
            wait_ended(operation)
        available(operation, "crash")
    finally:
        place.shell("chmod 755 /etc/hook")
    clean(operation.pk)


def asks(place: Place) -> bool:
    """Does the guest carry out a thaw when it is asked to?"""
    import libvirt

    with place.domain(place.guest.id) as dom:
        try:
            dom.fsThaw()
        except libvirt.libvirtError:
            return False
        return True


# Between freeze and thaw --------------------------------------------------------------------------------------------


def test_a_worker_stopped_between_freeze_and_thaw(place: Place, guest, alice, clean):
    """The keeper thaws, though it is killed and started again meanwhile; what the worker does after, it says truly."""
    known = len(place.frozen())
    operation = place.making(guest, alice, "vdb")
    with place.stuck("_backup", "SIGSTOP", operation) as worker:
        wait_stopped(worker)
        assert place.is_frozen()
        row = place.instance_row(guest)
        with place.keeper():
            wait_until(lambda: place.instance_row(guest).observed_at > row.observed_at, what="a keeper at work")
        with place.keeper():
            wait_until(lambda: not place.is_frozen(), what="the thaw")
            worker.send_signal(signal.SIGCONT)
            wait_ended(operation)
            paid()
    assert operation.attempt == 1
    available(operation, "crash")
    assert operation.image is not None
    assert operation.image.thawed == 0, "what our freeze had taken another had given back"
    assert all(seconds < 10 for seconds in place.frozen()[known:])
    clean(operation.pk)


def test_a_worker_killed_between_freeze_and_thaw_is_followed(place: Place, guest, alice, clean):
    known = len(place.frozen())
    operation = place.making(guest, alice, "vdb")
    with place.stuck("_backup", "SIGKILL", operation) as worker:
        assert worker.wait(60) == -signal.SIGKILL
        assert place.is_frozen()
        with place.keeper():
            wait_ended(operation)
    available(operation, "frozen")
    first, *_ = place.frozen()[known:]
    assert first < 10
    assert operation.image is not None
    assert (operation.strikes, operation.image.thawed) == (1, operation.image.frozen)
    clean(operation.pk)


# The clock steps back an hour ---------------------------------------------------------------------------------------


def test_a_freeze_of_the_future_is_ended_in_time(place: Place, guest, alice, clean):
    """The clock steps right after a freeze that its maker does not live to end."""
    known = len(place.frozen())
    operation = place.making(guest, alice, "vdb")
    with place.ahead("tests.failures.stuck", "_backup", "SIGKILL", operation.pk) as worker:
        assert worker.wait(60) == -signal.SIGKILL
    assert place.is_frozen()
    operation.refresh_from_db()
    assert operation.started_at > timezone.now() + MOST_OF_AN_HOUR
    with place.keeper():
        wait_until(lambda: not place.is_frozen(), seconds=15, what="the thaw")
        wait_ended(operation)
        paid()
    available(operation, "frozen")
    assert all(seconds < 10 for seconds in place.frozen()[known:])
    clean(operation.pk)


def test_who_is_at_work_while_the_clock_steps_works_on(place: Place, guest, alice, client, clean):
    """Worker and keeper both: nobody is taken for dead, and the region is looked at as before."""
    operation = place.making(guest, alice, "vdc")
    worker = place.ahead("manage", "perform", operation.pk)
    keeper = place.ahead("manage", "keeper")
    with Slowly(place.libvirtd.uri, guest, device="vdc") as slowly, worker as working, keeper as keeping:
        wait_copying(operation)
        wait_until(lambda: place.instance_row(guest).observed_at > timezone.now() + MOST_OF_AN_HOUR, what="a look")
        for process in (working, keeping):
            process.send_signal(signal.SIGUSR1)
        place.world.engine().start(place.plain)
        wait_until(lambda: place.instance_row(place.plain).status == "running", what="a look after the step")
        slowly.hurry()
        wait_ended(operation)
        assert working.wait(30) == 0, "it was not taken for dead"
        assert keeping.poll() is None
    assert (operation.attempt, operation.strikes) == (1, 0)
    assert operation.ended_at < operation.started_at
    available(operation, "frozen")
    client.force_login(alice)
    assert client.get(f"/r/kvm-1/images/{operation.image_id}/").status_code == 200
    place.world.engine().stop(place.plain, force=True)
    clean(operation.pk)


# Somebody cancels ---------------------------------------------------------------------------------------------------


def test_cancelled_while_it_waits_in_the_queue(place: Place, guest, alice, told, clean):
    operation = place.making(guest, alice, "vdb")
    cancel(by=alice, image=operation.image, delete=False)
    with place.worker(operation):
        wait_ended(operation)
    told(operation, "Cancelled by alice.", "was seen running")
    clean()


@pytest.mark.parametrize("call", ["begin", "_backup", "look", "seal", "versions"])
def test_cancelled_wherever_it_is(place: Place, guest, alice, told, clean, call):
    """Before the instant, frozen, copying, about to be checked, and with everything done but the last write."""
    known = len(place.frozen())
    operation = place.making(guest, alice, "vdb")
    with place.stuck(call, "SIGSTOP", operation) as worker:
        wait_stopped(worker)
        cancel(by=alice, image=operation.image, delete=False)
        worker.send_signal(signal.SIGCONT)
        wait_ended(operation)
    assert operation.status == "cancelled"
    told(operation, "Cancelled by alice.", "was seen running")
    assert all(seconds < 10 for seconds in place.frozen()[known:])
    with pytest.raises(Refused, match="nothing to cancel"):
        cancel(by=alice, image=operation.image, delete=False)
    clean()


# The guest itself: last, since it boots again -------------------------------------------------------------------------


def test_a_guest_that_is_reset_in_the_middle_is_copied_as_of_the_instant(place: Place, guest, alice, clean):
    operation = place.making(guest, alice, "vdc")
    with Slowly(place.libvirtd.uri, guest, device="vdc") as slowly, place.worker(operation):
        wait_copying(operation)
        with place.domain(guest) as dom:
            dom.reset()
        slowly.hurry()
        wait_ended(operation)
    available(operation, "frozen")
    # libvirt does not find the agent of a machine that was reset again, until it is started anew itself.
    with place.no_libvirtd():
        pass
    place.guest.ready()
    clean(operation.pk)


def test_a_guest_that_powers_itself_off_in_the_middle(place: Place, guest, alice, told, clean):
    operation = place.making(guest, alice, "vdc")
    with Slowly(place.libvirtd.uri, guest, device="vdc"), place.worker(operation):
        wait_copying(operation)
        place.shell("poweroff")
        wait_ended(operation)
    told(operation, STOPPED, "was seen stopped")
    clean(running=False)

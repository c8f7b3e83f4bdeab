"""The tiny guest: made without root, it boots, mounts by UUID, answers, counts and goes off cleanly."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from console.demo.guest import MIB, GuestError, build_guest, data_disk
from tests.demo.machine import Machine

UUID = "5d0b7a1c-93ee-4e0c-8f5b-3a1f6f1f9a10"
ABSENT = "5d0b7a1c-93ee-4e0c-8f5b-3a1f6f1f9a11"


def ext4(raw: Path, question: str) -> str:
    """What debugfs answers about a file system, which is the whole of the file."""
    return subprocess.run(
        ["/sbin/debugfs", "-R", question, raw], check=True, capture_output=True, text=True, stdin=subprocess.DEVNULL
    ).stdout


# Data disks ----------------------------------------------------------------------------------------------------------


def test_data_disk_has_its_uuid_size_and_files(tmp_path: Path) -> None:
    disk = tmp_path / "disk.raw"
    data_disk(disk, uuid=UUID, size=32 * MIB, format="raw", files={"/deep/down/note": b"here\n"})
    assert disk.stat().st_size == 32 * MIB
    assert f"UUID:          {UUID}" in ext4(disk, "show_super_stats -h")
    assert ext4(disk, "cat /deep/down/note") == "here\n"


def test_failure_leaves_what_was_there_and_nothing_else(tmp_path: Path) -> None:
    disk = tmp_path / "disk.raw"
    disk.write_bytes(b"as before")
    with pytest.raises(GuestError, match="mke2fs"):
        data_disk(disk, uuid=UUID, size=16 * MIB, format="raw", files={"/too/big": b"x" * 20 * MIB})
    assert disk.read_bytes() == b"as before"
    assert list(tmp_path.iterdir()) == [disk]


def test_what_a_killed_run_left_is_cleared(tmp_path: Path) -> None:
    disk = tmp_path / "disk.raw"
    (tmp_path / "disk.raw.making/root").mkdir(parents=True)
    (tmp_path / "disk.raw.making/root/half").write_bytes(b"half")
    data_disk(disk, uuid=UUID, size=16 * MIB, format="raw")
    assert "half" not in ext4(disk, "ls /")
    assert list(tmp_path.iterdir()) == [disk]


# The guest -----------------------------------------------------------------------------------------------------------


def counting_guest(place: Path, cache: Path) -> tuple[Path, Path]:
    """Its system disk and a data disk: it counts on both, and its fstab has a disk that is not there."""
    system, data = place / "system.qcow2", place / "data.raw"
    fstab = "".join(
        f"UUID={uuid} {mount} ext4 defaults,nofail 0 2\n"
        for uuid, mount in ((UUID, "/srv/data"), (ABSENT, "/srv/absent"))
    )
    counter = "/srv/a /srv/data/b /srv/data/c 1000"
    build_guest(system, cache, hostname="tiny-7", fstab=fstab, counter=counter, files={"/srv/note": b"hello\n"})
    data_disk(data, uuid=UUID, size=64 * MIB, format="raw", files={"/note": b"data\n"})
    return system, data


@pytest.fixture(scope="module")
def guest(tmp_path_factory: pytest.TempPathFactory, guest_cache: Path) -> Iterator[Machine]:
    place = tmp_path_factory.mktemp("guest")
    with Machine(place, *counting_guest(place, guest_cache)) as machine:
        machine.wait_said("ready")
        machine.wait_agent()
        yield machine


def read_counters(guest: Machine) -> list[int]:
    """C, B and A, read in this order: each can only show more than the one before."""
    return [int(line) for line in guest.run("head -qn1 /srv/data/c /srv/data/b /srv/a").split()]


@pytest.mark.qemu
def test_boot_log_can_be_read_and_ends_with_a_prompt(guest: Machine) -> None:
    guest.wait_said("root@tiny-7:/#")
    assert "mounted /dev/vdb on /srv/data (ext4)" in guest.said()


@pytest.mark.qemu
def test_fstab_line_by_uuid_is_mounted_and_an_absent_one_does_no_harm(guest: Machine) -> None:
    mounts = {fs["mountpoint"]: [disk["dev"] for disk in fs["disk"]] for fs in guest.agent("guest-get-fsinfo")}
    assert mounts == {"/": ["/dev/vda1"], "/srv/data": ["/dev/vdb"]}
    assert guest.run("cat /srv/note /srv/data/note") == "hello\ndata\n"


@pytest.mark.qemu
def test_agent_tells_name_and_system(guest: Machine) -> None:
    assert guest.agent("guest-get-host-name") == {"host-name": "tiny-7"}
    assert guest.agent("guest-get-osinfo")["pretty-name"].startswith("Stillframe tiny Linux")


@pytest.mark.qemu
def test_agent_that_dies_comes_back(guest: Machine) -> None:
    before = guest.run("pidof qemu-ga")
    # Not by ``run``, which asks the agent whether it has ended.
    kill = f"export PATH=/bin; sleep 1; kill -9 {before.strip()}; echo agent killed >/dev/console"
    guest.agent("guest-exec", path="/bin/sh", arg=["-c", kill])
    guest.wait_said("agent killed")
    assert guest.run("pidof qemu-ga") not in ("", before)


@pytest.mark.qemu
def test_freeze_holds_every_file_system_and_the_counter(guest: Machine) -> None:
    data = guest.place / "data.raw"
    assert guest.agent("guest-fsfreeze-freeze") == 2
    try:
        # Read from outside: a frozen guest runs no commands.
        before = ext4(data, "cat /b")
        assert guest.agent("guest-fsfreeze-status") == "frozen"
        after = ext4(data, "cat /b")
    finally:
        thawed = guest.agent("guest-fsfreeze-thaw")
    assert thawed == 2
    assert before == after
    assert min(read_counters(guest)) >= int(before.split()[0]) > 0


@pytest.mark.qemu
def test_counter_counts_on_three_files_in_order_in_whole_blocks(guest: Machine) -> None:
    first, second = read_counters(guest), read_counters(guest)
    assert first == sorted(first)
    assert first[-1] < second[-1]
    block = guest.run("dd if=/srv/data/c bs=4096 count=1 iflag=direct 2>/dev/null")
    assert len(block) == 4096
    assert len(set(block.splitlines())) == 1


@pytest.mark.qemu
def test_power_button_leaves_clean_disks_and_the_count_goes_on_from_there(tmp_path: Path, guest_cache: Path) -> None:
    system, data = counting_guest(tmp_path, guest_cache)
    with Machine(tmp_path, system, data) as machine:
        machine.wait_said("counting")
        machine.wait_agent()
        machine.press_power_button()
        machine.wait_off()
    assert "needs_recovery" not in ext4(data, "show_super_stats -h")
    b, c = (int(ext4(data, f"cat /{name}").split()[0]) for name in "bc")
    assert 0 <= b - c <= 1
    with Machine(tmp_path, system, data) as machine:
        machine.wait_said("counting")
        machine.wait_agent()
        assert min(read_counters(machine)) >= c > 0


@pytest.mark.qemu
def test_fstab_line_without_nofail_stops_the_boot_and_says_so(tmp_path: Path, guest_cache: Path) -> None:
    """The danger that R6 warns of is real in this guest, too."""
    build_guest(tmp_path / "system.qcow2", guest_cache, fstab=f"UUID={ABSENT} /srv/absent ext4 defaults 0 2\n")
    with Machine(tmp_path, tmp_path / "system.qcow2") as machine:
        machine.wait_said("Emergency shell")
        machine.wait_said("leave it to go on")
    assert "ready" not in machine.said()

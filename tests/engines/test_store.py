"""Files are published whole and inspected or not at all, whatever lies in the room (R25)."""

from __future__ import annotations

import errno
import os
import struct
import sys
import textwrap
import threading
from collections.abc import Callable
from itertools import count
from pathlib import Path

import pytest

from compute.engines.base import EngineError, Unreachable
from compute.engines.store import CHUNK, Store, helper
from tests.engines.worlds import MIB, qemu_img, sealed_by

CAPACITY = 1 * MIB


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path, check_qcow2=False)


def qcow2(*, size: int = CAPACITY, backing: int = 0, features: int = 0) -> bytes:
    """The header of a qcow2 file as far as an inspector looks, with a name where a backing file's would be."""
    header = struct.pack(">4sIQIIQ", b"QFI\xfb", 3, backing, 11 if backing else 0, 16, size)
    return (header.ljust(72, b"\0") + struct.pack(">Q", features)).ljust(512, b"\0") + b"/etc/passwd".ljust(512, b"\0")


HOSTILE: dict[str, tuple[bytes, str]] = {
    "a backing file": (qcow2(backing=512), "backing_file"),
    "an external data file": (qcow2(features=1 << 2), "data_file"),
    "a feature nobody knows": (qcow2(features=1 << 40), "unknown_features"),
    "another capacity": (qcow2(size=CAPACITY << 10), "size"),
    "raw bytes": (b"\x33\xc0" * 4096, "format"),
    "nothing at all": (b"", "format"),
    "another format": (b"KDMV".ljust(4096, b"\0"), "format"),
}


@pytest.mark.parametrize(("content", "why"), HOSTILE.values(), ids=HOSTILE)
def test_a_file_that_is_not_a_plain_image_is_not_published(store: Store, content: bytes, why: str) -> None:
    store.make_room("k")
    store.part("k", "vda", "qcow2").write_bytes(qcow2())
    store.part("k", "vdb", "qcow2").write_bytes(content)

    with pytest.raises(EngineError) as refused:
        sealed_by(store.seal("k", {"vda": CAPACITY, "vdb": CAPACITY}))

    assert refused.value.code == "hostile-image"
    assert refused.value.data["part"] == "vdb"
    assert refused.value.data["why"] == why
    assert not (store.root / "k").exists()


def test_a_raw_file_stays_raw_whatever_its_bytes_look_like(store: Store) -> None:
    store.make_room("k")
    content = qcow2(backing=512).ljust(CAPACITY, b"\0")
    store.part("k", "vda", "raw").write_bytes(content)

    part = sealed_by(store.seal("k", {"vda": CAPACITY}))["vda"]

    assert part.format == "raw"
    assert store.path(part.id).read_bytes() == content


def test_a_raw_file_of_another_size_is_refused(store: Store) -> None:
    store.make_room("k")
    store.part("k", "vda", "raw").write_bytes(bytes(CAPACITY + 512))
    with pytest.raises(EngineError, match="hostile-image"):
        sealed_by(store.seal("k", {"vda": CAPACITY}))


def test_a_link_is_not_followed(store: Store, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(qcow2())
    store.make_room("k")
    store.part("k", "vda", "qcow2").symlink_to(secret)

    with pytest.raises(EngineError, match="ELOOP"):
        sealed_by(store.seal("k", {"vda": CAPACITY}))

    assert store.discard("k")
    assert secret.exists()


def test_a_store_entry_that_is_a_link_elsewhere_is_not_entered(store: Store, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "vda.qcow2").write_bytes(b"precious")
    (store.root / "k").symlink_to(elsewhere)

    with pytest.raises(EngineError):
        store.erase("k/vda.qcow2")
    assert store.discard("k")

    assert (elsewhere / "vda.qcow2").read_bytes() == b"precious"
    assert not (store.root / "k").is_symlink()


@pytest.mark.parametrize(
    "stored", ["../vda.qcow2", "k/../../vda.qcow2", "/etc/passwd", "k/sealed.json", "k.creating/vda.qcow2", "k", ""]
)
def test_an_id_that_leaves_the_store_is_refused(store: Store, stored: str) -> None:
    for verb in (store.erase, store.path):
        with pytest.raises(ValueError, match="not a file of the store"):
            verb(stored)


@pytest.mark.parametrize("key", ["", ".", "..", "a/b", "a.creating", "-a", "a" * 65])
def test_a_key_that_is_not_a_name_is_refused(store: Store, key: str) -> None:
    verbs: list[Callable[[], object]] = [
        lambda: store.make_room(key),
        lambda: store.discard(key),
        lambda: sealed_by(store.seal(key, {})),
    ]
    for verb in verbs:
        with pytest.raises(ValueError, match="not a name"):
            verb()


def test_a_store_that_is_not_mounted_is_not_an_empty_one(tmp_path: Path) -> None:
    absent = Store(tmp_path / "absent", check_qcow2=False)
    verbs: list[Callable[[], object]] = [
        lambda: absent.make_room("k"),
        lambda: absent.discard("k"),
        lambda: absent.erase("k/vda.qcow2"),
        absent.space,
    ]
    for verb in verbs:
        with pytest.raises(Unreachable):
            verb()
    assert not absent.root.exists()


def test_sealing_goes_on_where_a_death_left_it(store: Store) -> None:
    """The record is the last thing written into a room: once it is there, only the rename is missing."""
    store.make_room("k")
    store.part("k", "vda", "qcow2").write_bytes(qcow2())
    (store.opened("k") / "sealed.json.0123abcd.draft").touch()
    first = sealed_by(store.seal("k", {"vda": CAPACITY}))
    (store.root / "k").rename(store.root / "k.creating")

    assert sealed_by(store.seal("k", {"vda": CAPACITY})) == first
    assert {place.name for place in (store.root / "k").iterdir()} == {"vda.qcow2", "sealed.json"}


def test_what_was_sealed_for_other_parts_is_not_an_answer(store: Store) -> None:
    store.make_room("k")
    store.part("k", "vda", "qcow2").write_bytes(qcow2())
    sealed_by(store.seal("k", {"vda": CAPACITY}))
    with pytest.raises(EngineError, match="other-parts"):
        sealed_by(store.seal("k", {"vda": CAPACITY, "vdb": CAPACITY}))


def test_progress_counts_the_bytes_that_were_checked(store: Store) -> None:
    size = 3 * CHUNK
    store.make_room("k")
    store.part("k", "vda", "raw").write_bytes(bytes(size))
    seen = [step["vda"] for step in store.seal("k", {"vda": size})]
    assert seen[0] == 0
    assert seen[-1] == size
    assert seen == sorted(seen)


@pytest.mark.parametrize("nth", range(1, 6))
def test_two_who_seal_the_same_room_both_find_it_sealed(store: Store, monkeypatch, nth: int) -> None:
    """One of them was given up for dead and was not: the other comes and goes while it is at its nth write."""
    store.make_room("k")
    store.part("k", "vda", "raw").write_bytes(bytes(CAPACITY))
    fsync, calls, others = os.fsync, count(1), []

    def met(file: int) -> None:
        if next(calls) == nth:
            others.append(sealed_by(store.seal("k", {"vda": CAPACITY})))
        fsync(file)

    monkeypatch.setattr(os, "fsync", met)
    assert [sealed_by(store.seal("k", {"vda": CAPACITY}))] == others
    assert [place.name for place in store.root.iterdir()] == ["k"]
    assert {place.name for place in (store.root / "k").iterdir()} == {"vda.raw", "sealed.json"}


def test_a_disk_that_takes_its_time_to_write_is_waited_for_with_signs_of_life(store: Store, monkeypatch) -> None:
    """A large file that still lies in the page cache: who says nothing for two minutes would be taken for dead."""
    written = threading.Event()
    fsync = os.fsync

    def slow(file: int) -> None:
        assert written.wait(30)
        fsync(file)

    store.make_room("k")
    store.part("k", "vda", "raw").write_bytes(bytes(CAPACITY))
    work = store.seal("k", {"vda": CAPACITY})
    monkeypatch.setattr(os, "fsync", slow)
    assert [next(work)["vda"] for _ in range(3)] == [0, 0, 0]
    written.set()
    assert sealed_by(work)["vda"].stored


def test_a_disk_that_cannot_write_fails(store: Store, monkeypatch) -> None:
    def failing(file: int) -> None:
        raise OSError(errno.EIO, "injected")

    store.make_room("k")
    store.part("k", "vda", "raw").write_bytes(bytes(CAPACITY))
    monkeypatch.setattr(os, "fsync", failing)
    with pytest.raises(EngineError, match="store-failed"):
        sealed_by(store.seal("k", {"vda": CAPACITY}))


def test_published_files_are_ours_alone_and_read_only(store: Store) -> None:
    store.make_room("k")
    store.part("k", "vda", "qcow2").write_bytes(qcow2())
    part = sealed_by(store.seal("k", {"vda": CAPACITY}))["vda"]
    assert store.path(part.id).stat().st_mode & 0o777 == 0o400
    assert store.path(part.id).parent.stat().st_mode & 0o777 == 0o700


@pytest.mark.qemu
def test_an_image_whose_tables_are_damaged_is_not_published(tmp_path: Path) -> None:
    store = Store(tmp_path, check_qcow2=True)
    store.make_room("k")
    path = store.part("k", "vda", "qcow2")
    plain = tmp_path / "plain"
    plain.write_bytes(b"x" * CAPACITY)
    qemu_img("convert", "-f", "raw", "-O", "qcow2", plain, path)
    assert sealed_by(store.seal("k", {"vda": CAPACITY}))
    store.path("k/vda.qcow2").rename(tmp_path / "whole")
    store.discard("k")

    store.make_room("k")
    whole = (tmp_path / "whole").read_bytes()
    (tables,) = struct.unpack_from(">Q", whole, 40)
    path.write_bytes(whole[:tables] + struct.pack(">Q", 1 << 63 | 1 << 40) + whole[tables + 8 :])
    with pytest.raises(EngineError, match="damaged-image"):
        sealed_by(store.seal("k", {"vda": CAPACITY}))


def test_a_helper_may_have_as_many_threads_as_qemu_starts_on_a_busy_machine() -> None:
    threads = textwrap.dedent("""
        import threading
        meeting = threading.Barrier(65)
        def work():
            bytearray(4096)
            meeting.wait(30)
        for _ in range(64):
            threading.Thread(target=work).start()
        meeting.wait(30)
        """)
    process = helper(sys.executable, "-c", threads)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 0, output

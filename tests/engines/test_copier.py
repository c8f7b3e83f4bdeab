"""The detached copier of the folder engine: one per room, never over a finished copy, and only it is killed."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest

from compute.engines import copier
from compute.engines.base import EngineError, Part, WorkState
from compute.engines.folder import FolderEngine
from compute.engines.processes import is_stopped, name_of
from tests.processes import wait_until


@pytest.fixture
def engine(tmp_path: Path) -> FolderEngine:
    FolderEngine.create(tmp_path)
    engine = FolderEngine("plain", {"ROOT": tmp_path})
    engine.make_room("op-1")
    return engine


@pytest.fixture
def room(engine: FolderEngine) -> Path:
    return engine.store.room("op-1")


def run(room: Path, source: Path) -> int:
    order = {"rate": None, "parts": {"vda": {"source": str(source), "target": "vda.raw"}}}
    command = [sys.executable, "-I", copier.__file__, str(room)]
    return subprocess.run(command, input=json.dumps(order), text=True, check=False).returncode


def test_a_second_copier_never_writes_over_a_finished_copy(room, tmp_path):
    """It would reach what is published by now: its files are renamed, not closed."""
    source = tmp_path / "disk"
    source.write_bytes(b"as of the click")
    assert run(room, source) == 0
    source.write_bytes(b"written since..")
    assert run(room, source) == 0
    assert (room / "vda.raw").read_bytes() == b"as of the click"


def test_a_copier_that_comes_after_the_end_writes_over_nothing(engine, room, tmp_path):
    """It was begun by one who died at once, and was slow to start: the notes of the copy are gone by now."""
    place = tmp_path / "instances" / "web-1"
    place.mkdir()
    source = place / "vda.raw"
    source.write_bytes(b"as of the click")
    handle, _ = engine.begin("op-1", "web-1", (Part("web-1/vda.raw", "vda"),))
    wait_until(lambda: engine.look(handle).state is WorkState.DONE)
    engine.end(handle)
    source.write_bytes(b"written since..")
    assert run(room, source) == 0
    assert (room / "vda.raw").read_bytes() == b"as of the click"
    assert not (room / "copy.json").exists()


def test_only_one_copies_at_a_time(room, tmp_path):
    source = tmp_path / "disk"
    source.write_bytes(b"x")
    with (room / "copy.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert run(room, source) == 0
    assert {path.name for path in room.iterdir()} == {"copy.lock"}


def test_a_source_that_is_a_link_is_not_followed(room, tmp_path):
    """R25."""
    secret = tmp_path / "secret"
    secret.write_bytes(b"of the host")
    (tmp_path / "disk").symlink_to(secret)
    run(room, tmp_path / "disk")
    assert json.loads((room / "copy.result").read_text())["code"] == "copy-failed"
    assert (room / "vda.raw").read_bytes() == b""


def test_one_who_begins_late_finds_the_copy_that_is_under_way_and_its_instant(engine, room, tmp_path):
    """However many began at once, as a ghost beside its successor does: one copies, and all know the same instant."""
    place = tmp_path / "instances" / "web-1"
    place.mkdir()
    (place / "vda.raw").write_bytes(bytes(1 << 20))
    parts = (Part("web-1/vda.raw", "vda"),)
    with ThreadPoolExecutor(8) as pool:
        begun = list(pool.map(lambda _: engine.begin("op-1", "web-1", parts), range(8)))
    assert len({captured.instant for _, captured in begun}) == 1
    wait_until(lambda: engine.look(begun[0][0]).state is WorkState.DONE)
    assert engine.begin("op-1", "web-1", parts) == begun[0]


def test_one_who_begins_in_a_room_that_is_taken_away_does_not_wait(engine, room, tmp_path):
    with (room / "copy.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # so that no copier comes to work
        with ThreadPoolExecutor(1) as pool:
            beginning = pool.submit(engine.begin, "op-1", "web-1", ())
            wait_until(lambda: any(str(room) in " ".join(words) for words in command_lines()), what="its copier")
            shutil.rmtree(room)
            with pytest.raises(EngineError, match="no-room"):
                beginning.result(timeout=5)


def command_lines() -> list[list[str]]:
    lines = []
    for place in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(FileNotFoundError, ProcessLookupError):
            lines.append(place.read_text().split("\0"))
    return lines


def test_discarding_kills_nobody_but_the_copier(engine):
    """The pid in a lock may be old, and somebody else's by now."""
    innocent = subprocess.Popen(["sleep", "60"])
    lock = (engine.store.room("op-1") / "copy.lock").open("w")
    lock.write(str(innocent.pid))
    lock.flush()
    fcntl.flock(lock, fcntl.LOCK_EX)
    engine.discard("op-1", None)
    assert innocent.poll() is None
    innocent.kill()
    innocent.wait()


def test_a_copier_that_was_stopped_goes_on(tmp_path):
    FolderEngine.create(tmp_path)
    engine = FolderEngine("plain", {"ROOT": tmp_path, "RATE": 4 << 20})
    place = tmp_path / "instances" / "web-1"
    place.mkdir()
    (place / "vda.raw").write_bytes(os.urandom(2 << 20))
    engine.make_room("op-1")
    handle, _ = engine.begin("op-1", "web-1", (Part("web-1/vda.raw", "vda"),))
    copier_pid = int((engine.store.room("op-1") / "copy.lock").read_text())
    os.kill(copier_pid, signal.SIGSTOP)
    wait_until(lambda: is_stopped(name_of(copier_pid)))
    wait_until(lambda: engine.look(handle).state is WorkState.DONE)
    assert (engine.store.room("op-1") / "vda.raw").read_bytes() == (place / "vda.raw").read_bytes()

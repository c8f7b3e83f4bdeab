"""The detached copier of the folder engine: one per room, never over a finished copy, and only it is killed."""

from __future__ import annotations

import fcntl
import json
import subprocess
import sys
from pathlib import Path

import pytest

from compute.engines import copier
from compute.engines.folder import FolderEngine


@pytest.fixture
def engine(tmp_path: Path) -> FolderEngine:
    FolderEngine.create(tmp_path)
    engine = FolderEngine("plain", {"ROOT": tmp_path})
    engine.make_room("op-1")
    return engine


def order(engine: FolderEngine, source: Path) -> Path:
    room = engine.store.room("op-1")
    parts = {"vda": {"source": str(source), "target": "vda.raw"}}
    (room / "copy.json").write_text(json.dumps({"instant": "", "rate": None, "parts": parts}))
    return room


def run(room: Path) -> int:
    return subprocess.run([sys.executable, "-I", copier.__file__, str(room)], check=False).returncode


def test_a_second_copier_never_writes_over_a_finished_copy(engine, tmp_path):
    """It would reach what is published by now: its files are renamed, not closed."""
    source = tmp_path / "disk"
    source.write_bytes(b"as of the click")
    room = order(engine, source)
    assert run(room) == 0
    source.write_bytes(b"written since..")
    assert run(room) == 0
    assert (room / "vda.raw").read_bytes() == b"as of the click"


def test_only_one_copies_at_a_time(engine, tmp_path):
    source = tmp_path / "disk"
    source.write_bytes(b"x")
    room = order(engine, source)
    with (room / "copy.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert run(room) == 0
    assert not (room / "copy.result").exists()


def test_a_source_that_is_a_link_is_not_followed(engine, tmp_path):
    """R25."""
    secret = tmp_path / "secret"
    secret.write_bytes(b"of the host")
    (tmp_path / "disk").symlink_to(secret)
    room = order(engine, tmp_path / "disk")
    run(room)
    assert json.loads((room / "copy.result").read_text())["code"] == "copy-failed"
    assert (room / "vda.raw").read_bytes() == b""


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

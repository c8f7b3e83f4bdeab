"""Whoever dies or stops, the work ends (docs/rules.md R24): real processes, real signals, real copies."""

from __future__ import annotations

import signal
import subprocess
import sys
import time

import pytest

from compute import writelock
from compute.engines.processes import is_stopped, name_of
from compute.models import Operation
from compute.operations import claim, identity, take_away
from compute.states import OperationStatus
from images.actions import create_image
from tests.processes import copying, ended, manage, slow_region, wait_until

pytestmark = pytest.mark.usefixtures("database")
# Of a lock that PostgreSQL does not have.
on_sqlite = pytest.mark.parametrize("_rows", ["sqlite"], indirect=True)
MIB = 1 << 20


@pytest.fixture
def web(folder, alice):
    return folder.instance("web-1", alice, mib=4, vda="cloud", vdb="cloud")


@pytest.fixture
def env(child_env, folder, tmp_path):
    """Copies last about two seconds; a holder may be silent for two; Redis is not there."""
    nowhere = {"REDIS_URL": f"unix://{tmp_path}/nobody.sock", "LIMIT_SILENCE": "2"}
    return child_env | slow_region(tmp_path, folder.root, rate=2 * MIB) | nowhere


@pytest.fixture
def making(web, alice) -> Operation:
    chosen = [disk.pk for disk in web.disks.filter(device="vdb")]
    return create_image(by=alice, instance=web, name="web-1-v1", description="", disks=chosen).operations.get()


def assert_whole(operation: Operation, folder) -> None:
    image = operation.image
    image.refresh_from_db()
    assert (operation.status, image.status) == ("done", "available")
    for mapping in image.mappings.all():
        assert folder.stored(mapping.file.external_id).read_bytes() == folder.disk("web-1", mapping.device).read_bytes()


def test_a_killed_worker_is_followed_by_another(making, env, folder):
    """The copier outlives its worker; the next one finds it and finishes."""
    env |= {"LIMIT_SILENCE": "600"}  # the dead are noticed at once; and nobody who is merely slow is killed
    with manage("perform", making.pk, env=env) as worker:
        wait_until(lambda: copying(making), what="a byte")
        copier = (folder.root / "store" / f"{making.pk}.creating" / "copy.lock").read_text()
        worker.kill()
        worker.wait()
    making.refresh_from_db()
    assert making.is_live
    with manage("keeper", env=env):
        wait_until(lambda: making.refresh_from_db() or making.attempt > 2, what="another attempt")
        assert (folder.root / "store" / f"{making.pk}.creating" / "copy.lock").read_text() == copier
        wait_until(lambda: ended(making), what="the end")
    assert making.strikes == 1
    assert_whole(making, folder)


def test_a_stopped_holder_is_killed_and_followed(making, env, folder):
    """Silent beyond the limit: the judge kills it before anyone else takes over."""
    with manage("perform", making.pk, env=env) as worker:
        wait_until(lambda: copying(making), what="a byte")
        worker.send_signal(signal.SIGSTOP)
        with manage("keeper", env=env):
            assert worker.wait(timeout=15) == -signal.SIGKILL
            wait_until(lambda: ended(making), what="the end")
    assert_whole(making, folder)


@on_sqlite
def test_one_who_is_stopped_while_it_writes_is_killed_though_no_row_names_it(making, env, folder, child_env):
    """Between a claim's UPDATE and its commit, say: it holds SQLite's write lock, and nothing tells whose it is."""
    database = child_env["DATABASE_URL"].removeprefix("sqlite:///")
    claiming = (
        "import os, signal, sqlite3\n"
        f"rows = sqlite3.connect({database!r}, isolation_level=None)\n"
        "rows.execute('BEGIN IMMEDIATE')\n"
        "rows.execute('UPDATE compute_operation SET attempt = 7')\n"
        "os.kill(os.getpid(), signal.SIGSTOP)\n"
    )
    with subprocess.Popen([sys.executable, "-c", claiming]) as stopped:
        try:
            wait_until(lambda: writelock.holder() == name_of(stopped.pid) and is_stopped(name_of(stopped.pid)))
            with manage("keeper", env=env):
                assert stopped.wait(timeout=15) == -signal.SIGKILL
                wait_until(lambda: ended(making), what="the end")
        finally:
            stopped.kill()
    assert making.attempt < 7
    assert_whole(making, folder)
    assert writelock.holder() is None


@on_sqlite
def test_one_who_writes_for_long_is_let_alone(making, env, child_env):
    database = child_env["DATABASE_URL"].removeprefix("sqlite:///")
    migrating = (
        "import sqlite3\n"
        f"rows = sqlite3.connect({database!r}, isolation_level=None)\n"
        "rows.execute('BEGIN IMMEDIATE')\n"
        "input()\n"
    )
    with subprocess.Popen([sys.executable, "-c", migrating], stdin=subprocess.PIPE) as writing:
        wait_until(lambda: writelock.holder() == name_of(writing.pid))
        with manage("keeper", env=env | {"LIMIT_SILENCE": "0.2"}):
            began = time.monotonic()
            wait_until(lambda: time.monotonic() - began > 4, what="many rounds of the judge")
            assert writing.poll() is None
            writing.communicate(b"\n")
            assert writing.returncode == 0


def test_a_frozen_holder_dies_on_waking(making, env):
    """Where no keeper reaches it, its own alarm does."""
    with manage("perform", making.pk, env=env) as worker:
        wait_until(lambda: copying(making), what="a byte")
        worker.send_signal(signal.SIGSTOP)
        frozen = time.monotonic()
        wait_until(lambda: time.monotonic() - frozen > 2.5, what="the time of the alarm")
        worker.send_signal(signal.SIGCONT)
        assert worker.wait(timeout=5) == -signal.SIGALRM


def test_a_worker_that_is_asked_to_go_lets_go_without_a_strike(making, env):
    with manage("perform", making.pk, env=env) as worker:
        wait_until(lambda: copying(making), what="a byte")
        worker.terminate()
        assert worker.wait(timeout=5) == 0
    making.refresh_from_db()
    assert (making.status, making.holder, making.strikes) == ("running", "", 0)


def test_a_worker_of_the_queue_does_it(making, child_env, folder):
    """The ordinary way: RQ's forking worker, told through Redis after the commit."""
    with manage("rqworker", "long-folder-1", "--burst", env=child_env) as worker:
        assert worker.wait(timeout=30) == 0
    making.refresh_from_db()
    assert making.attempt == 1
    assert_whole(making, folder)


def test_after_three_deaths_it_is_undone(making, env, folder):
    """Poison ends: three strikes in running, and the image is Error with nothing left."""
    for _ in range(3):
        attempt = claim(making.pk)
        assert attempt is not None
        making.refresh_from_db()
        assert take_away(making.pk, attempt=making.attempt, beats=making.beats)
    with manage("perform", making.pk, env=env) as worker:
        assert worker.wait(timeout=20) == 0
    making.refresh_from_db()
    making.image.refresh_from_db()
    assert (making.status, making.image.status) == ("failed", "error")
    assert making.image.reason["code"] == "gave-up"
    assert folder.store_files() == set()


def test_a_dead_process_of_this_machine_is_noticed_at_once(making, env):
    """Long before any limit of silence: its pid and start time are looked up."""
    dead = subprocess.Popen(["true"])
    boot, space, _, started = identity().split("/")
    dead.wait()
    Operation.objects.filter(pk=making.pk).update(
        status=OperationStatus.RUNNING, attempt=1, holder=f"{boot}/{space}/{dead.pid}/{started}"
    )
    with manage("keeper", env=env | {"LIMIT_SILENCE": "600"}):
        wait_until(lambda: ended(making), what="the end")

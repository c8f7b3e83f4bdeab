"""What can go wrong with the console's own parts, as `make run` starts them: queue, database, all of it at once (R24).

Clicks are made over plain HTTP; machines and copies are real.
"""

from __future__ import annotations

import os
import re
import signal
import sqlite3
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import closing, suppress
from http.cookiejar import CookieJar
from pathlib import Path
from typing import Any

import pytest
import redis

from console.demo import PASSWORD
from console.libvirtd import PrivateLibvirtd
from tests.console_process import FIRST_START, LATER_START, Console
from tests.failures.place import Slowly
from tests.processes import wait_until

pytestmark = pytest.mark.qemu


class Visitor:
    """Alice, without a browser."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.opener = urllib.request.build_opener(urllib.request.HTTPCookieProcessor(CookieJar()))
        self.send("/sign-in/", username="alice", password=PASSWORD)

    def get(self, path: str) -> str:
        with self.opener.open(self.console.url + path, timeout=10) as answer:
            return answer.read().decode()

    def send(self, path: str, **fields: str) -> str:
        """Fill in the form of this page; the path one comes to."""
        token = re.search(r'name="csrfmiddlewaretoken" value="(\w+)"', self.get(path))
        assert token
        data = urllib.parse.urlencode({"csrfmiddlewaretoken": token[1]} | fields).encode()
        with self.opener.open(self.console.url + path, data, timeout=30) as answer:
            return urllib.parse.urlsplit(answer.url).path

    def make(self, instance: str, name: str) -> str:
        """The path of the new image's page."""
        link = re.search(rf'href="(/r/kvm-1/instances/[\w-]+/)"[^>]*>\s*{instance}', self.get("/r/kvm-1/instances/"))
        assert link
        path = self.send(f"{link[1]}create-image/", name=name)
        assert "/images/img-" in path
        return path

    def shows(self, path: str, word: str) -> bool:
        return f"</svg>{word}</span>" in self.get(path)


@pytest.fixture(scope="module")
def console(tmp_path_factory: pytest.TempPathFactory, guest_cache: Path) -> Iterator[Console]:
    console = Console(tmp_path_factory.mktemp("console"), guest_cache)
    try:
        console.start(FIRST_START)
        yield console
    finally:
        console.remove()


@pytest.fixture
def alice(console: Console) -> Visitor:
    return Visitor(console)


def row(console: Console, column: str) -> Any:
    """Of the youngest operation."""
    with closing(sqlite3.connect(f"file:{console.data}/stillframe.sqlite3?mode=ro", uri=True)) as database:
        query = f"SELECT {column} FROM compute_operation ORDER BY created_at DESC LIMIT 1"
        return database.execute(query).fetchone()[0]


def slowly(console: Console) -> Slowly:
    uri = PrivateLibvirtd(console.sockets / "l").uri
    import libvirt

    with closing(libvirt.open(uri)) as conn:
        return Slowly(uri, conn.lookupByName("stillframe-web-1").UUIDString(), device="vda")


def wait_available(visitor: Visitor, path: str) -> None:
    wait_until(lambda: visitor.shows(path, "Available"), seconds=90, what="the image")


def test_a_queue_that_is_down_at_the_click_and_back_later(console, alice):
    """The click is answered at once, and its work is done."""
    assert console.process
    # Stopped, it cannot start another queue at once.
    console.process.send_signal(signal.SIGSTOP)
    try:
        for pid in console.pids("valkey.sock"):
            os.kill(pid, signal.SIGKILL)
        clicked = time.monotonic()
        path = alice.make("db-1", "no-queue")
        assert time.monotonic() - clicked < 10
    finally:
        console.process.send_signal(signal.SIGCONT)
    wait_available(alice, path)
    wait_until(lambda: console.pids("valkey.sock"), what="the queue")
    assert row(console, "strikes") == 0


def test_a_queue_that_loses_all_it_held(console, alice):
    """Nobody had heard yet."""
    workers = console.pids("rqworker")
    for pid in workers:
        os.kill(pid, signal.SIGSTOP)
    try:
        path = alice.make("db-1", "flushed")
        with redis.Redis(unix_socket_path=str(console.sockets / "valkey.sock")) as queue:
            queue.flushall()
    finally:
        for pid in workers:
            os.kill(pid, signal.SIGCONT)
    wait_available(alice, path)
    assert row(console, "strikes") == 0


def test_a_database_that_is_locked_for_15_seconds(console, alice):
    """Everybody waits, pages can be read, nothing is done twice."""
    with slowly(console) as copy:
        path = alice.make("web-1", "locked")
        wait_until(lambda: alice.shows(path, "Copying"), what="the copy")
        attempt = row(console, "attempt")
        with closing(sqlite3.connect(console.data / "stillframe.sqlite3", isolation_level=None)) as database:
            database.execute("BEGIN IMMEDIATE")
            until = time.monotonic() + 15
            while time.monotonic() < until:
                assert alice.shows(path, "Copying")
                time.sleep(0.5)
            database.execute("ROLLBACK")
        copy.hurry()
        wait_available(alice, path)
    assert (row(console, "attempt"), row(console, "strikes")) == (attempt, 0)


def test_everything_of_ours_killed_at_once_and_started_again(console, alice):
    """All but the machines, in the middle of a copy: QEMU goes on with it, and it is found again."""
    with slowly(console) as copy:
        path = alice.make("web-1", "all-killed")
        wait_until(lambda: alice.shows(path, "Copying"), what="the copy")
        kill_all_but_machines(console)
        assert not console.answers()
        console.start(LATER_START)
        copy.hurry()
        wait_available(Visitor(console), path)
    assert row(console, "attempt") > 1
    assert len(console.pids("qemu-system")) == 2, "the two machines that ran, and no helper"


def kill_all_but_machines(console: Console) -> None:
    # The supervisor first: it would start the others again.
    assert console.process
    console.process.kill()
    console.process.wait()
    while left := set(console.pids()) - set(console.pids("qemu-system")):
        for pid in left:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.05)

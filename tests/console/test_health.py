"""Which part is ill, told to anybody, soon, and without secrets: docs/operating.md, Watching it."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Any

import pytest
from django.db import OperationalError
from django.db.backends.signals import connection_created
from django.test import Client
from django.utils import timezone
from rq import Queue, Worker

from compute import wakeup
from compute.keeper import Keeper
from compute.models import Pulse, Region
from console import health
from tests.processes import manage, wait_until

pytestmark = pytest.mark.usefixtures("database")


@pytest.fixture
def all_well(private_redis: Any) -> Iterator[None]:
    """A keeper and a region that were just seen, and a worker for each queue."""
    Pulse.objects.create(name="keeper", at=timezone.now())
    Region.objects.create(name="folder-1", seen_at=timezone.now())
    workers = [
        Worker([Queue(name, connection=private_redis)], name=f"w-{name}", connection=private_redis)
        for name in ("short", "long-folder-1")
    ]
    for worker in workers:
        worker.register_birth()
    yield
    for worker in workers:
        worker.register_death()


@pytest.fixture
def at_redis(settings: Any) -> Iterator[Any]:
    """Say at which address Redis is."""

    def at(url: str) -> None:
        settings.REDIS_URL = url
        wakeup._connection.cache_clear()

    yield at
    wakeup._connection.cache_clear()


@pytest.fixture
def on_connecting() -> Iterator[Any]:
    """Do something whenever another thread has connected to the database."""
    mine, receivers = threading.get_ident(), []

    def connect(do: Any) -> None:
        def receiver(**_: Any) -> None:
            if threading.get_ident() != mine:
                do()

        receivers.append(receiver)
        connection_created.connect(receiver)

    yield connect
    for receiver in receivers:
        connection_created.disconnect(receiver)


def ready() -> tuple[int, str, dict[str, str]]:
    """Status code, status, and what ails each part that is ill."""
    response = Client().get("/readyz")
    told = response.json()
    ill = {name: part["why"] for name, part in told["parts"].items() if not part["well"]}
    return response.status_code, told["status"], ill


def test_this_process_answers_without_asking_anyone(django_assert_num_queries, at_redis):
    at_redis("unix:///nowhere.sock")
    with django_assert_num_queries(0):
        response = Client().get("/healthz")
    assert (response.status_code, response.content) == (200, b"ok\n")
    assert "no-store" in response["Cache-Control"]


def test_all_is_well(all_well):
    assert ready() == (200, "ready", {})
    told = Client().get("/readyz").json()["parts"]
    for name in ("keeper", "region folder-1"):
        assert timezone.now() - datetime.fromisoformat(told[name]["seen"]) < timedelta(seconds=20)
    assert set(told) == {
        "database", "redis", "keeper", "region folder-1", "workers short", "workers long-folder-1",
    }  # fmt: skip


def test_without_redis_it_is_degraded_but_ready(all_well, at_redis, tmp_path):
    """The keeper does the work."""
    at_redis(f"unix://{tmp_path}/nobody.sock")
    code, status, ill = ready()
    assert (code, status) == (200, "degraded")
    assert set(ill) == {"redis", "workers short", "workers long-folder-1"}
    assert str(tmp_path) not in Client().get("/readyz").content.decode()


def test_a_redis_that_hangs_delays_nobody(all_well, at_redis):
    with socket.create_server(("127.0.0.1", 0)) as mute:
        at_redis(f"redis://:very-secret@127.0.0.1:{mute.getsockname()[1]}/0")
        began = time.monotonic()
        code, _, ill = ready()
        assert time.monotonic() - began < health.ANSWER_WITHIN + 1
        assert code == 200
        assert "redis" in ill
        assert "secret" not in Client().get("/readyz").content.decode()


def test_a_database_that_hangs_is_told_in_time_and_costs_one_thread(all_well, on_connecting, monkeypatch):
    monkeypatch.setattr(health, "ANSWER_WITHIN", 0.5)
    answered = threading.Event()
    on_connecting(answered.wait)
    for _ in range(3):
        began = time.monotonic()
        code, status, ill = ready()
        assert time.monotonic() - began < 2
        assert (code, status) == (503, "unready")
        assert set(ill) == {"database", "keeper", "region folder-1"}, "Redis and the workers are well, and said to be"
    assert sum(thread.name == "readyz" for thread in threading.enumerate()) == 1
    answered.set()
    wait_until(lambda: ready() == (200, "ready", {}), what="recovery")


def test_what_a_database_says_is_told_to_the_log_only(all_well, on_connecting, caplog):
    def refuse() -> None:
        raise OperationalError("password authentication failed for user stillframe at /run/secret")

    on_connecting(refuse)
    response = Client().get("/readyz")
    assert response.status_code == 503
    told = response.content.decode()
    assert not any(word in told for word in ("password", "secret", "Traceback", "OperationalError"))
    assert "password authentication failed" in caplog.text


def test_a_keeper_that_is_silent_makes_it_unready(all_well):
    Pulse.objects.update(at=timezone.now() - timedelta(seconds=31))
    code, status, ill = ready()
    assert (code, status, set(ill)) == (503, "unready", {"keeper"})
    assert ill["keeper"] == "silent"
    Pulse.objects.all().delete()
    assert ready() == (503, "unready", {"keeper": "never seen"})


def test_a_clock_that_steps_back_makes_nobody_well(all_well):
    """What was last seen an hour from now has not been seen since."""
    later = timezone.now() + timedelta(hours=1)
    Pulse.objects.update(at=later)
    Region.objects.update(seen_at=later)
    code, status, ill = ready()
    assert (code, status, ill) == (503, "unready", {"keeper": "silent", "region folder-1": "silent"})


@pytest.mark.parametrize(
    "facts", [{"unreachable_since": timezone.now()}, {"seen_at": timezone.now() - timedelta(minutes=2)}]
)
def test_a_region_that_does_not_answer_is_named(all_well, facts):
    Region.objects.update(**facts)
    code, status, ill = ready()
    assert (code, status, set(ill)) == (200, "degraded", {"region folder-1"})


def test_a_queue_without_workers_is_named(all_well, private_redis):
    worker = next(one for one in Worker.all(connection=private_redis) if one.name == "w-short")
    worker.register_death()
    assert ready() == (200, "degraded", {"workers short": "none"})


def test_a_running_keeper_is_seen(folder, child_env):
    with manage("keeper", env=child_env):
        wait_until(Pulse.objects.exists, what="a pulse")
    assert "keeper" not in ready()[2]


def test_the_pulse_stands_still_without_the_judge(db):
    """A writer alone is no keeper."""
    keeper = Keeper()
    keeper._write()
    assert not Pulse.objects.exists()
    keeper._judge()
    keeper._write()
    assert Pulse.objects.exists()


@pytest.mark.parametrize("path", ["/healthz", "/readyz"])
def test_a_probe_is_not_sent_to_tls(path, all_well, settings):
    """It comes from beside the server."""
    settings.SECURE_SSL_REDIRECT = True
    assert Client().get(path).status_code == 200
    assert Client().get("/").status_code == 301

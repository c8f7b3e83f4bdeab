"""Figures from rows, the same from every process: docs/operating.md, Watching it."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
import time_machine
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.utils import timezone
from prometheus_client.parser import text_string_to_metric_families

from compute import regions
from compute.engines.base import Captured, Handle, Part
from compute.engines.folder import FolderEngine
from compute.models import Litter, Operation, Pulse, Region
from compute.operations import claim, perform, take_away
from images.actions import cancel, create_image
from images.models import Image
from tests.factories import InstanceFactory, OperationFactory, RegionFactory

pytestmark = pytest.mark.usefixtures("database")

TOKEN = "of-nobody-but-prometheus"


@pytest.fixture
def prometheus(settings: Any) -> Client:
    settings.METRICS_TOKEN = TOKEN
    return Client(headers={"Authorization": f"Bearer {TOKEN}"})


@pytest.fixture
def figure(prometheus: Client) -> Any:
    """One sample, by name and labels; None when it is not told."""

    def read(name: str, **labels: str) -> float | None:
        response = prometheus.get("/metrics")
        assert response.status_code == 200
        for family in text_string_to_metric_families(response.content.decode()):
            for sample in family.samples:
                if sample.name == name and labels.items() <= sample.labels.items():
                    return sample.value
        return None

    return read


def making(web: Any, alice: Any) -> Operation:
    return create_image(by=alice, instance=web, name="web-1-v1", description="", disks=[]).operations.get()


@pytest.fixture
def web(folder, alice):
    return folder.instance("web-1", alice, vda="cloud")


def test_what_ended_is_counted_by_kind_and_outcome_with_time_and_bytes(web, alice, folder, figure):
    done = making(web, alice)
    perform(done.pk)
    cancelled = making(web, alice)
    cancel(by=alice, image=cancelled.image, delete=True)
    perform(cancelled.pk)
    folder.disk("web-1", "vda").unlink()
    perform(making(web, alice).pk)
    for outcome in ("done", "cancelled", "failed"):
        assert figure("stillframe_operations_total", kind="create_image", outcome=outcome, region="folder-1") == 1
    done.refresh_from_db()
    seconds = figure("stillframe_operation_seconds_sum", kind="create_image", outcome="done")
    assert seconds == pytest.approx((done.ended_at - done.started_at).total_seconds(), abs=1e-3)
    assert figure("stillframe_operation_seconds_count", kind="create_image", outcome="done") == 1
    stored = done.image.mappings.get().file.stored_bytes
    assert stored
    assert figure("stillframe_stored_bytes_total", kind="create_image") == stored
    Image.objects.filter(pk=done.image_id).delete()
    assert figure("stillframe_stored_bytes_total", kind="create_image") == stored, "a counter never goes back"


def test_what_waits_and_what_is_silent(folder, figure):
    region, now = RegionFactory(), timezone.now()
    with time_machine.travel(now - timedelta(seconds=100), tick=False):
        waiting = OperationFactory(kind="create_image", instance=None, holding=False)
        held = OperationFactory(region=region)
        assert claim(held.pk)
    with time_machine.travel(now, tick=False):
        assert figure("stillframe_queue_age_seconds", queue="long-folder-1") == 100
        assert figure("stillframe_queue_age_seconds", queue="short") == 0
        assert figure("stillframe_oldest_pulse_seconds", region="folder-1") == 100
        assert figure("stillframe_live_operations", kind="create_image", status="queued") == 1
        attempt = claim(waiting.pk)
        attempt.beat(progress={"phase": "copy", "parts": {}, "rate": 1000})
        held.refresh_from_db()
        assert take_away(held.pk, attempt=held.attempt, beats=held.beats)
    with time_machine.travel(now + timedelta(seconds=7), tick=False):
        assert figure("stillframe_queue_age_seconds", queue="long-folder-1") == 0
        assert figure("stillframe_queue_age_seconds", queue="short") == 7, "since it was taken away"
        assert figure("stillframe_oldest_pulse_seconds") == 7
        assert figure("stillframe_copy_bytes_per_second") == 1000


class Freezing(FolderEngine):
    """A folder region that says that it froze guests."""

    def begin(self, key: str, instance: str, parts: tuple[Part, ...]) -> tuple[Handle, Captured]:
        handle, captured = super().begin(key, instance, parts)
        return handle, replace(captured, frozen=2, thawed=2, freeze_ms=250)


def test_freezes(web, alice, figure, settings):
    settings.ENGINES = {"folder-1": settings.ENGINES["folder-1"] | {"BACKEND": f"{__name__}.Freezing"}}
    regions._engine.cache_clear()
    for _ in range(3):
        perform(making(web, alice).pk)
    regions._engine.cache_clear()
    OperationFactory(status="done", ended_at=timezone.now(), instance=None, holding=False)
    assert figure("stillframe_frozen_seconds_sum", region="folder-1") == 0.75
    assert figure("stillframe_frozen_seconds_count", region="folder-1") == 3
    assert figure("stillframe_thaw_owed_seconds") == 0
    now = timezone.now()
    InstanceFactory(name="web-2", thaw_owed=now - timedelta(seconds=3))
    InstanceFactory(name="web-3", thaw_owed=now - timedelta(seconds=12))
    with time_machine.travel(now, tick=False):
        assert figure("stillframe_thaw_owed_seconds", region="folder-1") == 12


def test_regions_litter_and_keeper(folder, figure):
    assert figure("stillframe_region_reachable", region="folder-1") == 0
    assert figure("stillframe_keeper_pulse_timestamp_seconds") == 0
    now = timezone.now()
    region = Region.objects.create(name="folder-1", seen_at=now, free_bytes=5, total_bytes=9)
    Pulse.objects.create(name="keeper", at=now)
    assert figure("stillframe_region_reachable", region="folder-1") == 1
    assert figure("stillframe_region_answered_timestamp_seconds") == pytest.approx(now.timestamp())
    assert figure("stillframe_keeper_pulse_timestamp_seconds") == pytest.approx(now.timestamp())
    assert (figure("stillframe_store_free_bytes"), figure("stillframe_store_bytes")) == (5, 9)
    Region.objects.update(unreachable_since=now)
    assert figure("stillframe_region_reachable") == 0
    assert figure("stillframe_litter", region="folder-1") == 0
    Litter.objects.create(region=region, key="op-1")
    Litter.objects.update(created_at=now - timedelta(seconds=60))
    with time_machine.travel(now, tick=False):
        assert figure("stillframe_litter") == 1
        assert figure("stillframe_litter_age_seconds") == 60


def test_a_scrape_costs_few_queries_and_reads_no_past_row(folder, figure, prometheus):
    """However much has happened; the token alone asks for no session."""
    Region.objects.create(name="folder-1")
    now = timezone.now()
    for n in range(30):
        status, ended_at = ("done", now) if n else ("running", None)
        OperationFactory(instance=None, holding=False, status=status, started_at=now, ended_at=ended_at)
    with CaptureQueriesContext(connection) as queries:
        prometheus.get("/metrics")
    assert len(queries) == 6
    if connection.vendor != "sqlite":
        return  # it reads so few rows whole, whatever there is to help it
    used = []
    for query in queries:
        with connection.cursor() as cursor:
            cursor.execute(f"EXPLAIN QUERY PLAN {query['sql']}")
            plan = [row[3] for row in cursor.fetchall()]
        for line in plan:
            if "compute_operation" in line or "compute_instance" in line:
                used.append(line.rpartition("INDEX ")[2].split()[0])
    assert used == ["ended_operations", "operations_not_ended", "thaws_owed"]


def test_it_is_for_the_token_and_for_staff(prometheus, settings, alice, dana):
    def code(client: Client) -> int:
        return client.get("/metrics").status_code

    assert code(prometheus) == 200
    assert [code(Client(headers={"Authorization": told})) for told in ("Bearer wrong", "Bearer ", TOKEN, "é")] == [
        401
    ] * 4
    assert Client().get("/metrics")["WWW-Authenticate"] == "Bearer"
    for person, expected in ((alice, 403), (dana, 200)):
        client = Client()
        client.force_login(person)
        assert code(client) == expected
    settings.METRICS_TOKEN = ""
    assert [code(prometheus), code(Client(headers={"Authorization": "Bearer "}))] == [401, 401]


def test_prometheus_may_ask_for_openmetrics(prometheus):
    response = prometheus.get("/metrics", headers={"Accept": "application/openmetrics-text; version=1.0.0"})
    assert response["Content-Type"].startswith("application/openmetrics-text")
    assert response.content.endswith(b"# EOF\n")
    assert prometheus.get("/metrics")["Content-Type"].startswith("text/plain")

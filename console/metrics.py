"""Figures for Prometheus, read from the rows when they are asked for.

Every web process gives the same answer, and none is lost when one of them ends: nothing is counted in a process. One
scrape is a fixed, small number of queries, none of which reads all operations.
"""

from __future__ import annotations

import hmac
from collections import defaultdict
from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Any

from django.conf import settings
from django.contrib.auth.decorators import login_not_required
from django.core.exceptions import PermissionDenied
from django.db.models import Count, DurationField, F, Min, Sum
from django.http import HttpRequest, HttpResponse
from django.utils import timezone
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_safe
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric, SummaryMetricFamily
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from compute.models import Instance, Litter, Operation, Pulse, Region
from compute.operations import jobs, queue_of


class Figures(Collector):
    """One scrape. Ages are in seconds by this machine's clock, and 0 when there is nothing that could be old."""

    def collect(self) -> Iterator[Metric]:
        self.now = timezone.now()
        yield from self._past()
        yield from self._present()
        yield from self._guests()
        yield from self._litter()
        yield from self._regions()
        yield from self._keeper()

    def _age(self, since: datetime | None) -> float:
        return max(0.0, (self.now - since).total_seconds()) if since else 0.0

    def _past(self) -> Iterator[Metric]:
        ended = CounterMetricFamily(
            "stillframe_operations", "Operations that ended.", labels=["region", "kind", "outcome"]
        )
        took = SummaryMetricFamily(
            "stillframe_operation_seconds",
            "From the first attempt at an operation to its end.",
            labels=["region", "kind", "outcome"],
        )
        stored = CounterMetricFamily(
            "stillframe_stored_bytes", "Bytes that operations put into the image store.", labels=["region", "kind"]
        )
        frozen = SummaryMetricFamily(
            "stillframe_frozen_seconds", "How long guests were frozen for an image.", labels=["region"]
        )
        bytes_of: dict[tuple[str, str], int] = defaultdict(int)
        freezes: dict[str, tuple[int, float]] = dict.fromkeys(settings.ENGINES, (0, 0.0))
        rows = Operation.objects.filter(ended_at__isnull=False).values("region", "kind", "status")
        duration = Sum(F("ended_at") - F("started_at"), output_field=DurationField())
        for row in rows.annotate(
            count=Count("*"),
            began=Count("started_at"),
            duration=duration,
            stored=Sum("stored_bytes"),
            freezes=Count("frozen_ms"),
            frozen=Sum("frozen_ms"),
        ).order_by("region", "kind", "status"):
            region, labels = row["region"], [row["region"], row["kind"], row["status"]]
            ended.add_metric(labels, row["count"])
            took.add_metric(labels, row["began"], (row["duration"] or timedelta()).total_seconds())
            bytes_of[region, row["kind"]] += row["stored"] or 0
            count, seconds = freezes.get(region, (0, 0.0))
            freezes[region] = count + row["freezes"], seconds + (row["frozen"] or 0) / 1000
        for (region, kind), count in bytes_of.items():
            stored.add_metric([region, kind], count)
        for region, (count, seconds) in freezes.items():
            frozen.add_metric([region], count, seconds)
        yield from (ended, took, stored, frozen)

    def _present(self) -> Iterator[Metric]:
        live = GaugeMetricFamily(
            "stillframe_live_operations", "Operations that have not ended.", labels=["region", "kind", "status"]
        )
        waits = GaugeMetricFamily(
            "stillframe_queue_age_seconds",
            "For how long the one that waits longest has been held by nobody, by queue.",
            labels=["region", "queue"],
        )
        pulse = GaugeMetricFamily(
            "stillframe_oldest_pulse_seconds", "Since when the most silent holder has not beaten.", labels=["region"]
        )
        rate = GaugeMetricFamily(
            "stillframe_copy_bytes_per_second", "How fast bytes are copied and checked now.", labels=["region"]
        )
        counts: dict[tuple[str, str, str], int] = defaultdict(int)
        ages = {(region, queue): 0.0 for region in settings.ENGINES for queue in ("short", f"long-{region}")}
        pulses, rates = dict.fromkeys(settings.ENGINES, 0.0), dict.fromkeys(settings.ENGINES, 0)
        rows = Operation.objects.filter(ended_at__isnull=True, region__in=settings.ENGINES, kind__in=jobs())
        for row in rows.defer("choices", "work", "reason"):
            region = row.region_id
            counts[region, row.kind, row.status] += 1
            if row.holder:
                pulses[region] = max(pulses[region], self._age(row.beat_at))
                rates[region] += row.progress.get("rate") or 0
            else:
                place = region, queue_of(row)
                ages[place] = max(ages[place], self._age(row.beat_at or row.created_at))
        for labels, count in counts.items():
            live.add_metric(labels, count)
        for place, age in ages.items():
            waits.add_metric(place, age)
        for region in settings.ENGINES:
            pulse.add_metric([region], pulses[region])
            rate.add_metric([region], rates[region])
        yield from (live, waits, pulse, rate)

    def _guests(self) -> Iterator[Metric]:
        owed = GaugeMetricFamily(
            "stillframe_thaw_owed_seconds",
            "Since when the guest that waits longest has been owed a thaw.",
            labels=["region"],
        )
        owing = Instance.objects.filter(thaw_owed__isnull=False).values("region").annotate(since=Min("thaw_owed"))
        since = dict(owing.values_list("region", "since"))
        for region in settings.ENGINES:
            owed.add_metric([region], self._age(since.get(region)))
        yield owed

    def _litter(self) -> Iterator[Metric]:
        count = GaugeMetricFamily("stillframe_litter", "What is still to be discarded.", labels=["region"])
        age = GaugeMetricFamily("stillframe_litter_age_seconds", "Age of the oldest litter.", labels=["region"])
        rows = Litter.objects.values("region").annotate(count=Count("*"), since=Min("created_at"))
        found = {region: told for region, *told in rows.values_list("region", "count", "since")}
        for region in settings.ENGINES:
            number, since = found.get(region, (0, None))
            count.add_metric([region], number)
            age.add_metric([region], self._age(since))
        yield from (count, age)

    def _regions(self) -> Iterator[Metric]:
        reachable = GaugeMetricFamily(
            "stillframe_region_reachable", "Did it answer when last asked? (1 or 0)", labels=["region"]
        )
        seen = GaugeMetricFamily(
            "stillframe_region_answered_timestamp_seconds", "When it last answered.", labels=["region"]
        )
        free = GaugeMetricFamily("stillframe_store_free_bytes", "Free in the image store.", labels=["region"])
        total = GaugeMetricFamily("stillframe_store_bytes", "Size of the image store.", labels=["region"])
        rows = Region.objects.in_bulk(list(settings.ENGINES))
        for name in settings.ENGINES:
            row = rows.get(name, Region(name=name))
            reachable.add_metric([name], bool(row.seen_at and not row.unreachable_since))
            if row.seen_at:
                seen.add_metric([name], row.seen_at.timestamp())
            if row.free_bytes is not None and row.total_bytes is not None:
                free.add_metric([name], row.free_bytes)
                total.add_metric([name], row.total_bytes)
        yield from (reachable, seen, free, total)

    def _keeper(self) -> Iterator[Metric]:
        pulse = GaugeMetricFamily(
            "stillframe_keeper_pulse_timestamp_seconds", "When the keeper last made its rounds; 0 for never."
        )
        at = Pulse.objects.filter(pk=Pulse.KEEPER).values_list("at", flat=True).first()
        pulse.add_metric([], at.timestamp() if at else 0)
        yield pulse


@login_not_required
@require_safe
@never_cache
def metrics(request: HttpRequest) -> HttpResponse:
    """For whoever has METRICS_TOKEN, and for staff who are signed in: figures tell how much is used by how many."""
    if not _has_token(request):
        user: Any = request.user
        if not user.is_authenticated:
            return HttpResponse("METRICS_TOKEN, please.\n", "text/plain", 401, headers={"WWW-Authenticate": "Bearer"})
        if not user.is_staff:
            raise PermissionDenied
    encode, content_type = choose_encoder(request.headers.get("Accept", ""))
    return HttpResponse(encode(Figures()), content_type=content_type)


def _has_token(request: HttpRequest) -> bool:
    """Without a token in the settings nobody has it."""
    given = request.headers.get("Authorization", "").encode()
    wanted: str = settings.METRICS_TOKEN
    return bool(wanted) and hmac.compare_digest(given, f"Bearer {wanted}".encode())

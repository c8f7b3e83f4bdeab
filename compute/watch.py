"""What a page last saw of its rows, in a few characters, so that a poll costs one query and mostly answers 204.

A page whose rows move asks every second about those; the answer swaps their cells. A settled page asks nothing; when
its tab is looked at again it asks once whether anything in it is different.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from django.db.models import FilteredRelation, Q, QuerySet
from django.http import HttpRequest, HttpResponse
from django_htmx.http import HttpResponseClientRefresh

from compute.states import LIVE

MOST = 100  # rows that one poll asks about


def wants_dialog(request: HttpRequest) -> bool:
    """htmx asks for the dialog alone; without JavaScript the same address is a page of its own."""
    return request.headers.get("HX-Request") == "true"


def digest(facts: Any) -> str:
    return hashlib.blake2s(json.dumps(facts, default=str).encode(), digest_size=5).hexdigest()


@dataclass(frozen=True)
class Sight:
    """One row as shown. ``state`` decides words and buttons and is announced; ``detail`` is everything that moves."""

    row: str
    state: str
    detail: str
    moving: bool

    def __str__(self) -> str:
        return f"{self.row}.{self.state}.{self.detail}"


def sights(rows: QuerySet[Any], lock: str) -> dict[str, Sight]:
    """One query. ``lock``: the flag of the operations that these rows show, "holding" or "exclusive"."""
    shown = Q(operations__status__in=LIVE) & Q(**{f"operations__{lock}": True})
    facts = rows.annotate(live=FilteredRelation("operations", condition=shown)).order_by("pk")
    columns = ("pk", "status", "reason", "live__pk", "live__status", "live__image__status")
    moving = ("live__step", "live__progress", "live__waiting_since")
    found = {}
    for pk, status, *rest in facts.values_list(*columns, *moving):
        state = digest([status, *rest[:4]])
        unsettled = not rows.model.Status(status).settled or rest[1] is not None
        found[pk] = Sight(pk, state, digest(rest), unsettled)
    return found


@dataclass(frozen=True)
class Watch:
    """What a page's watcher sends: its moving rows as last seen, or the whole page when nothing moves."""

    url: str
    moving: bool
    query: str

    @classmethod
    def over(cls, url: str, shown: Mapping[str, Sight]) -> Watch:
        moving = [str(sight) for sight in shown.values() if sight.moving][:MOST]
        return cls(url, bool(moving), f"rows={','.join(moving)}" if moving else f"page={_page(shown.values())}")


def _page(shown: Iterable[Sight]) -> str:
    return digest([str(sight) for sight in shown])


@dataclass(frozen=True)
class Changes:
    """What differs from what the page saw: rows to show again, those whose state changed, and those that are gone."""

    rows: frozenset[str]
    renewed: frozenset[str]
    gone: frozenset[str]


def changes(request: HttpRequest, rows: QuerySet[Any], lock: str) -> Changes | HttpResponse:
    """Compare with what the poll says it saw. A response is the whole answer: 204, or "load the page again"."""
    tokens = [token.split(".") for token in request.GET.get("rows", "").split(",")[:MOST]]
    seen = {token[0]: token for token in tokens if len(token) == 3}
    if not seen:
        same = _page(sights(rows, lock).values()) == request.GET.get("page")
        return HttpResponse(status=204) if same else HttpResponseClientRefresh()
    now = sights(rows.filter(pk__in=seen), lock)
    different = {pk for pk, sight in now.items() if str(sight).split(".") != seen[pk]}
    gone = seen.keys() - now.keys()
    if not different and not gone:
        return HttpResponse(status=204)
    return Changes(
        frozenset(different),
        frozenset(pk for pk in different if now[pk].state != seen[pk][1]),
        frozenset(gone),
    )

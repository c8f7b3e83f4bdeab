"""Seen from outside: does this process answer, and which of the parts that it depends on is ill?

``/healthz`` is for whoever starts processes again or spreads requests; ``/readyz`` for whoever watches the whole. Both
answer anybody: they name parts, never where these are nor what an error said (the log has that).
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any, Generic, TypeVar

from django.conf import settings
from django.contrib.auth.decorators import login_not_required
from django.db import connection
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.utils import timezone
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_safe

from compute import wakeup
from compute.models import Pulse, Region

log = logging.getLogger(__name__)

ANSWER_WITHIN = 2.0  # seconds for the database, and for Redis, which are asked at the same time
KEEPER_BEATS_WITHIN = timedelta(seconds=30)
REGION_ANSWERS_WITHIN = timedelta(seconds=60)

T = TypeVar("T")


@dataclass(frozen=True)
class Part:
    """``needed``: without it the console is not ready; without another one it does less, or later."""

    name: str
    why: str = ""  # it is ill
    needed: bool = False
    seen: datetime | None = None  # last, where that is known

    @property
    def told(self) -> dict[str, Any]:
        told: dict[str, Any] = {"well": False, "why": self.why} if self.why else {"well": True}
        return told | {"seen": self.seen.isoformat(timespec="seconds")} if self.seen else told


class Question(Generic[T]):
    """Asked in a thread of its own, so that nobody waits longer than they want to.

    While it is unanswered it is not asked again: a part that hangs costs one thread, however often somebody looks.
    """

    def __init__(self, ask: Callable[[], T]) -> None:
        self.ask = ask
        self.asked: Future[T] | None = None
        self.lock = threading.Lock()

    def answer(self, seconds: float) -> T:
        """Raises what the question raised, or ``TimeoutError``."""
        return self.put().result(seconds)

    def put(self) -> Future[T]:
        with self.lock:
            if self.asked is None or self.asked.done():
                self.asked = Future()
                threading.Thread(target=self._run, args=(self.asked,), name="readyz", daemon=True).start()
            return self.asked

    def _run(self, asked: Future[T]) -> None:
        try:
            answer = self.ask()
        except Exception as error:
            # Whatever it is, it is told to whoever waits.
            asked.set_exception(error)
        else:
            asked.set_result(answer)


@dataclass(frozen=True)
class Rows:
    pulse: datetime | None
    regions: dict[str, Region]


def _rows() -> Rows:
    try:
        pulse = Pulse.objects.filter(pk=Pulse.KEEPER).values_list("at", flat=True).first()
        return Rows(pulse, Region.objects.in_bulk(list(settings.ENGINES)))
    finally:
        connection.close()


def _listeners() -> dict[str, int]:
    return {queue: wakeup.listeners(queue) for queue in settings.RQ_QUEUES}


ROWS, LISTENERS = Question(_rows), Question(_listeners)


def parts() -> list[Part]:
    """All of them, within ``ANSWER_WITHIN``. What cannot be known, since what knows it is ill, is not named well."""
    # Both are asked before either is waited for.
    for question in (ROWS, LISTENERS):
        question.put()
    rows, listeners = _answer("database", ROWS), _answer("redis", LISTENERS)
    found = [
        Part("database", "" if rows else "no answer", needed=True),
        Part("redis", "" if listeners else "no answer"),
    ]
    return [*found, *_of_rows(rows), *_of_listeners(listeners)]


def _answer(name: str, question: Question[T]) -> T | None:
    try:
        return question.answer(ANSWER_WITHIN)
    except Exception:
        # Whatever ails it: the caller is told that it is ill, the log why.
        log.warning("%s is ill", name, exc_info=True)
        return None


def _of_rows(rows: Rows | None) -> Iterator[Part]:
    yield _seen("keeper", rows, rows.pulse if rows else None, KEEPER_BEATS_WITHIN, needed=True)
    for name in settings.ENGINES:
        region = rows.regions.get(name) if rows else None
        part = _seen(f"region {name}", rows, region.seen_at if region else None, REGION_ANSWERS_WITHIN)
        yield replace(part, why="no answer") if region and region.unreachable_since else part


def _seen(name: str, rows: Rows | None, seen: datetime | None, within: timedelta, *, needed: bool = False) -> Part:
    """A part that is well if it was seen lately."""
    if rows is None:
        why = "unknown: the database does not answer"
    elif seen is None:
        why = "never seen"
    else:
        # In the future: the clock has stepped back, and whoever lives has been seen since.
        why = "" if abs(timezone.now() - seen) < within else "silent"
    return Part(name, why, needed, seen)


def _of_listeners(listeners: dict[str, int] | None) -> Iterator[Part]:
    for queue in settings.RQ_QUEUES:
        if listeners is None:
            yield Part(f"workers {queue}", "unknown: Redis does not answer")
        else:
            yield Part(f"workers {queue}", "" if listeners[queue] else "none")


@login_not_required
@require_safe
@never_cache
def healthz(request: HttpRequest) -> HttpResponse:
    """This process answers. Nothing else is asked: the database's illness is not cured by starting this anew."""
    return HttpResponse("ok\n", content_type="text/plain")


@login_not_required
@require_safe
@never_cache
def readyz(request: HttpRequest) -> HttpResponse:
    """200 when everything that is needed is well, else 503; each part with what ails it."""
    found = parts()
    ready = not any(part.why for part in found if part.needed)
    status = "unready" if not ready else "degraded" if any(part.why for part in found) else "ready"
    told = {"status": status, "parts": {part.name: part.told for part in found}}
    return JsonResponse(told, status=200 if ready else 503, json_dumps_params={"indent": 2})

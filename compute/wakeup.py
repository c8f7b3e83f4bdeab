"""The wake-up call: an operation's id on a queue. Nothing is lost when it is not heard; the keeper looks for itself."""

from __future__ import annotations

from functools import cache

import redis
from django.conf import settings
from rq import Queue, Worker
from rq.job import Job

FAILURES_KEPT = 24 * 3600  # seconds


@cache
def _connection() -> redis.Redis:
    # Without redis-py's own retries: a click must not wait for a Redis that is down.
    return redis.Redis.from_url(settings.REDIS_URL, retry=None, socket_connect_timeout=1, socket_timeout=1)


def listeners(queue: str) -> int:
    """Workers that listen to it. One that was killed counts for a while. Raises ``redis.RedisError``."""
    return len(Worker.all(queue=Queue(queue, connection=_connection())))


def send(queue: str, operation: str) -> None:
    """Enqueue ``compute.operations.run``. Raises ``redis.RedisError`` when nobody listens."""
    Queue(queue, connection=_connection()).enqueue(
        "compute.operations.run",
        operation,
        job_timeout=-1,  # our own limits end it
        result_ttl=0,
        failure_ttl=FAILURES_KEPT,
        description=operation,
    )


def waiting(queue: str) -> list[Job]:
    """Calls that nobody has heard yet; their ``description`` is the operation's id. Raises ``redis.RedisError``."""
    return Queue(queue, connection=_connection()).jobs

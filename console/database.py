"""How the rows are reached, from a DATABASE_URL."""

from __future__ import annotations

from typing import Any

import environ


def database(url: str, *, idle_seconds: float = 30) -> dict[str, Any]:
    """An entry of ``DATABASES``. ``idle_seconds``: how long PostgreSQL keeps a transaction in which nothing happens."""
    entry: dict[str, Any] = environ.Env.db_url_config(url)
    if entry["ENGINE"] == "django.db.backends.sqlite3":
        # The write lock before the first read: deferred transactions that read, then write, make each other fail.
        entry["OPTIONS"] = {
            "transaction_mode": "IMMEDIATE",
            "timeout": 20,
            "init_command": "PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL;",
        }
        return entry
    # A stopped process inside a transaction must not hold its row locks for ever.
    milliseconds = round(idle_seconds * 1000)
    entry.setdefault("OPTIONS", {})["options"] = f"-c idle_in_transaction_session_timeout={milliseconds}"
    entry["CONN_MAX_AGE"] = 60
    entry["CONN_HEALTH_CHECKS"] = True
    return entry

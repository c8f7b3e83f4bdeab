"""The rows live in PostgreSQL as well as in SQLite."""

from __future__ import annotations

import os

import pytest

from tests.console.test_settings import PRODUCTION, manage

pytestmark = pytest.mark.postgres


def test_everything_is_prepared_and_a_stopped_transaction_gives_its_locks_back(postgres, tmp_path):
    environment = PRODUCTION | {"DATABASE_URL": postgres.create("production"), "STILLFRAME_DATA": str(tmp_path)}
    prepared = manage("prepare", **environment)
    assert prepared.returncode == 0, prepared.stderr
    assert manage("migrate", "--check", **environment).returncode == 0
    assert list((tmp_path / "static").glob("**/*.css"))
    ask = "from django.db import connection as c; k = c.cursor(); k.execute('show idle_in_transaction_session_timeout')"
    told = manage("shell", "--no-imports", "-c", f"{ask}; print(k.fetchone()[0])", **environment)
    assert told.stdout.strip() == "30s", os.linesep.join([told.stdout, told.stderr])

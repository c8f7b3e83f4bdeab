"""Plain `pytest` runs anywhere, and says what it left out."""

from __future__ import annotations

import os
import subprocess
import sys

from django.conf import settings


def pytest_told(*arguments: str, **environment: str) -> str:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST_", "STILLFRAME_TEST"))}
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider", *arguments]
    file = "tests/console/test_postgres.py"
    run = subprocess.run(
        [*command, file], check=False, cwd=settings.BASE_DIR, env=kept | environment, capture_output=True
    )
    return run.stdout.decode()


def test_what_needs_a_server_is_left_out_and_counted():
    told = pytest_told()
    assert "1 tests left out" in told
    assert "make test" in told


def test_it_is_run_when_asked_for_by_name_or_by_make_test():
    for told in (pytest_told("-m", "postgres"), pytest_told(STILLFRAME_TEST_ALL="1")):
        assert "test_everything_is_prepared" in told
        assert "left out" not in told

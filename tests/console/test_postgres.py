"""The rows live in PostgreSQL as well as in SQLite."""

from __future__ import annotations

import getpass
import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.console.test_settings import PRODUCTION, manage

pytestmark = pytest.mark.postgres


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """A private cluster on a UNIX socket; its DATABASE_URL. The host's own clusters are not touched."""
    programs = max(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: int(path.parent.name))
    with tempfile.TemporaryDirectory(prefix="sf-") as directory:
        initdb: list[str | Path] = [programs / "initdb", "--auth=trust", "--encoding=UTF8", "--no-sync", "-D"]
        subprocess.run([*initdb, f"{directory}/data"], check=True, stdout=subprocess.DEVNULL)
        command: list[str | Path] = [programs / "pg_ctl", "-D", f"{directory}/data", "-w"]
        server = f"-k {directory} -c listen_addresses='' -c fsync=off"
        subprocess.run(
            [*command, "-o", server, "-l", f"{directory}/log", "start"], check=True, stdout=subprocess.DEVNULL
        )
        try:
            subprocess.run([programs / "createdb", "-h", directory, "stillframe"], check=True)
            yield f"postgres://{getpass.getuser()}@/stillframe?host={directory}"
        finally:
            subprocess.run([*command, "-m", "immediate", "stop"], check=True, stdout=subprocess.DEVNULL)


def test_everything_is_prepared_and_a_stopped_transaction_gives_its_locks_back(postgres, tmp_path):
    environment = PRODUCTION | {"DATABASE_URL": postgres, "STILLFRAME_DATA": str(tmp_path)}
    prepared = manage("prepare", **environment)
    assert prepared.returncode == 0, prepared.stderr
    assert manage("migrate", "--check", **environment).returncode == 0
    assert list((tmp_path / "static").glob("**/*.css"))
    ask = "from django.db import connection as c; k = c.cursor(); k.execute('show idle_in_transaction_session_timeout')"
    told = manage("shell", "--no-imports", "-c", f"{ask}; print(k.fetchone()[0])", **environment)
    assert told.stdout.strip() == "30s", os.linesep.join([told.stdout, told.stderr])

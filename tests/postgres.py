"""A private PostgreSQL for tests, which dies with them, and where the rows of this process are."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Self

import psycopg
from django.contrib.contenttypes.models import ContentType
from django.db import connection, connections

from console.database import database
from tests.processes import wait_until

USER = "stillframe"
# What is tried is locks and transactions, not disks.
SETTINGS = {
    "listen_addresses": "",
    "fsync": "off",
    "autovacuum": "off",
    "max_connections": "300",
    "wal_level": "minimal",
    "max_wal_senders": "0",
}


class Server:
    """A cluster in ``directory``, on a UNIX socket there (short: its path ends at 108 bytes)."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        programs = max(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: int(path.parent.name))
        data = self.directory / "data"
        initdb = [programs / "initdb", "--auth=trust", "--encoding=UTF8", "--no-locale", "--no-sync"]
        subprocess.run([*initdb, f"--username={USER}", "-D", data], check=True, stdout=subprocess.DEVNULL)
        options = [word for name, value in SETTINGS.items() for word in ("-c", f"{name}={value}")]
        # SIGQUIT ends it at once, with all that it has started.
        command = ["setpriv", "--pdeathsig=QUIT", programs / "postgres", "-D", data, "-k", self.directory, *options]
        with (self.directory / "log").open("wb") as log:
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        wait_until(self._answers, what="PostgreSQL")
        return self

    def __exit__(self, *raised: object) -> None:
        assert self.process
        self.process.send_signal(signal.SIGQUIT)
        self.process.wait()

    @property
    def version(self) -> str:
        with self._connect() as connected:
            return connected.execute("SHOW server_version").fetchone()[0].split()[0]

    def url(self, name: str) -> str:
        return f"postgres://{USER}@/{name}?host={self.directory}"

    def create(self, name: str, *, template: str = "template1") -> str:
        """A new database, with all that is in ``template``; its URL. Nobody may be connected to that one."""
        with self._connect() as connected:
            connected.execute(f'CREATE DATABASE "{name}" TEMPLATE "{template}"')
        return self.url(name)

    def drop(self, name: str) -> None:
        with self._connect() as connected:
            connected.execute(f'DROP DATABASE "{name}" WITH (FORCE)')

    def end_connection(self, backend: int) -> None:
        """As an administrator does, or a server that is restarted."""
        with self._connect() as connected:
            connected.execute("SELECT pg_terminate_backend(%s, 5000)", [backend])

    def _connect(self) -> psycopg.Connection:
        return psycopg.connect(host=str(self.directory), user=USER, dbname="postgres", autocommit=True)

    def _answers(self) -> bool:
        assert self.process
        assert self.process.poll() is None, (self.directory / "log").read_text()
        try:
            self._connect().close()
        except psycopg.OperationalError:
            return False
        return True


def url_of_rows() -> str:
    """DATABASE_URL of the rows that this process sees now."""
    about = connection.settings_dict
    if connection.vendor == "sqlite":
        return f"sqlite:///{about['NAME']}"
    return f"postgres://{about['USER']}@/{about['NAME']}?host={about['OPTIONS']['host']}"


def see(url: str, *, idle_seconds: float = 30) -> None:
    """This process sees the rows of that database from now on."""
    _see(connections.configure_settings({"default": database(url, idle_seconds=idle_seconds)})["default"])


@contextmanager
def rows_in(url: str) -> Iterator[None]:
    """Meanwhile."""
    kept = connections.settings["default"]
    see(url)
    try:
        yield
    finally:
        _see(kept)


def _see(settings: dict[str, object]) -> None:
    connections["default"].close()
    del connections["default"]
    connections.settings["default"] = settings
    ContentType.objects.clear_cache()  # their numbers are those of a database

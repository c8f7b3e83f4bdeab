"""Who holds the write lock of an SQLite database: a process that was stopped inside a transaction holds up every other.

PostgreSQL ends such a transaction by itself (``idle_in_transaction_session_timeout``). SQLite has nobody who could, and
before its commit no row says whose it is; the kernel knows.
"""

from __future__ import annotations

import os
from pathlib import Path

from django.db import connection

from compute.engines import processes

# Of the file with the write-ahead log's index: SQLite locks this byte to write.
WRITER = 120
LOCKS = Path("/proc/locks")


def holder() -> str | None:
    """Name of the process that is writing to our database now (see ``processes``); None when nobody is, or not SQLite.

    Looks only at what the kernel shows: to open and close the file would drop the locks of this very process.
    """
    if connection.vendor != "sqlite":
        return None
    try:
        index = Path(f"{connection.settings_dict['NAME']}-shm").stat()
    except FileNotFoundError:
        return None
    file = f"{os.major(index.st_dev):02x}:{os.minor(index.st_dev):02x}:{index.st_ino}"
    for line in LOCKS.read_text().splitlines():
        # "1: POSIX  ADVISORY  WRITE 4711 fd:00:2349 120 120", and "1: -> …" for one who waits.
        words = line.split()
        if words[1] == "POSIX" and words[3] == "WRITE" and words[5:7] == [file, str(WRITER)]:
            return _name(int(words[4]))
    return None


def _name(pid: int) -> str | None:
    try:
        return processes.name_of(pid)
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return None  # it has ended, is in another process namespace, or another user's

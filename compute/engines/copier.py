"""A detached copier: ``python copier.py ROOM`` copies what its standard input orders, as a process of its own.

It outlives whoever started it and is found again by its room: it holds a lock on ``copy.lock`` while it lives, keeps
the order with its instant in ``copy.json``, then its pid in the lock, tells how far it is in ``copy.progress``, and
writes ``copy.result`` last. Of several that were started only the one with the lock writes anything, and only into the
directory it opened at its start: a room that was removed meanwhile stays removed. Standard library only.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import sys
import time
from datetime import UTC, datetime
from typing import Any

CHUNK = 1 << 20


def take(lock: int) -> bool:
    """Lock it. Whoever asks whether a copier lives holds it for a moment: that is waited for, another copier is not."""
    for _ in range(20):
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(0.05)
        else:
            return True
    return False


class Copier:
    def __init__(self, room: str) -> None:
        self.room = os.open(room, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        self.progress: dict[str, list[int]] = {}
        self.told = 0.0

    def run(self) -> None:
        lock = self.open("copy.lock", os.O_RDWR | os.O_CREAT)
        if not take(lock):
            return  # another copier of this room was first
        order = json.load(sys.stdin) | {"instant": datetime.now(UTC).isoformat()}
        # Its notes are taken away, the order's first, once it was seen to be done; what it copied stays.
        ended = not self.exists("copy.json") and any(self.exists(part["target"]) for part in order["parts"].values())
        if self.exists("copy.result") or ended:
            return  # and has finished: what it copied may be published by now
        os.ftruncate(lock, 0)
        self.write("copy.json", order)
        os.write(lock, str(os.getpid()).encode())
        try:
            self.copy(order)
            result: dict[str, Any] = {"ok": True}
        except OSError as error:
            for part in order["parts"].values():
                # Where the store is full, the result needs a little of what the copy took.
                os.ftruncate(self.open(part["target"], os.O_WRONLY | os.O_CREAT), 0)
            full = error.errno in (errno.ENOSPC, errno.EDQUOT)
            code = "store-full" if full else "copy-failed"
            result = {"code": code, "data": {} if full else {"errno": errno.errorcode.get(error.errno or 0, "?")}}
        self.write("copy.result", result)

    def copy(self, order: dict[str, Any]) -> None:
        sources = {name: os.open(part["source"], os.O_RDONLY | os.O_NOFOLLOW) for name, part in order["parts"].items()}
        self.progress = {name: [0, os.fstat(source).st_size] for name, source in sources.items()}
        self.tell(force=True)
        began, moved = time.monotonic(), 0
        for name, source in sources.items():
            target = self.open(order["parts"][name]["target"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            size = self.progress[name][1]
            os.ftruncate(target, size)
            position = 0
            while position < size:
                try:
                    position = os.lseek(source, position, os.SEEK_DATA)
                except OSError as error:
                    if error.errno != errno.ENXIO:
                        raise
                    break  # nothing but a hole is left
                end = os.lseek(source, position, os.SEEK_HOLE)
                while position < end:
                    chunk = os.pread(source, min(CHUNK, end - position), position)
                    if not chunk:
                        raise OSError(errno.EIO, "source became shorter")
                    written = os.pwrite(target, chunk, position)
                    position, moved = position + written, moved + written
                    self.progress[name][0] = position
                    self.tell()
                    if order["rate"]:
                        time.sleep(max(0.0, moved / order["rate"] - (time.monotonic() - began)))
            os.fsync(target)
            os.close(target)
            self.progress[name][0] = size
            self.tell(force=True)

    def tell(self, *, force: bool = False) -> None:
        if force or time.monotonic() - self.told > 0.2:
            self.write("copy.progress", self.progress, durable=False)
            self.told = time.monotonic()

    def write(self, name: str, content: Any, *, durable: bool = True) -> None:
        with os.fdopen(self.open(f"{name}.new", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), "w") as file:
            json.dump(content, file)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        os.rename(f"{name}.new", name, src_dir_fd=self.room, dst_dir_fd=self.room)

    def exists(self, name: str) -> bool:
        try:
            os.stat(name, dir_fd=self.room, follow_symlinks=False)
        except FileNotFoundError:
            return False
        return True

    def open(self, name: str, flags: int) -> int:
        return os.open(name, flags | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=self.room)


if __name__ == "__main__":
    Copier(sys.argv[1]).run()

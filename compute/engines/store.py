"""Rooms of an image store: where captured files lie, how they are sealed, how they go away.

::

    ROOT/<key>.creating/<part>.<format>    the room of a running operation
    ROOT/<key>/<part>.<format>             the same, sealed: every file inspected, hashed and on the disk
    ROOT/<key>/sealed.json                 what sealing found, so that asking again gives the same answer

A part's format is what the engine wrote it as and named it by; content never decides it (R25).
"""

from __future__ import annotations

import errno
import json
import os
import re
import secrets
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Collection, Generator, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict
from hashlib import sha256
from pathlib import Path
from typing import Any, BinaryIO

from oslo_utils.imageutils import format_inspector

from compute.engines.base import EngineError, Holding, Sealed, Unreachable

FORMATS = ("qcow2", "raw")
RECORD = "sealed.json"
OPEN = ".creating"
PROOF = "doctor"  # the key of ``prove``
CHUNK = 4 << 20
TOLD_EVERY = 0.5  # seconds between two signs of life
HELPER_MEMORY = 1 << 30
HELPER_CPU_SECONDS = 240

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
_STORED = re.compile(rf"({_NAME.pattern})/({_NAME.pattern}\.(?:{'|'.join(FORMATS)}))")


class Store:
    """The directory of one region's images, ours alone (0700, no links followed)."""

    def __init__(self, root: str | os.PathLike[str], *, check_qcow2: bool, notes: Collection[str] = ()) -> None:
        """``check_qcow2``: let ``qemu-img check`` walk each qcow2 file's tables before it is published.

        ``notes``: names of files that the engine keeps in its rooms beside the parts.
        """
        self.root = Path(root)
        self.check_qcow2 = check_qcow2
        self.notes = {RECORD, *notes}

    def space(self) -> tuple[int, int]:
        """Free and total bytes of the file system the store lies on."""
        with told():
            self._present()
            facts = os.statvfs(self.root)
        return facts.f_bavail * facts.f_frsize, facts.f_blocks * facts.f_frsize

    def holdings(self) -> list[Holding]:
        """Rooms, the files of rooms and of what was published, and whatever else lies here."""
        with told():
            self._present()
            # The store may be a file system of its own.
            places = sorted(place for place in self.root.iterdir() if place.name != "lost+found")
            return [holding for place in places for holding in _holdings(place, self.notes)]

    def prove(self, format: str, copy: Callable[[Path, Path], object]) -> None:
        """Let a small disk become an image by ``copy(disk, file)``, read it, and remove it again."""
        disk = os.urandom(64 << 10)
        self.discard(PROOF)  # of one that was killed
        self.make_room(PROOF)
        try:
            source = self.room(PROOF) / "disk"
            with told():
                source.write_bytes(disk)
                copy(source, self.part(PROOF, "vda", format))
            for _ in self.seal(PROOF, {"vda": len(disk)}):
                pass
            with told():
                if disk not in self.path(f"{PROOF}/vda.{format}").read_bytes():
                    raise EngineError("store-failed", errno="EIO")
        finally:
            self.discard(PROOF)

    def make_room(self, key: str) -> None:
        """Make the room of ``key``; fine when it is there or already sealed."""
        with told():
            self._present()
            if not self._published(key).is_dir():
                self.opened(key).mkdir(mode=0o700, exist_ok=True)

    def room(self, key: str) -> Path:
        """The room of ``key`` while it is open for writing. ``EngineError("no-room")`` when it is not there."""
        self._present()
        room = self.opened(key)
        if room.is_symlink() or not room.is_dir():
            raise EngineError("no-room")
        return room

    def opened(self, key: str) -> Path:
        """Where the room of ``key`` is while it is open, whether or not it is there."""
        return self.root / f"{_safe(key)}{OPEN}"

    def part(self, key: str, name: str, format: str) -> Path:
        """Where the capture of part ``name`` is to be written; the room must be there, the file need not."""
        if format not in FORMATS:
            raise ValueError(f"not a format of the store: {format!r}")
        return self.room(key) / f"{_safe(name)}.{format}"

    def seal(self, key: str, parts: Mapping[str, int]) -> Generator[dict[str, int], None, dict[str, Sealed]]:
        """``Engine.seal``: the file of each part is inspected, hashed, made durable, and all are published at once."""
        with told():
            self._present()
            published = self._published(key)
            if not published.is_dir():
                try:
                    yield from self._publishable(key, parts)
                    _publish(self.room(key), published)
                except (EngineError, FileNotFoundError) as error:
                    # Somebody else who sealed the same room was first, and took it away under us.
                    missed = isinstance(error, FileNotFoundError) or error.code in ("no-room", "part-missing")
                    if not (missed and published.is_dir()):
                        raise
            # Of whoever died, or was given up for dead, while writing a note.
            for draft in published.glob("*.draft"):
                draft.unlink(missing_ok=True)
            record = json.loads((published / RECORD).read_bytes())
        sealed = {name: Sealed(**facts) for name, facts in record.items()}
        if sealed.keys() != parts.keys():
            raise EngineError("other-parts", expected=sorted(parts), found=sorted(sealed))
        return sealed

    def discard(self, key: str) -> bool:
        """Remove the room of ``key`` and what was published from it. True once nothing is left."""
        with told():
            self._present()
            # The room first: a ghost that seals between the two lines publishes into what the second removes.
            places = (self.opened(key), self._published(key))
            for place in places:
                _remove(place)
            _sync_directory(self.root)
            return not any(os.path.lexists(place) for place in places)

    def erase(self, stored: str) -> bool:
        """Delete one published file; with the last of them its directory goes too. True once it is gone.

        A file that is not ours keeps the directory.
        """
        match = _STORED.fullmatch(stored)
        if match is None:
            raise ValueError(f"not a file of the store: {stored!r}")
        key, file = match.groups()
        with told():
            self._present()
            try:
                directory = os.open(self._published(key), os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            except FileNotFoundError:
                return True
            try:
                with suppress(FileNotFoundError):
                    os.unlink(file, dir_fd=directory)
                os.fsync(directory)
            finally:
                os.close(directory)
            published = self._published(key)
            # Not found: another erase of the last two files was faster.
            with suppress(FileNotFoundError):
                if all(_is_note(left, self.notes) for left in published.iterdir()):
                    _remove(published)
                    _sync_directory(self.root)
        return True

    def path(self, stored: str) -> Path:
        """Where a published file (``Sealed.id``) lies."""
        if not _STORED.fullmatch(stored):
            raise ValueError(f"not a file of the store: {stored!r}")
        return self.root / stored

    def _present(self) -> None:
        # A store that is not mounted must not look like one in which everything has been deleted.
        if not self.root.is_dir():
            raise Unreachable(store=str(self.root))

    def _published(self, key: str) -> Path:
        return self.root / _safe(key)

    def _publishable(self, key: str, parts: Mapping[str, int]) -> Generator[dict[str, int], None, None]:
        """Inspect and hash every part, then write the record: its presence means that all of them are well."""
        room = self.room(key)
        if (room / RECORD).exists():
            return
        record = {}
        seen = dict.fromkeys(parts, 0)
        yield dict(seen)
        for name, capacity in parts.items():
            path, format = _find(self.room(key), name)
            with open(path, "rb", opener=_no_follow) as file:
                inspect(file, name, format, capacity)
                if format == "qcow2" and self.check_qcow2:
                    for _ in _check(path, name):
                        yield dict(seen)
                for _ in _made_durable(file):
                    yield dict(seen)
                digest = sha256()
                told = time.monotonic()
                file.seek(0)
                while chunk := file.read(CHUNK):
                    digest.update(chunk)
                    seen[name] += len(chunk)
                    if time.monotonic() - told > TOLD_EVERY:
                        yield dict(seen)
                        told = time.monotonic()
                stat = os.fstat(file.fileno())
                os.fchmod(file.fileno(), 0o400)
                os.fsync(file.fileno())
            stored = f"{key}/{path.name}"
            record[name] = asdict(Sealed(stored, format, capacity, stat.st_blocks * 512, digest.hexdigest()))
            yield dict(seen)
        put(room / RECORD, record)


def put(file: Path, content: Any) -> None:
    """Write a note as JSON: it is there as a whole or not at all, also when two write it or the machine loses power."""
    draft = file.with_name(f"{file.name}.{secrets.token_hex(4)}.draft")
    with draft.open("x") as out:
        json.dump(content, out, indent=1)
        out.flush()
        os.fsync(out.fileno())
    draft.rename(file)
    _sync_directory(file.parent)


def _made_durable(file: BinaryIO) -> Iterator[None]:
    """Yields meanwhile: what the page cache holds of a large file can take a slow disk minutes."""
    failed: list[OSError] = []
    own = os.dup(file.fileno())

    def flush() -> None:
        try:
            os.fsync(own)
        except OSError as error:
            failed.append(error)
        finally:
            os.close(own)

    flushing = threading.Thread(target=flush, name="fsync", daemon=True)
    flushing.start()
    flushing.join(TOLD_EVERY)
    while flushing.is_alive():
        yield
        flushing.join(TOLD_EVERY)
    if failed:
        raise failed[0]


def _holdings(place: Path, notes: Collection[str]) -> Iterator[Holding]:
    key = place.name.removesuffix(OPEN)
    if not _NAME.fullmatch(key) or place.is_symlink() or not place.is_dir():
        yield Holding(place.name)
        return
    try:
        files = sorted(file for file in place.iterdir() if not _is_note(file, notes))
    except FileNotFoundError:
        return  # renamed or removed meanwhile
    published = place.name == key
    if not published or not files:
        yield Holding(place.name, key)
    for file in files:
        name = f"{place.name}/{file.name}"
        is_part = _NAME.fullmatch(file.stem) and file.suffix.removeprefix(".") in FORMATS
        if is_part and file.is_file() and not file.is_symlink():
            yield Holding(name, key, part=file.stem, published=published)
        else:
            yield Holding(name, key, part=file.name)


def _is_note(file: Path, notes: Collection[str]) -> bool:
    return any(file.name == note or file.name.startswith(f"{note}.") for note in notes)


def inspect(file: BinaryIO, part: str, format: str, capacity: int) -> None:
    """Make sure that a file is a standalone image of the declared format and capacity (R25). Reads its header only.

    Raises ``EngineError("hostile-image", part=…, why=…)``; ``why`` is one of ``format``, ``size``, ``backing_file``,
    ``data_file``, ``unknown_features``.
    """
    try:
        header = _header(file, format)
        header.safety_check()
    except format_inspector.SafetyCheckFailed as error:
        raise EngineError("hostile-image", part=part, why=min(error.failures)) from error
    except format_inspector.ImageFormatError as error:
        raise EngineError("hostile-image", part=part, why="format") from error
    size = header_size(file, format)
    if size != capacity:
        raise EngineError("hostile-image", part=part, why="size", expected=capacity, found=size)


def header_size(file: BinaryIO, format: str) -> int:
    """The capacity in bytes of an image of the declared format, whatever else it is. ``ValueError``: not one."""
    if format == "raw":
        # Anything at all may be in a raw file. It is never probed (CVE-2015-7548).
        return os.fstat(file.fileno()).st_size
    header = _header(file, format)
    if not (header.complete and header.format_match):
        raise ValueError(f"not {format}")
    return header.virtual_size


def _header(file: BinaryIO, format: str) -> format_inspector.FileInspector:
    inspector_class = format_inspector.get_inspector(format)
    if inspector_class is None:
        raise ValueError(f"not a format: {format!r}")
    header = inspector_class()
    file.seek(0)
    header.eat_chunk(file.read(512))
    header.finish()
    return header


def helper(*command: str) -> subprocess.Popen[str]:
    """Start a short helper process: limited memory and CPU time, no core, and dead when we are.

    The parent's death is noticed when the *thread* that called this ends, so wait for it in the same thread.
    """
    limits = (f"--as={HELPER_MEMORY}", f"--cpu={HELPER_CPU_SECONDS}", "--core=0")
    return subprocess.Popen(
        ("setpriv", "--pdeathsig", "KILL", "prlimit", *limits, *command),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        # One arena for all threads: qemu-img starts up to 64 of them on a busy machine, and the 64 MiB of addresses
        # that each would reserve do not fit into the memory it may have.
        env={"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C.UTF-8", "MALLOC_ARENA_MAX": "1"},
    )


def _check(path: Path, part: str) -> Iterator[None]:
    """Let qemu-img walk the tables of a qcow2 file, yielding now and then. The header must have been inspected."""
    process = helper("qemu-img", "check", "-q", "-f", "qcow2", str(path))
    try:
        while True:
            try:
                output, _ = process.communicate(timeout=TOLD_EVERY)
                break
            except subprocess.TimeoutExpired:
                yield
    finally:
        if process.poll() is None:
            process.kill()
            process.communicate()
    if process.returncode == 2:
        raise EngineError("damaged-image", part=part)
    # 3: clusters that nothing refers to. They waste space and harm nobody.
    if process.returncode not in (0, 3):
        raise EngineError("check-failed", part=part, exit=process.returncode, said=output[-500:].strip())


def _find(room: Path, name: str) -> tuple[Path, str]:
    found = [(path, format) for format in FORMATS if os.path.lexists(path := room / f"{_safe(name)}.{format}")]
    if len(found) != 1:
        raise EngineError("part-missing", part=name)
    return found[0]


def _publish(room: Path, published: Path) -> None:
    room.rename(published)
    _sync_directory(published.parent)


def _remove(place: Path) -> None:
    if place.is_symlink():
        place.unlink()
    # Not found: it was not there, or somebody renamed or removed something in it meanwhile; the caller looks again.
    with suppress(FileNotFoundError):
        shutil.rmtree(place)


def _sync_directory(path: Path) -> None:
    directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def _no_follow(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW)


def _safe(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise ValueError(f"not a name in the store: {name!r}")
    return name


@contextmanager
def told() -> Iterator[None]:
    """What the file system refuses, as an error that can be told."""
    try:
        yield
    except FileNotFoundError as error:
        # Every place is checked before it is used, so it was taken away under us: the operation was undone.
        raise EngineError("no-room") from error
    except OSError as error:
        raise os_error(error) from error


def os_error(error: OSError) -> EngineError:
    """``store-full`` when there is no space, ``store-failed`` with the system's own word for anything else."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return EngineError("store-full")
    return EngineError("store-failed", errno=errno.errorcode.get(error.errno or 0, "EIO"), path=error.filename)

"""What the file of a disk says of itself, read without asking libvirt: a QEMU that hangs cannot keep it from us."""

from __future__ import annotations

import os
import stat
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from compute.engines.base import EngineError
from compute.engines.libvirt.domain import DomainDisk
from compute.engines.store import header_size

DEEPEST = 32  # files on top of each other
FORMAT_BELOW = 0xE2792ACA  # type of the qcow2 header extension that names the format of the file below


@dataclass(frozen=True)
class Measured:
    size: int  # capacity in bytes
    allocated: int  # bytes really in use, by the files below a thin disk as well: a copy holds them all


def measured(disk: DomainDisk) -> Measured:
    """Capacity and allocated bytes of a disk, running or not.

    ``EngineError("disk-unreadable")`` when its file is not there, not ours to read, or not of the declared format.
    """
    try:
        with _opened(disk.path) as file:
            size = header_size(file, disk.format)
            allocated = _in_use(file)
            below = _below(file, disk.path) if disk.format == "qcow2" else None
        return Measured(size, min(size, allocated + _in_use_below(below, size)))
    except (OSError, ValueError, struct.error) as error:
        raise EngineError("disk-unreadable", device=disk.device) from error


def _opened(path: str) -> BinaryIO:
    """A regular file, for reading; ``OSError`` for anything else."""
    # Without O_NONBLOCK opening a FIFO would wait for ever.
    file = os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb")
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise OSError(f"not a regular file: {path}")
    return file


def _in_use(file: BinaryIO) -> int:
    return os.fstat(file.fileno()).st_blocks * 512


def _in_use_below(below: tuple[str, str] | None, unknown: int) -> int:
    """Bytes in use by all files below a thin disk; ``unknown`` when one of them cannot be read."""
    allocated = 0
    for _ in range(DEEPEST):
        if below is None:
            return allocated
        path, format = below
        try:
            with _opened(path) as file:
                allocated += _in_use(file)
                below = _below(file, path) if format == "qcow2" else None
        except OSError:
            return unknown
    return unknown


def _below(file: BinaryIO, path: str) -> tuple[str, str] | None:
    """File and format that a qcow2 header says lie below it; None for none, or what is not a plain file's name.

    No guest can write this header, only whoever made the disk; and of what it names nothing but the size is looked at.
    """
    file.seek(0)
    head = file.read(64 << 10)  # one cluster: all of this lies in the first
    version, name_at, name_length = struct.unpack_from(">4xIQI", head)
    name = os.fsdecode(head[name_at : name_at + name_length]) if name_at else ""
    if not name or ":" in name:
        return None
    at, format = struct.unpack_from(">100xI", head)[0] if version > 2 else 72, "raw"
    while at + 8 <= name_at:
        kind, length = struct.unpack_from(">II", head, at)
        if not kind:
            break
        if kind == FORMAT_BELOW:
            format = head[at + 8 : at + 8 + length].decode("ascii", "replace")
        at += 8 + -(-length // 8) * 8
    return str(Path(path).parent / name), format

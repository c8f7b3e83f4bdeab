"""What the file of a disk says of itself, read without asking libvirt: a QEMU that hangs cannot keep it from us."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass

from compute.engines.base import EngineError
from compute.engines.libvirt.domain import DomainDisk
from compute.engines.store import header_size


@dataclass(frozen=True)
class Measured:
    size: int  # capacity in bytes
    allocated: int  # bytes really in use


def measured(disk: DomainDisk) -> Measured:
    """Capacity and allocated bytes of a disk, running or not.

    ``EngineError("disk-unreadable")`` when its file is not there, not ours to read, or not of the declared format.
    """
    try:
        # Without O_NONBLOCK opening a FIFO would wait for ever.
        with os.fdopen(os.open(disk.path, os.O_RDONLY | os.O_NONBLOCK), "rb") as file:
            facts = os.fstat(file.fileno())
            if not stat.S_ISREG(facts.st_mode):
                raise EngineError("disk-unreadable", device=disk.device)
            return Measured(header_size(file, disk.format), facts.st_blocks * 512)
    except (OSError, ValueError) as error:
        raise EngineError("disk-unreadable", device=disk.device) from error

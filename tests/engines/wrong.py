"""A deliberately wrong engine: it copies the disks of a running instance one after another.

Each copy is a healthy file, and together they are of no instant. The proof in `test_one_instant.py` has to notice.
"""

from __future__ import annotations

import subprocess
from datetime import UTC, datetime

from compute.engines.base import Captured, Consistency, Handle, Look, Part, WorkState
from compute.engines.libvirt import LibvirtEngine


class OneAfterAnother(LibvirtEngine):
    def begin(self, key: str, instance: str, parts: tuple[Part, ...]) -> tuple[Handle, Captured]:
        instant = datetime.now(UTC)
        facts = self.observe(instance)
        assert facts is not None
        for part in parts:
            format = next(disk.format for disk in facts.disks if disk.id == part.disk)
            # -U: never mind that the disk is being written to.
            convert = ("qemu-img", "convert", "-U", "-f", format, "-O", "qcow2", part.disk)
            subprocess.run((*convert, self._store.part(key, part.name, "qcow2")), check=True)
        return {"key": key}, Captured(Consistency.FROZEN, instant)

    def look(self, handle: Handle) -> Look:
        return Look(WorkState.DONE)

    def end(self, handle: Handle) -> None:
        pass

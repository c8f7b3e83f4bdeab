"""A real region of plain files for tests: disks with content, and a look into its store."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

from django.conf import settings

from compute import inventory
from compute.engines.folder import FolderEngine
from compute.models import Instance
from compute.regions import engine_for

MIB = 1 << 20


class Folder:
    """The folder region of the settings, emptied for each test."""

    region = "folder-1"

    def __init__(self) -> None:
        self.root = Path(settings.ENGINES[self.region]["OPTIONS"]["ROOT"])
        FolderEngine.create(self.root)

    @property
    def engine(self) -> FolderEngine:
        engine = engine_for(self.region)
        assert isinstance(engine, FolderEngine)
        return engine

    def instance(self, name: str, owner: Any, *, mib: int = 2, **media: str) -> Instance:
        """An instance with one raw disk per device, half random bytes and half a hole, known to the console."""
        place = self.root / "instances" / name
        place.mkdir(parents=True)
        for device in media:
            content = random.Random(f"{name}{device}").randbytes(mib * MIB // 2)
            with (place / f"{device}.raw").open("wb") as file:
                file.write(content)
                file.truncate(mib * MIB)
        disks = [{"device": device, "file": f"{device}.raw", "medium": medium} for device, medium in media.items()]
        self.engine.add_instance(name, name, disks)
        inventory.sync(self.region)
        row = Instance.objects.get(external_id=name)
        row.owner = owner
        row.save(update_fields=["owner"])
        row.disks.update(owner=owner)
        return row

    def disk(self, instance: str, device: str) -> Path:
        return self.root / "instances" / instance / f"{device}.raw"

    def stored(self, external_id: str) -> Path:
        return self.root / "store" / external_id

    def store_files(self) -> set[str]:
        store = self.root / "store"
        return {
            str(path.relative_to(store)) for path in store.rglob("*") if not path.is_dir() or not any(path.iterdir())
        }

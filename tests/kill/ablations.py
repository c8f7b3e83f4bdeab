"""What is taken out of the product, in forked processes only, to see that cells notice."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from django.db.models import F

from compute import keeper
from compute.engines import processes
from compute.engines.folder import FolderEngine
from compute.models import InstanceQuerySet, Operation, Region
from compute.operations import Attempt
from images.jobs import Room
from tests.kill import world


def _fence() -> None:
    """A hold no longer asks whose it is."""
    Attempt._mine = lambda attempt: Operation.objects.filter(pk=attempt.operation.pk)  # type: ignore[method-assign]


def _kill() -> None:
    """In the keeper: a silent holder is taken over without being killed."""
    taken: set[str] = set()
    alive = processes.is_alive
    processes.kill = taken.add
    processes.is_alive = lambda name: name not in taken and alive(name)


def _alarm() -> None:
    Attempt._arm = lambda attempt: None  # type: ignore[method-assign]


def _room() -> None:
    """``begin`` makes the room when it is not there."""
    begin = FolderEngine.begin

    def making(engine: FolderEngine, key: str, *args: Any) -> Any:
        engine.store.make_room(key)
        return begin(engine, key, *args)

    FolderEngine.begin = making  # type: ignore[method-assign]


def _judge() -> None:
    """In the keeper: the judge writes, too."""
    judge = keeper.Judge.round

    def writing(self: keeper.Judge) -> list[keeper.Verdict]:
        Region.objects.filter(pk="").update(versions={})
        return judge(self)

    keeper.Judge.round = writing  # type: ignore[method-assign]


def _lock() -> None:
    """In the keeper: nobody looks who holds SQLite's write lock."""
    keeper.Judge._free_write_lock = lambda judge, now: None  # type: ignore[method-assign]


def _undo() -> None:
    Room.undo = lambda step, attempt: True  # type: ignore[method-assign]


def _idle() -> None:
    """PostgreSQL keeps a transaction in which nothing happens."""
    world.IDLE = 3600.0


def _owed() -> None:
    """No row says that a guest is going to be asked to freeze."""
    update = InstanceQuerySet.update

    def forgetting(rows: InstanceQuerySet, **facts: Any) -> int:
        if facts.get("thaw_owed"):
            facts["thaw_owed"] = F("thaw_owed")
        return update(rows, **facts)

    InstanceQuerySet.update = forgetting  # type: ignore[method-assign]


IN_ALL: dict[str, Callable[[], None]] = {
    "fence": _fence,
    "alarm": _alarm,
    "room": _room,
    "undo": _undo,
    "idle": _idle,
    "owed": _owed,
}
IN_KEEPER: dict[str, Callable[[], None]] = {"kill": _kill, "judge": _judge, "lock": _lock}
NAMES = (*IN_ALL, *IN_KEEPER)


def take_out(which: frozenset[str]) -> None:
    for name in which & IN_ALL.keys():
        IN_ALL[name]()


def take_out_of_keeper(which: frozenset[str]) -> None:
    for name in which & IN_KEEPER.keys():
        IN_KEEPER[name]()

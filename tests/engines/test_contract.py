"""What `compute/engines/base.py` promises, tried on every engine with real disks (R8, R24, R25)."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime
from hashlib import sha256

import pytest

from compute.engines.base import Consistency, EngineError, Handle, Holding, Power, WorkState
from tests.engines.worlds import World, ended, sealed, until

KEY = "7f3a"


def test_instances_are_found_with_their_disks_in_device_order(world: World) -> None:
    name = world.instance("web-1", "vda", "vdb", "vdc")

    facts = world.facts(name)

    # Other tests' machines may be there too.
    assert facts in world.engine().inventory().instances
    assert facts.name == "web-1"
    assert facts.power is Power.STOPPED
    assert [disk.device for disk in facts.disks] == ["vda", "vdb", "vdc"]
    assert {disk.size for disk in facts.disks} == {8 << 20}
    assert [disk.problem for disk in facts.disks] == ["", "", ""]
    # Those of a thin disk lie in the file below it.
    assert [disk.allocated for disk in facts.disks] == [8 << 20] * 3


def test_an_instance_that_is_not_there_is_answered_with_none(world: World) -> None:
    assert world.engine().observe(str(uuid.uuid4())) is None


def test_free_space_and_versions_are_told(world: World) -> None:
    inventory = world.engine().inventory()
    assert inventory.free is not None
    assert inventory.total is not None
    assert 0 < inventory.free < inventory.total
    free, total = world.engine().space() or (None, None)
    assert total == inventory.total
    assert free is not None
    assert 0 < free < total
    assert world.engine().versions()


def test_the_chosen_disks_are_captured_whole_and_the_others_left_out(world: World) -> None:
    name = world.instance("web-1", "vda", "vdb", "vdc")
    before = world.facts(name), {device: world.content(name, device) for device in ("vda", "vdb", "vdc")}
    engine = world.engine()
    began = datetime.now(UTC)

    engine.make_room(KEY)
    handle, captured = engine.begin(KEY, name, world.parts(name, "vda", "vdb"))
    assert captured.consistency is Consistency.OFFLINE
    assert captured.instant is not None
    assert began <= captured.instant <= datetime.now(UTC)
    done = ended(engine, handle)
    assert done.state is WorkState.DONE
    assert done.parts == {"vda": (8 << 20, 8 << 20), "vdb": (8 << 20, 8 << 20)}
    engine.end(handle)
    parts = sealed(engine, KEY, world.sizes(name, "vda", "vdb"))

    assert parts.keys() == {"vda", "vdb"}
    for device, part in parts.items():
        file = world.store / part.id
        assert world.stored(part) == before[1][device]
        assert part.size == 8 << 20
        assert part.sha256 == sha256(file.read_bytes()).hexdigest()
        assert part.stored == file.stat().st_blocks * 512
    assert world.facts(name) == before[0]
    assert {device: world.content(name, device) for device in ("vda", "vdb", "vdc")} == before[1]


def test_what_a_region_holds_is_told_by_whose_it_is(world: World) -> None:
    name = world.instance("web-1", "vda", mib=world.long_mib)
    engine = world.engine()
    engine.make_room(KEY)
    assert engine.holdings() == [Holding(f"{KEY}.creating", KEY)]

    handle, _ = world.begin_slowly(KEY, name, world.parts(name, "vda"))
    # Its own notes are not told.
    until(lambda: {holding.part for holding in engine.holdings()} == {"", "vda"})
    assert [holding.key for holding in engine.holdings() if holding.works] == [KEY]

    world.hurry(handle)
    assert ended(engine, handle).state is WorkState.DONE
    engine.end(handle)
    parts = sealed(engine, KEY, world.sizes(name, "vda"))
    assert engine.holdings() == [Holding(parts["vda"].id, KEY, part="vda", published=True)]
    (world.store / "stranger").touch()
    assert Holding("stranger") in engine.holdings()


def test_a_proof_leaves_nothing(world: World) -> None:
    world.engine().prove()
    assert world.left() == []


def test_only_make_room_makes_a_room(world: World) -> None:
    name = world.instance("web-1", "vda")
    with pytest.raises(EngineError, match="no-room"):
        world.engine().begin(KEY, name, world.parts(name, "vda"))
    with pytest.raises(EngineError, match="no-room"):
        sealed(world.engine(), KEY, world.sizes(name, "vda"))
    assert world.left() == []


def test_a_capture_is_found_again_by_a_client_that_knows_nothing_of_it(world: World) -> None:
    name = world.instance("web-1", "vda", "vdb", mib=world.long_mib)
    world.engine().make_room(KEY)
    handle, captured = world.begin_slowly(KEY, name, world.parts(name, "vda", "vdb"))

    again = world.engine()
    again.make_room(KEY)
    assert again.begin(KEY, name, world.parts(name, "vda", "vdb")) == (handle, captured)
    seen = again.look(handle)
    assert seen.state is WorkState.RUNNING
    assert seen.parts.keys() == {"vda", "vdb"}
    assert all(part is None or part[0] <= part[1] for part in seen.parts.values())

    world.hurry(handle)
    assert ended(world.engine(), handle).state is WorkState.DONE
    world.engine().end(handle)
    parts = sealed(world.engine(), KEY, world.sizes(name, "vda", "vdb"))
    assert {device: world.stored(part) for device, part in parts.items()} == {
        "vda": world.content(name, "vda"),
        "vdb": world.content(name, "vdb"),
    }


@pytest.mark.parametrize("known", [True, False], ids=["with its handle", "by its key alone"])
def test_a_running_capture_is_discarded_without_trace(world: World, known: bool) -> None:
    name = world.instance("web-1", "vda", "vdb", mib=world.long_mib)
    world.engine().make_room(KEY)
    handle, _ = world.begin_slowly(KEY, name, world.parts(name, "vda", "vdb"))
    assert world.engine().look(handle).state is WorkState.RUNNING
    given: Handle | None = handle if known else None

    until(lambda: world.engine().discard(KEY, given))

    assert world.left() == []
    assert world.engine().look(handle).state is WorkState.LOST
    assert world.engine().discard(KEY, given), "absent is fine"


def test_a_ghost_that_wakes_after_its_operation_was_undone_finds_nothing_to_write_into(world: World) -> None:
    name = world.instance("web-1", "vda")
    ghost = world.engine()
    ghost.make_room(KEY)
    handle, _ = ghost.begin(KEY, name, world.parts(name, "vda"))
    assert ended(ghost, handle).state is WorkState.DONE
    sealing = ghost.seal(KEY, world.sizes(name, "vda"))
    next(sealing)

    until(lambda: world.engine().discard(KEY, None))

    with pytest.raises(EngineError, match="no-room"):
        list(sealing)
    with pytest.raises(EngineError, match="no-room"):
        ghost.begin(KEY, name, world.parts(name, "vda"))
    ghost.end(handle)
    assert world.left() == []


def test_sealing_and_ending_again_change_nothing(world: World) -> None:
    name = world.instance("web-1", "vda")
    engine = world.engine()
    engine.make_room(KEY)
    handle, _ = engine.begin(KEY, name, world.parts(name, "vda"))
    ended(engine, handle)
    for _ in range(2):
        engine.end(handle)
    parts = sealed(engine, KEY, world.sizes(name, "vda"))
    left = world.left()

    assert sealed(world.engine(), KEY, world.sizes(name, "vda")) == parts
    engine.end(handle)
    engine.make_room(KEY)
    assert world.left() == left


def test_a_part_of_another_capacity_is_not_published(world: World) -> None:
    name = world.instance("web-1", "vda", "vdb")
    engine = world.engine()
    engine.make_room(KEY)
    handle, _ = engine.begin(KEY, name, world.parts(name, "vda", "vdb"))
    ended(engine, handle)
    engine.end(handle)

    with pytest.raises(EngineError, match="hostile-image"):
        sealed(engine, KEY, {"vda": 8 << 20, "vdb": 16 << 20})

    assert not (world.store / KEY).exists()


def test_published_files_go_one_by_one_or_all_at_once(world: World) -> None:
    name = world.instance("web-1", "vda", "vdb")
    engine = world.engine()
    for key in ("first", "second"):
        engine.make_room(key)
        handle, _ = engine.begin(key, name, world.parts(name, "vda", "vdb"))
        ended(engine, handle)
        engine.end(handle)
    first = sealed(engine, "first", world.sizes(name, "vda", "vdb"))
    second = sealed(engine, "second", world.sizes(name, "vda", "vdb"))

    assert engine.discard("second", None)
    assert not any((world.store / part.id).exists() for part in second.values())

    assert engine.erase(first["vda"].id)
    assert engine.erase(first["vda"].id), "absent is fine"
    assert (world.store / first["vdb"].id).exists()
    assert engine.erase(first["vdb"].id)
    assert world.left() == []


def test_power(world: World) -> None:
    name = world.instance("web-1", "vda")
    engine = world.engine()
    if not engine.abilities.power:
        for verb in (lambda: engine.start(name), lambda: engine.stop(name, force=True)):
            with pytest.raises(EngineError, match="no-power"):
                verb()
        return
    for _ in range(2):
        engine.start(name)
    assert world.facts(name).power is Power.RUNNING
    for _ in range(2):
        engine.stop(name, force=True)
    assert world.facts(name).power is Power.STOPPED
    assert engine.thaw(name), "what does not run is not frozen"

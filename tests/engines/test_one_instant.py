"""The proof (R8): the disks of one image are of one instant, and of the instant the image was asked for.

A guest writes one counter to disk A, then B, then C, each write durable before the next. So at every instant
A ≥ B ≥ C and A − C ≤ 1; copies that were not taken at one instant cannot keep that while the counter runs.
"""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from compute.engines.base import Consistency, Engine, WorkState
from tests.engines.worlds import Guest, counter, ended, sealed
from tests.engines.wrong import OneAfterAnother

pytestmark = pytest.mark.qemu

KEY = "proof"
DISKS = ("vdb", "vdc", "vdd")


@dataclass(frozen=True)
class Evidence:
    """What the copies hold, and what the disks held right before the request and right after the instant."""

    a: int
    b: int
    c: int
    c_before: int
    a_after: int

    def is_one_instant(self) -> bool:
        return self.a >= self.b >= self.c and self.a - self.c <= 1

    def is_the_instant_asked_for(self) -> bool:
        return self.c >= self.c_before and self.a <= self.a_after


def capture(engine: Engine, guest: Guest) -> tuple[Evidence, Consistency]:
    world = guest.world
    engine.make_room(KEY)
    c_before = counter(guest.c)
    handle, captured = engine.begin(KEY, guest.id, world.parts(guest.id, *DISKS))
    a_after = counter(guest.a)
    guest.counts()
    assert ended(engine, handle).state is WorkState.DONE
    engine.end(handle)
    parts = sealed(engine, KEY, world.sizes(guest.id, *DISKS))
    a, b, c = (world.stored_counter(parts[device]) for device in DISKS)
    return Evidence(a, b, c, c_before, a_after), captured.consistency


def test_all_disks_are_of_the_instant_that_was_asked_for(guest: Guest) -> None:
    evidence, consistency = capture(guest.world.engine(), guest)

    assert evidence.is_one_instant(), evidence
    assert evidence.is_the_instant_asked_for(), evidence
    assert evidence.a > 0
    assert consistency is Consistency.FROZEN


def test_the_proof_notices_an_engine_that_copies_one_disk_after_another(guest: Guest) -> None:
    evidence, consistency = capture(OneAfterAnother("test", guest.world.options()), guest)

    assert consistency is Consistency.FROZEN, "it even claims to be right"
    assert not evidence.is_one_instant(), evidence

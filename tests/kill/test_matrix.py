"""Whoever dies, wherever it is, the work ends and nothing is left (docs/rules.md R24, docs/reliability.md).

The whole matrix is ``make kill-matrix``. Here: every cell of one fault, and for each mechanism that it rests on a few
cells which notice when that is taken out.
"""

from __future__ import annotations

import re
import subprocess
import sys

import pytest
from django.conf import settings

from compute.operations import jobs
from tests.kill.qemu import named
from tests.kill.world import SCENARIOS


def play(*arguments: str) -> tuple[int, int, str]:
    """Passed, failed, and all that was printed."""
    command = [sys.executable, "-m", "tests.kill", *arguments]
    done = subprocess.run(command, cwd=settings.BASE_DIR, capture_output=True, text=True, check=False)
    last = re.search(r"(\d+) passed, (\d+) failed\n\Z", done.stdout)
    assert last, f"{done.stdout}\n{done.stderr}"
    assert (done.returncode == 0) == (last[2] == "0")
    return int(last[1]), int(last[2]), done.stdout


def on_folders(*arguments: str) -> tuple[int, int, str]:
    return play("--engine", "folder", *arguments)


def test_every_kind_can_be_asked_for():
    """A new kind of operation joins by saying in tests/kill/world.py how it comes about; until then this fails."""
    assert SCENARIOS.keys() == jobs().keys()


def test_a_killed_horse_is_followed_at_every_point():
    _, failed, table = on_folders("--victim", "horse", "--fault", "SIGKILL")
    assert not failed, table
    for kind, job in jobs().items():
        for step in job.steps:
            assert re.search(rf"^ok +folder +{kind} +{step.name} ", table, re.MULTILINE), (
                f"no cell of {kind} {step.name}"
            )


@pytest.mark.qemu
def test_ten_ways_to_die_on_qemu():
    assert len([cell for cell in named() if cell.short]) == 10
    passed, failed, table = play("--engine", "qemu", "--short")
    assert (passed, failed) == (10, 0), table


def test_every_step_on_a_machine_has_cells_on_qemu():
    """All but those that only remove files."""
    tried = {(cell.kind, cell.phase) for cell in named()}
    steps = {(kind, step.name) for kind, job in jobs().items() if kind != "delete_image" for step in job.steps}
    assert steps <= tried


# What is taken out, with whatever else would cover for it, and the cells that have to notice.
WORTH = {
    "fence": ("--kind", "create_image", "--phase", "capture", "--victim", "ghost", "--fault", "revived early"),
    "kill": ("--kind", "start", "--fault", "SIGSTOP", "--victim", "horse", "--point", "sql UPDATE*"),
    "alarm": ("--kind", "create_image", "--phase", "room", "--victim", "ghost", "--fault", "cancelled*"),
    "room": ("--kind", "create_image", "--phase", "capture", "--fault", "cancelled*", "--point", "engine begin at*"),
    "judge": ("--kind", "start", "--fault", "SIGSTOP", "--victim", "horse", "--point", "sql UPDATE*wait_for*"),
    "lock": ("--kind", "start", "--phase", "claim", "--fault", "SIGSTOP", "--point", "sql UPDATE*"),
    "undo": ("--kind", "create_image", "--victim", "owner", "--phase", "room"),
}


@pytest.mark.parametrize("mechanism", WORTH)
def test_cells_notice_what_is_taken_out(mechanism):
    _, failed, table = on_folders("--without", mechanism, *WORTH[mechanism])
    assert failed, table


def test_what_is_left_is_told_by_the_doctor():
    """Who looks after each cell."""
    _, failed, table = play(
        "--engine", "folder", "--without", "undo", *WORTH["undo"], "--point", "engine make_room returned*"
    )
    assert failed == 1, table
    assert re.search(r"^ +doctor: op-\w+\.creating lies in the image store of region-1, left behind", table, re.M)


# What only a server does: a connection is lost at each write; holders are stopped while they hold locks.
ON_POSTGRES = {
    "connection": ("--kind", "create_image", "--phase", "capture", "--victim", "PostgreSQL", "--point", "sql*"),
    "transaction": ("--kind", "stop", "--victim", "ghost", "--fault", "in a transaction"),
}


@pytest.mark.postgres
@pytest.mark.parametrize("what", ON_POSTGRES)
def test_the_same_on_postgres(what):
    _, failed, table = on_folders("--database", "postgres", *ON_POSTGRES[what])
    assert not failed, table


@pytest.mark.postgres
def test_cells_notice_that_postgres_keeps_a_stopped_transaction():
    _, failed, table = on_folders("--database", "postgres", "--without", "idle", *ON_POSTGRES["transaction"])
    assert failed, table


@pytest.mark.qemu
def test_a_guest_whose_freeze_no_row_names_stays_frozen():
    """Its maker was killed between freeze and job, and somebody cancelled: nobody but the keeper is left to thaw it."""
    cell = ("--engine", "qemu", "--victim", "owner cancels, horse", "--point", "between freeze and job")
    _, failed, table = play("--without", "owed", *cell)
    assert failed == 1, table
    assert "the guest is frozen" in table

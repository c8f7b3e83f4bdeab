"""The table that ``python -m tests.kill`` prints."""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import signal
import sys
from collections import Counter
from contextlib import closing
from datetime import UTC, datetime
from fnmatch import fnmatchcase

import django

from tests.kill.ablations import NAMES
from tests.kill.cells import Cell
from tests.kill.matrix import Matrix, Outcome
from tests.kill.qemu import QemuCell, QemuMatrix
from tests.settings import HOME

PATTERNS = ("engine", "kind", "phase", "point", "victim", "fault")
MATRICES: dict[str, type[Matrix]] = {"folder": Matrix, "qemu": QemuMatrix}
COLUMNS = "{:<4} {:<6} {:<12} {:<14} {:<58} {:<20} {:<24} {:<10} {:>5}"


def show(outcome: Outcome) -> None:
    cell, result = outcome
    verdict = "FAIL" if result.wrong else "ok"
    row = (
        verdict,
        cell.engine,
        cell.kind,
        cell.phase,
        cell.point,
        cell.victim,
        cell.fault,
        result.ended,
        f"{result.seconds:.1f}",
    )
    say(COLUMNS.format(*row))
    for wrong in result.wrong:
        say(f"     {wrong}")


def where(cell: Cell) -> tuple[str, ...]:
    return cell.engine, cell.kind, cell.phase, cell.point, cell.victim, cell.fault


def say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def wanted(cell: Cell, chosen: argparse.Namespace) -> bool:
    named = all(fnmatchcase(getattr(cell, name), getattr(chosen, name)) for name in PATTERNS)
    return named and not (chosen.short and isinstance(cell, QemuCell) and not cell.short)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.kill", description="Play the kill matrix.")
    for name in PATTERNS:
        parser.add_argument(f"--{name}", default="*", help="a shell pattern")
    parser.add_argument("--short", action="store_true", help="of the QEMU cells only those that `make test` plays")
    parser.add_argument("--without", action="append", default=[], choices=NAMES, help="take this out first")
    parser.add_argument("--database", default="sqlite", choices=("sqlite", "postgres"), help="of the folder cells")
    parser.add_argument("--jobs", type=int, default=8, help="folder cells at a time; QEMU's are played one by one")
    parser.add_argument("--keep", action="store_true", help="keep the directories of cells that fail")
    parser.add_argument("--list", action="store_true", help="only print the cells")
    chosen = parser.parse_args()
    matrices = [matrix for engine, matrix in MATRICES.items() if fnmatchcase(engine, chosen.engine)]
    if QemuMatrix in matrices and os.geteuid() == 0 and not chosen.list:
        parser.error("QEMU never runs as root here: `make kill-matrix` uses an account of its own; or --engine folder")
    # What a cell has made goes also when somebody has seen enough.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    on_postgres = chosen.database == "postgres"
    say(COLUMNS.format("", "engine", "kind", "step", "point", "victim", "fault", "end", "s"))
    outcomes: list[Outcome] = []
    rows = ""
    for kind in matrices:
        with kind(frozenset(chosen.without), chosen.jobs, keep=chosen.keep, postgres=on_postgres) as matrix:
            rows = rows or matrix.rows
            cells = [cell for cell in matrix.cells() if wanted(cell, chosen)]
            if chosen.list:
                for cell in cells:
                    say(COLUMNS.format("", *where(cell), cell.end, ""))
                continue
            with closing(matrix.play(cells)) as playing:
                for outcome in playing:
                    show(outcome)
                    outcomes.append(outcome)
    shutil.rmtree(HOME, ignore_errors=True)
    if chosen.list:
        return 0
    summarize(outcomes, rows)
    failed = sum(bool(outcome.result.wrong) for outcome in outcomes)
    say(f"{len(outcomes) - failed} passed, {failed} failed")
    return 1 if failed or not outcomes else 0


def column(cell: Cell) -> str:
    return cell.kind if cell.engine == "folder" else f"{cell.kind} on QEMU"


def summarize(outcomes: list[Outcome], rows: str) -> None:
    """A line for each victim and fault: cells of each kind, how they ended, the slowest; and what they ran on."""
    groups: dict[tuple[str, str], list[Outcome]] = {}
    for outcome in outcomes:
        groups.setdefault((outcome.cell.victim, outcome.cell.fault), []).append(outcome)
    kinds = list(dict.fromkeys(column(outcome.cell) for outcome in outcomes))
    say(
        f"\n{platform.system()} {platform.release()}, Python {platform.python_version()}, Django {django.get_version()}"
    )
    say(f"{rows}, {datetime.now(UTC):%Y-%m-%d}\n")
    say("| victim | fault | " + " | ".join(kinds) + " | ends | failed | slowest |")
    say("|---|---|" + "---|" * len(kinds) + "---|---|---|")
    for (victim, fault), group in groups.items():
        counts = Counter(column(outcome.cell) for outcome in group)
        ends = ", ".join(sorted({outcome.cell.end for outcome in group}))
        failed = sum(bool(outcome.result.wrong) for outcome in group)
        slowest = max(outcome.result.seconds for outcome in group)
        numbers = " | ".join(str(counts[kind] or "") for kind in kinds)
        say(f"| {victim} | {fault} | {numbers} | {ends} | {failed} | {slowest:.0f} s |")
    say("")

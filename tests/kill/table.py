"""The table that ``python -m tests.kill`` prints."""

from __future__ import annotations

import argparse
import platform
import signal
import sys
from collections import Counter
from datetime import UTC, datetime
from fnmatch import fnmatchcase

import django

from tests.kill.ablations import NAMES
from tests.kill.matrix import Matrix, Outcome

COLUMNS = "{:<4} {:<12} {:<14} {:<58} {:<20} {:<24} {:<10} {:>5}"


def show(outcome: Outcome) -> None:
    cell, result = outcome
    verdict = "FAIL" if result.wrong else "ok"
    row = (verdict, cell.kind, cell.phase, cell.point, cell.victim, cell.fault, result.ended, f"{result.seconds:.1f}")
    say(COLUMNS.format(*row))
    for wrong in result.wrong:
        say(f"     {wrong}")


def say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.kill", description="Play the kill matrix.")
    for name in ("kind", "phase", "point", "victim", "fault"):
        parser.add_argument(f"--{name}", default="*", help="a shell pattern")
    parser.add_argument("--without", action="append", default=[], choices=NAMES, help="take this out first")
    parser.add_argument("--database", default="sqlite", choices=("sqlite", "postgres"), help="where the rows are")
    parser.add_argument("--jobs", type=int, default=8, help="cells at a time")
    parser.add_argument("--keep", action="store_true", help="keep the directories of cells that fail")
    parser.add_argument("--list", action="store_true", help="only print the cells")
    chosen = parser.parse_args()
    # What a cell has made goes also when somebody has seen enough.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    on_postgres = chosen.database == "postgres"
    with Matrix(frozenset(chosen.without), chosen.jobs, keep=chosen.keep, postgres=on_postgres) as matrix:
        rows = matrix.rows
        cells = [
            cell
            for cell in matrix.cells()
            if all(
                fnmatchcase(getattr(cell, name), getattr(chosen, name))
                for name in ("kind", "phase", "point", "victim", "fault")
            )
        ]
        say(COLUMNS.format("", "kind", "step", "point", "victim", "fault", "end", "s"))
        if chosen.list:
            for cell in cells:
                say(COLUMNS.format("", cell.kind, cell.phase, cell.point, cell.victim, cell.fault, cell.end, ""))
            return 0
        outcomes = []
        for outcome in matrix.play(cells):
            show(outcome)
            outcomes.append(outcome)
    summarize(outcomes, rows)
    failed = sum(bool(outcome.result.wrong) for outcome in outcomes)
    say(f"{len(outcomes) - failed} passed, {failed} failed")
    return 1 if failed or not outcomes else 0


def summarize(outcomes: list[Outcome], rows: str) -> None:
    """A line for each victim and fault: cells of each kind, how they ended, the slowest; and what they ran on."""
    groups: dict[tuple[str, str], list[Outcome]] = {}
    for outcome in outcomes:
        groups.setdefault((outcome.cell.victim, outcome.cell.fault), []).append(outcome)
    kinds = list(dict.fromkeys(outcome.cell.kind for outcome in outcomes))
    say(
        f"\n{platform.system()} {platform.release()}, Python {platform.python_version()}, Django {django.get_version()}"
    )
    say(f"{rows}, {datetime.now(UTC):%Y-%m-%d}\n")
    say("| victim | fault | " + " | ".join(kinds) + " | ends | failed | slowest |")
    say("|---|---|" + "---|" * len(kinds) + "---|---|---|")
    for (victim, fault), group in groups.items():
        counts = Counter(outcome.cell.kind for outcome in group)
        ends = ", ".join(sorted({outcome.cell.end for outcome in group}))
        failed = sum(bool(outcome.result.wrong) for outcome in group)
        slowest = max(outcome.result.seconds for outcome in group)
        numbers = " | ".join(str(counts[kind] or "") for kind in kinds)
        say(f"| {victim} | {fault} | {numbers} | {ends} | {failed} | {slowest:.0f} s |")
    say("")

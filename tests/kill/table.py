"""The table that ``python -m tests.kill`` prints."""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from fnmatch import fnmatchcase

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
    parser.add_argument("--jobs", type=int, default=8, help="cells at a time")
    parser.add_argument("--keep", action="store_true", help="keep the directories of cells that fail")
    parser.add_argument("--list", action="store_true", help="only print the cells")
    chosen = parser.parse_args()
    with Matrix(frozenset(chosen.without), chosen.jobs, keep=chosen.keep) as matrix:
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
        verdicts: Counter[bool] = Counter()
        for outcome in matrix.play(cells):
            show(outcome)
            verdicts[not outcome.result.wrong] += 1
    say(f"{verdicts[True]} passed, {verdicts[False]} failed")
    return 1 if verdicts[False] or not verdicts[True] else 0

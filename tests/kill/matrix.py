"""All cells: found by running each kind once without and once with a late cancel, played several at a time."""

from __future__ import annotations

import gc
import logging
import os
import pickle
import shutil
import sqlite3
import tempfile
import time
from collections import Counter
from collections.abc import Generator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple, Self

from compute import operations
from console import processes
from tests.kill.cells import Cell, cancelled_late, control, matrix, on_postgres
from tests.kill.director import Director, Result, direct
from tests.kill.points import Seen
from tests.kill.world import SCENARIOS, World, make_template
from tests.postgres import Server

AGAIN = 3  # times a cell is played again whose fault did not happen


class Outcome(NamedTuple):
    cell: Cell
    result: Result


class Matrix:
    last = 150.0  # seconds after which a cell's director itself is given up
    in_memory = True

    def __init__(self, without: frozenset[str], jobs: int, *, keep: bool = False, postgres: bool = False) -> None:
        self.without = without
        self.jobs = jobs
        self.keep = keep
        # In memory where there is such a place: what is tried is processes, not disks.
        memory = "/dev/shm" if self.in_memory and os.access("/dev/shm", os.W_OK) else None
        self.root = Path(tempfile.mkdtemp(prefix="stillframe-kill-", dir=memory))
        self.template = self.root / "template"
        self.server = Server(self.root / "postgres") if postgres else None
        self.number = 0

    def __enter__(self) -> Self:
        processes.adopt_orphans()
        logging.disable()  # of this process; each cell has a log of its own
        if self.server:
            self.server.__enter__()
        self.prepare()
        gc.freeze()
        return self

    def prepare(self) -> None:
        make_template(self.template, self.server)

    def director(self, cell: Cell, root: Path) -> Director:
        return Director(cell, World.copy(self.template, root, self.server), self.without)

    def __exit__(self, *raised: object) -> None:
        if self.server:
            self.server.__exit__()
        while left := processes.descendants(os.getpid()):
            processes.kill(left)
            with suppress(ChildProcessError):
                while os.waitpid(-1, os.WNOHANG)[0]:
                    pass
        if not self.keep:
            shutil.rmtree(self.root)

    @property
    def rows(self) -> str:
        """What the rows are in, with its version."""
        return f"PostgreSQL {self.server.version}" if self.server else f"SQLite {sqlite3.sqlite_version}"

    def cells(self) -> list[Cell]:
        """Every cell of every kind. A kind without a scenario, or a step without a cell, is an error."""
        kinds = operations.jobs()
        if missing := kinds.keys() - SCENARIOS.keys():
            raise LookupError(f"no scenario in tests/kill/world.py for {sorted(missing)}")
        # What is taken out must not change what is looked for.
        without, self.without = self.without, frozenset()
        seen = {kind: self._points(control(kind, record=True)) for kind in kinds}
        undone = {kind: self._points(cancelled_late(kind, seen[kind])) for kind in kinds}
        self.without = without
        cells = [cell for kind in kinds for cell in matrix(kind, seen[kind], undone[kind])]
        if self.server:
            cells += [cell for kind in kinds for cell in on_postgres(kind, seen[kind])]
        tried = {(cell.kind, cell.phase) for cell in cells}
        for kind, job in kinds.items():
            if missing := [step.name for step in job.steps if (kind, step.name) not in tried]:
                raise LookupError(f"no cell for {missing} of {kind}")
        return [*(control(kind) for kind in kinds), *cells]

    def _points(self, cell: Cell) -> list[Seen]:
        pid, root = self._start(cell)
        os.waitpid(pid, 0)
        result = self._result(root)
        if result.ended != cell.end:  # what else is wrong is for the cells to say
            raise RuntimeError(f"{cell}: {result.wrong}\n{root.with_name(f'{root.name}.log').read_text()}")
        seen: list[Seen] = []
        with (root / "points").open("rb") as file, suppress(EOFError):
            while True:
                seen += pickle.load(file)
        return list(dict.fromkeys(seen))

    def _start(self, cell: Cell) -> tuple[int, Path]:
        self.number += 1
        root = self.root / str(self.number)
        pid = os.fork()
        if not pid:
            direct(lambda: self.director(cell, root), root)
        return pid, root

    def _result(self, root: Path) -> Result:
        try:
            result: Result = pickle.loads((root / "result").read_bytes())
        except FileNotFoundError:
            return Result("?", self.last, ["its director died or was given up"])
        return result

    def play(self, cells: Sequence[Cell]) -> Generator[Outcome, None, None]:
        """Play them, several at a time; each as it ends."""
        waiting = list(reversed(cells))
        playing: dict[int, tuple[Cell, Path, float]] = {}
        missed: Counter[Cell] = Counter()
        while waiting or playing:
            while waiting and len(playing) < self.jobs:
                cell = waiting.pop()
                pid, root = self._start(cell)
                playing[pid] = cell, root, time.monotonic()
            pid = os.waitpid(-1, os.WNOHANG)[0]
            if pid in playing:
                cell, root, _ = playing.pop(pid)
                result = self._result(root)
                if result.missed and missed[cell] < AGAIN:
                    missed[cell] += 1
                    waiting.append(cell)
                else:
                    yield Outcome(cell, result)
                if not (self.keep and result.wrong):
                    if self.server:
                        self.server.drop(root.name)
                    shutil.rmtree(root)
                    root.with_name(f"{root.name}.log").unlink()
            elif not pid:
                for pid, (_, _, began) in playing.items():
                    if time.monotonic() - began > self.last:
                        processes.kill([pid])
                time.sleep(0.02)

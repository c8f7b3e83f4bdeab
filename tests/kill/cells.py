"""The matrix: kind × step × point × victim × fault, each with the one end that is legal.

Death or pause of anything of ours ends with the work done. It ends otherwise only when the engine failed, when the
same thing went wrong every time (poison), or when somebody cancelled.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from compute import operations
from tests.kill.points import CHANGING, Point, Seen


@dataclass(frozen=True)
class Shot:
    """What happens at a point: the name of a function of ``tests.kill.faults``; once, or every time."""

    point: Point
    action: str
    always: bool = False

    def hits(self, met: Point) -> bool:
        """Does it happen where this was met?"""
        where = None if self.point.where is None else met.where
        nth = self.point.nth if self.always else met.nth
        return self.point == replace(met, where=where, nth=nth)


@dataclass(frozen=True)
class Cell:
    kind: str
    phase: str
    point: str
    victim: str
    fault: str
    end: str  # "done", "failed", "cancelled"; "nothing": there is no such operation
    shots: tuple[Shot, ...] = ()
    foreign: bool = False  # the holder's name is that of another machine: nobody can kill it
    alarmed: bool = True  # it has set itself an alarm
    revive: str = ""  # when a stopped holder goes on: "early" (another is at work) or "after" (the operation ended)
    cancelled_meanwhile: bool = False
    broken: str = ""  # an engine verb that fails in every process until the operation has ended
    deaf: bool = False  # nobody hears a wake-up call
    litters: bool = False  # it ends by litter, which goes away when the fault is lifted
    record: bool = False
    goes_on: bool = False  # the stopped keeper does, while a new image is made
    engine: str = "folder"

    def __str__(self) -> str:
        return f"{self.engine} · {self.kind} · {self.phase} · {self.point} · {self.victim} {self.fault}"


def control(kind: str, **facts: object) -> Cell:
    """Nothing happens."""
    return Cell(kind, "", "", "nobody", "nothing", "done", **facts)  # type: ignore[arg-type]


def turning(kind: str, seen: list[Seen]) -> Shot:
    """The last moment at which somebody can cancel, so that there is most to undo."""
    job = operations.jobs()[kind]
    steps = [step.name for step in job.steps]
    before = steps[: steps.index(job.no_return)] if job.no_return else steps
    could = [one for one in seen if not one.inside and one.point.phase != "click" and one.step in ("", *before)]
    return Shot(could[-1].point, "cancel")


def cancelled_late(kind: str, seen: list[Seen]) -> Cell:
    return Cell(kind, "", "", "owner", "cancels late", "cancelled", (turning(kind, seen),), record=True)


def matrix(kind: str, seen: list[Seen], undone: list[Seen]) -> Iterator[Cell]:
    """All cells of a kind. ``seen``: points of a run that succeeds; ``undone``: of one that is cancelled late."""
    yield Cell(kind, "click", "queue", "Valkey", "is not there", "done", deaf=True)
    for one in seen:
        yield from _clicking(kind, one) if one.point.phase == "click" else _doing(kind, one, seen)
    turn = turning(kind, seen)
    for one in undone:
        phase = one.point.phase
        if phase in ("turn", "settle") or phase.startswith("undo"):
            yield from _undoing(kind, one, turn)


def _clicking(kind: str, one: Seen) -> Iterator[Cell]:
    end = "done" if one.point.category == "queue" else "nothing"
    yield _cell(kind, one, "web", "SIGKILL", end, "die")
    yield _cell(kind, one, "web", "SIGSTOP, SIGKILL", end, "stop")


def _cell(kind: str, one: Seen, victim: str, fault: str, end: str, action: str, **facts: object) -> Cell:
    lead = facts.pop("lead", None)
    always = bool(facts.pop("always", False))
    shot = Shot(one.point, action, always)
    shots = (lead, shot) if lead else (shot,)
    return Cell(kind, one.point.phase, one.label, victim, fault, end, shots, **facts)  # type: ignore[arg-type]


def _doing(kind: str, one: Seen, seen: list[Seen]) -> Iterator[Cell]:
    job = operations.jobs()[kind]
    names = [step.name for step in job.steps]
    category, where = one.point.category, one.point.where
    # Once the step from which there is no way back is on the row, it only goes forward.
    forward = job.no_return is not None and one.step in names[names.index(job.no_return) :]
    free = not one.inside
    engine_fault = "done" if forward else "failed"
    cancelled = "done" if forward else "cancelled"

    if category == "sql":
        yield _cell(kind, one, "horse", "SQL raises", "done", "database")
    elif category in ("engine", "before", "after"):
        yield _cell(kind, one, "horse", "engine raises", engine_fault, "engine")
    elif category == "disk":
        yield _cell(kind, one, "horse", "disk raises", engine_fault, "disk")
    if one.point.what.startswith("engine") and not one.point.what.endswith("returned"):
        yield _cell(kind, one, "region", "silent once", "done", "silence")

    yield _cell(kind, one, "horse", "SIGKILL", "done", "die")
    yield _cell(kind, one, "horse", "SIGSTOP", "done", "stop")
    if free:
        yield _cell(kind, one, "worker and horse", "SIGKILL", "done", "die together")
        yield _cell(kind, one, "keeper", "SIGKILL", "done", "keeper dies")
        yield _cell(kind, one, "owner", "cancels", cancelled, "cancel")
        # The last thing that keeps a ghost from making a room for what has ended is its alarm.
        ghost: dict[str, object] = {"foreign": True, "alarmed": _makes_room(one)}
        yield _cell(kind, one, "ghost", "revived after", "done", "stop", revive="after", **ghost)
        yield _cell(kind, one, "ghost", "revived early", "done", "stop", revive="early", **ghost)
        late = ghost | {"revive": "after", "cancelled_meanwhile": True}
        yield _cell(kind, one, "ghost", "cancelled, revived after", cancelled, "stop", **late)
    elif one.point.what == "sql UPDATE compute_operation" and one.point.nth == 1:
        # The holder is writing, so the keeper is not: stopped while it writes to SQLite it would hold up everybody.
        yield _cell(kind, one, "keeper", "SIGSTOP for good", "done", "keeper stops")
        yield _cell(kind, one, "keeper", "SIGSTOP, SIGCONT", "done", "keeper stops", goes_on=True)
    if category == "after":
        yield _cell(kind, one, "step", "done twice", "done", "taken away")
    poison = {"always": True}
    if one.point.phase != "claim" and category in ("before", "after", "engine") and one.point.nth == 1:
        yield _cell(kind, one, "horse", "SIGKILL always", "failed", "die", **poison)
    if one.point.phase != "claim" and category == "sql" and one.point.nth == 1:
        yield _cell(kind, one, "horse", "SQL raises always", "failed", "database", **poison)
    if forward and category == "engine" and one.point.nth == 1:
        yield _cell(kind, one, "horse", "engine raises always", "failed", "engine", **poison)
    if _copying(one, seen):
        yield _cell(kind, one, "copier", "SIGKILL", "done", "copier dies")
        yield _cell(kind, one, "copier and horse", "SIGKILL", "done", "copier and horse die")
        yield _cell(kind, one, "copier", "SIGSTOP", "done", "copier stops")
        if one.point.nth == 1 and where and "look" in one.point.what:
            yield _cell(kind, one, "copier", "SIGKILL always", "failed", "copier dies", **poison)


def on_postgres(kind: str, seen: list[Seen]) -> Iterator[Cell]:
    """What a server does besides: it ends a connection, and a transaction in which nothing happens."""
    for one in seen:
        if one.point.phase == "click":
            continue
        yield _cell(kind, one, "PostgreSQL", "ends the connection", "done", "disconnect")
        if one.inside:
            ghost: dict[str, object] = {"foreign": True, "alarmed": False, "revive": "after"}
            yield _cell(kind, one, "ghost", "in a transaction", "done", "stop", **ghost)


def _makes_room(one: Seen) -> bool:
    """Between its last hold and the making of the room."""
    return one.point.phase == "room" and one.point.what in ("before", "engine space", "engine make_room", "disk mkdir")


def _copying(one: Seen, seen: list[Seen]) -> bool:
    """Is a copier surely at work? From where it was begun to the second look."""
    at = {what: i for i, s in enumerate(seen) for what in [(s.point.what, s.point.nth)] if s.point.category == "engine"}
    begun, looked = at.get(("engine begin returned", 1)), at.get(("engine look", 2))
    return begun is not None and looked is not None and begun <= seen.index(one) <= looked


def _undoing(kind: str, one: Seen, turn: Shot) -> Iterator[Cell]:
    category = one.point.category
    lead: dict[str, object] = {"lead": turn}

    if category == "sql":
        yield _cell(kind, one, "horse", "SQL raises", "cancelled", "database", **lead)
    elif category in ("engine", "before", "after"):
        yield _cell(kind, one, "horse", "engine raises", "cancelled", "engine", **lead)
    elif category == "disk":
        yield _cell(kind, one, "horse", "disk raises", "cancelled", "disk", **lead)
    if one.point.what.startswith("engine") and not one.point.what.endswith("returned"):
        yield _cell(kind, one, "region", "silent once", "cancelled", "silence", **lead)
    yield _cell(kind, one, "horse", "SIGKILL", "cancelled", "die", **lead)
    yield _cell(kind, one, "horse", "SIGSTOP", "cancelled", "stop", **lead)
    if not one.inside:
        yield _cell(kind, one, "worker and horse", "SIGKILL", "cancelled", "die together", **lead)
        yield _cell(kind, one, "keeper", "SIGKILL", "cancelled", "keeper dies", **lead)
        ghost = lead | {"foreign": True, "alarmed": False, "revive": "after"}
        yield _cell(kind, one, "ghost", "revived after", "cancelled", "stop", **ghost)
    if category == "after":
        yield _cell(kind, one, "step", "undone twice", "cancelled", "taken away", **lead)
    if one.point.phase.startswith("undo") and one.point.nth == 1 and category in ("before", "after", "engine"):
        poison = lead | {"always": True}
        yield _cell(kind, one, "horse", "SIGKILL always", "cancelled", "die", **poison)
        yield _cell(kind, one, "horse", "engine raises always", "cancelled", "engine", **poison)
        verb = one.point.what.removeprefix("engine ")
        if category == "engine" and verb in CHANGING:
            facts = {"broken": verb, "litters": True}
            yield _cell(kind, one, "engine", "broken until later", "cancelled", "nothing", **lead, **facts)

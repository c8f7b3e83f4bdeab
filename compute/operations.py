"""One operation, from click to end: done once, or without trace.

The row is the lock, the outbox, the pulse and the record. Whoever works on it *holds* it: claims it by raising its
``attempt``, and from then on every write goes through ``Attempt.hold``, whose first UPDATE proves that the attempt is
still theirs and that nobody cancelled. Zero rows means: touch nothing more. Since a holder can die at any line, a
step's ``do`` looks at what is there and goes on, its ``undo`` works also when the ``do`` never ran, and everything an
operation makes is named after its row before a byte of it exists.

    queued → running → done
                ↘ undoing → failed | cancelled

``perform`` walks it; ``compute.keeper`` watches that someone does.
"""

from __future__ import annotations

import logging
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from datetime import timedelta
from functools import cache
from importlib import import_module
from typing import Any, ClassVar

from django.conf import settings
from django.db import InterfaceError, InternalError, OperationalError, transaction
from django.db.models import F, Q
from django.utils import timezone

from compute.engines import processes
from compute.engines.base import Engine, EngineError, Handle, Look, Unreachable, WorkState
from compute.log import about
from compute.models import Litter, Operation, Region
from compute.reasons import Reason
from compute.refusals import Refused
from compute.regions import engine_for
from compute.states import LIVE, InstanceStatus, OperationStatus, log_arrow, status_of

log = logging.getLogger(__name__)

STRIKES = 3  # deaths a status survives before it is given up
LOOK_EVERY = 0.5  # seconds between two looks at long work
UNDO_EVERY = 0.5
# The database failed, and not what was asked of it: locked, gone, standing by, or it ended our idle transaction.
DATABASE_ILL = (OperationalError, InterfaceError, InternalError)


class Lost(Exception):
    """Someone else has the operation now: touch nothing more."""


class Cancelled(Exception):
    """Someone cancelled: turn round."""


class Released(BaseException):
    """This process was asked to go (SIGTERM): let go of the operation and say nothing bad of it."""


class Step:
    """One named piece of a job: a do, and beside it its undo."""

    name: ClassVar[str]

    def do(self, attempt: Attempt) -> None:
        """Bring it about. Called again after a death: look at what is there and go on."""
        raise NotImplementedError

    def undo(self, attempt: Attempt) -> bool:
        """Take it back; also when the do never ran, and again. True once nothing is left."""
        return True


class Long(Step):
    """Work the engine does by itself, under a name, while we watch (begin, look, end, discard)."""

    def begin(self, attempt: Attempt) -> Handle:
        """Start the work, or find it; keep its handle on the row; return it."""
        raise NotImplementedError

    def do(self, attempt: Attempt) -> None:
        handle = attempt.handle(self.name) or self.begin(attempt)
        if attempt.operation.work[self.name].get("done"):
            attempt.engine.end(handle)
            return
        restarted = False
        watch = Watch()
        while True:
            look = attempt.engine.look(handle)
            if look.state is WorkState.RUNNING:
                watch.see(attempt, look)
                time.sleep(LOOK_EVERY)
            elif look.state is WorkState.DONE:
                # On the row first: once ended, the engine may not know any more that there was such a work.
                watch.see(attempt, look)
                attempt.beat(work=attempt.keep(self.name, done=True))
                attempt.engine.end(handle)
                return
            elif look.state is WorkState.LOST and not restarted:
                # Whoever did it died without a trace; its name is free, so it can be begun once more.
                restarted = True
                handle = self.begin(attempt)
            else:
                raise look.error or EngineError("work-lost")


class Watch:
    """Progress of long work: kept on the row, turned into a rate, and missed when it stands still."""

    def __init__(self, phase: str = "copy") -> None:
        self.phase = phase
        self.rate: float | None = None
        self.last: tuple[float, int] | None = None
        self.moved_at = time.monotonic()

    def see(self, attempt: Attempt, look: Look) -> None:
        """Record one look; raise ``EngineError("stalled")`` after LIMIT_STALL seconds without a byte."""
        now, parts = time.monotonic(), look.parts
        known = [part for part in parts.values() if part is not None]
        done = sum(part[0] for part in known)
        before = attempt.operation.progress
        stood = before.get("phase") == self.phase and _done(before) == done
        if self.last is None or done != self.last[1]:
            if self.last is not None and now > self.last[0] and len(known) == len(parts):
                rate = max(0.0, (done - self.last[1]) / (now - self.last[0]))
                self.rate = rate if self.rate is None else 0.7 * self.rate + 0.3 * rate
            self.last, self.moved_at = (now, done), now
        elif now - self.moved_at > settings.LIMIT_STALL:
            raise EngineError("stalled", seconds=round(settings.LIMIT_STALL))
        elif now - self.moved_at > 5:
            self.rate = None  # nothing for a while: an old rate would be invented
        # Seen where an earlier attempt had left it, it has not moved: a region that answers every other time must not
        # begin the count of its silences anew each time it does.
        if self.moved_at == now and not stood:
            attempt.operation.waiting_since = None
        attempt.beat(
            waiting_since=attempt.operation.waiting_since,
            progress={
                "phase": self.phase,
                "parts": {name: list(part) if part else None for name, part in parts.items()},
                "rate": self.rate and round(self.rate),
            },
        )


def _done(progress: dict[str, Any]) -> int:
    return sum(part[0] for part in progress["parts"].values() if part)


class Job:
    """The steps of one kind of operation, and what its rows say at each turn."""

    kind: ClassVar[str]
    steps: ClassVar[tuple[Step, ...]]
    long: ClassVar[bool] = False
    # From this step on only forward: no cancel, no undo; poison ends failed with litter. None: it can always unwind.
    no_return: ClassVar[str | None] = None

    def finish(self, operation: Operation) -> None:
        """All steps are done: the rows say so. Runs inside the hold that ends the operation."""

    def failing(self, operation: Operation) -> None:
        """Undoing begins; ``operation.reason`` says why. Runs inside the transaction that turns it."""

    def settle(self, operation: Operation, seen: InstanceStatus | None) -> None:
        """Nothing of the attempt is left. ``seen``: the instance as observed now, None when it could not be."""

    def litter(self, operation: Operation) -> dict[str, Handle | None]:
        """Keys (with handles) under which something may be left when undoing is given up."""
        return {}


@cache
def jobs() -> dict[str, Job]:
    """Kind → job, from the ``JOBS`` of each module in ``settings.JOBS``, so that tests can walk kinds and steps."""
    return {job.kind: job for module in settings.JOBS for job in import_module(module).JOBS}


def queue_of(operation: Operation) -> str:
    """Long work has a queue per region, so that a start never waits behind a copy, nor a region behind another."""
    return f"long-{operation.region_id}" if jobs()[operation.kind].long else "short"


def wake(operation: Operation) -> None:
    """Once the rows are committed, tell a worker. Redis being down costs nothing: the keeper looks for itself."""
    from compute import wakeup

    queue, pk = queue_of(operation), operation.pk
    transaction.on_commit(lambda: wakeup.send(queue, pk), robust=True)


def submit(kind: str, **fields: Any) -> Operation:
    """Write a queued operation and wake a worker after the commit. Only actions call it, inside their transaction."""
    operation = Operation.objects.create(kind=kind, **fields)
    _tell(operation.pk, "new", f"{OperationStatus.QUEUED} ({kind} of {operation.subject})")
    wake(operation)
    return operation


def _tell(pk: str, was: str, to: str) -> None:
    with about(pk):
        log_arrow(log, f"operation {pk}", was, to)


def cancel(operation: Operation, by: Any) -> bool:
    """One UPDATE that every loop obeys. False when it is too late: it ended, turned round or cannot return."""
    job = jobs()[operation.kind]
    open_ = Q(status=OperationStatus.QUEUED) | Q(status=OperationStatus.RUNNING)
    if job.no_return is not None:
        names = [step.name for step in job.steps]
        open_ &= Q(step__in=["", *names[: names.index(job.no_return)]])
    changed = Operation.objects.filter(open_, pk=operation.pk, cancelled_by=None).update(cancelled_by=by)
    if changed:
        log.info("operation %s: cancelled by %s", operation.pk, by.pk)
        wake(operation)
    return bool(changed)


def too_late(operation: Operation) -> Refused:
    """Why ``cancel`` did not, by what the row says now."""
    operation.refresh_from_db()
    if not operation.is_live:
        return Refused("cancel-ended")
    if operation.status == OperationStatus.UNDOING:
        return Refused("cancel-undoing")
    if operation.cancelled_by is not None:
        return Refused("cancel-already", by=operation.cancelled_by.get_username())
    return Refused("cancel-no-return")


# Holding ---------------------------------------------------------------------------------------------------------


@cache
def _identity(pid: int) -> str:
    return processes.name_of(pid)


def identity() -> str:
    """Who holds: what another process of this machine can look up and kill."""
    return _identity(os.getpid())


def _beat() -> dict[str, Any]:
    return {"beats": F("beats") + 1, "beat_at": timezone.now()}


def has_place(operation: Operation) -> bool:
    """Is the region's limit of long operations that run at once not reached? Turning round needs no place."""
    ending = operation.cancelled_by_id is not None or operation.status == OperationStatus.UNDOING
    if ending or not jobs()[operation.kind].long:
        return True
    kinds = [kind for kind, job in jobs().items() if job.long]
    held = Operation.objects.filter(region=operation.region_id, kind__in=kinds, status__in=LIVE).exclude(holder="")
    limit: int = settings.ENGINES[operation.region_id].get("LONG_LIMIT", 2)
    return held.count() < limit


def claim(pk: str) -> Attempt | None:
    """Take a live operation that nobody holds; None when someone was faster or the region has enough long work."""
    with transaction.atomic():
        operation = Operation.objects.filter(pk=pk, holder="", status__in=LIVE).first()
        if operation is None:
            return None
        job = jobs()[operation.kind]
        if job.long:
            # The region's row is the turnstile: counting without it lets two in at once.
            Region.objects.select_for_update(no_key=True).get(pk=operation.region_id)
        if not has_place(operation):
            return None
        me, now = identity(), timezone.now()
        facts: dict[str, Any] = {"attempt": operation.attempt + 1, "holder": me, "beats": operation.beats + 1}
        facts["beat_at"] = now
        if operation.status == OperationStatus.QUEUED:
            facts |= {"status": OperationStatus.RUNNING, "started_at": now}
        free = Operation.objects.filter(pk=pk, holder="", status=operation.status, attempt=operation.attempt)
        if not free.update(**facts):
            return None
        if "status" in facts:
            _tell(pk, operation.status, facts["status"])
    for name, value in facts.items():
        setattr(operation, name, value)
    log.info("operation %s: attempt %s by pid %s", pk, operation.attempt, os.getpid())
    return Attempt(operation, job)


class Attempt:
    """One holder's hold on one operation: its pulse, its fence, and its hands."""

    alarm = False  # set in processes that may be killed by their own alarm (see ``run``)

    def __init__(self, operation: Operation, job: Job) -> None:
        self.operation = operation
        self.job = job
        self._arm()

    @property
    def engine(self) -> Engine:
        """Raises ``Unreachable`` also when it cannot even be made: that is waited for like any other silence."""
        return engine_for(self.operation.region_id)

    def _arm(self) -> None:
        # A holder that was frozen past the silence limit dies on waking, before it can touch anything.
        if Attempt.alarm:
            signal.setitimer(signal.ITIMER_REAL, settings.LIMIT_SILENCE)

    def _mine(self) -> Any:
        return Operation.objects.filter(
            pk=self.operation.pk, attempt=self.operation.attempt, holder=self.operation.holder
        )

    @property
    def may_return(self) -> bool:
        """Is the step before the job's point of no return?"""
        names = [step.name for step in self.job.steps]
        if self.job.no_return is None or not self.operation.step:
            return True
        return names.index(self.operation.step) < names.index(self.job.no_return)

    @contextmanager
    def hold(self, **facts: Any) -> Iterator[Operation]:
        """A transaction that begins by proving the hold, counting a beat and writing ``facts`` to the row.

        Raises Lost when the operation is someone else's, Cancelled when somebody cancelled it.
        """
        operation = self.operation
        with transaction.atomic():
            mine = self._mine().filter(status=operation.status)
            if operation.status == OperationStatus.RUNNING and self.may_return:
                mine = mine.filter(cancelled_by=None)
            if not mine.update(**_beat(), **facts):
                if self._mine().filter(status=operation.status).exists():
                    raise Cancelled
                raise Lost
            yield operation
        for name, value in facts.items():
            setattr(operation, name, value)
        self._arm()

    def beat(self, **facts: Any) -> None:
        with self.hold(**facts):
            pass

    def enter(self, step: Step) -> None:
        """The step is on the row before its do begins."""
        operation = self.operation
        began = operation.work.get(step.name) or {"began": timezone.now().isoformat()}
        facts: dict[str, Any] = {"step": step.name, "work": operation.work | {step.name: began}}
        if step.name != operation.step:
            facts["waiting_since"] = None
        self.beat(**facts)

    def keep(self, step: str, **facts: Any) -> dict[str, Any]:
        """The row's ``work`` with ``facts`` added to a step: pass it to a hold that has more to write."""
        work: dict[str, Any] = self.operation.work
        return work | {step: work.get(step, {}) | facts}

    def handle(self, step: str) -> Handle | None:
        handle: Handle | None = self.operation.work.get(step, {}).get("handle")
        return handle

    def turn(self, outcome: OperationStatus, reason: Reason, *, poison: bool = False) -> None:
        """It will not succeed: begin undoing, and say so on the rows. As ``poison`` it turns whatever they say."""
        operation = self.operation
        with transaction.atomic():
            facts = {"status": OperationStatus.UNDOING, "outcome": outcome, "reason": reason, "strikes": 0}
            facts |= {"waiting_since": None}
            if not self._mine().filter(status=OperationStatus.RUNNING).update(**_beat(), **facts):
                raise Lost
            operation.refresh_from_db()
            with _whatever_comes(operation) if poison else nullcontext():
                self.job.failing(operation)
            _tell(operation.pk, OperationStatus.RUNNING, f"{operation.status} ({outcome}: {reason['code']})")
        self._arm()

    def release(self, *, strike: bool, **facts: Any) -> None:
        """Let go without ending it; the next claim goes on. A strike says that this attempt went wrong."""
        strikes = F("strikes") + 1 if strike else F("strikes")
        self._mine().filter(status__in=LIVE).update(
            holder="", attempt=F("attempt") + 1, strikes=strikes, **_beat(), **facts
        )

    def observe(self) -> InstanceStatus | None:
        """Status of the instance as seen now; None when there is none, or when it cannot be observed well.

        One that is between two statuses is looked at again for a while. Raises ``Unreachable``: that is waited for.
        """
        instance = self.operation.instance
        if instance is None or not instance.external_id:
            return None
        deadline = time.monotonic() + settings.LIMIT_MAXIMUM
        try:
            while (status := status_of(self.engine.observe(instance.external_id))) is None:
                if time.monotonic() > deadline:
                    break
                self.beat()
                time.sleep(LOOK_EVERY)
        except Unreachable:
            raise
        except EngineError:
            log.warning("operation %s: %s could not be observed", self.operation.pk, instance.pk, exc_info=True)
            return None
        return status


# Walking ---------------------------------------------------------------------------------------------------------


def perform(pk: str) -> None:
    """Do what is to be done of one operation, as far as this process gets; safe to call for any id, any time."""
    with about(pk):
        _perform(pk)


def _perform(pk: str) -> None:
    attempt = claim(pk)
    if attempt is None:
        return
    operation = attempt.operation
    try:
        if operation.status == OperationStatus.RUNNING:
            _walk(attempt)
        if operation.status == OperationStatus.UNDOING:
            _unwind(attempt)
    except Lost:
        log.info("operation %s: attempt %s was taken over", pk, operation.attempt)
        return
    except Unreachable as error:
        _wait_for_region(attempt, error)
        return
    except Released:
        attempt.release(strike=False)
        log.info("operation %s: attempt %s let go", pk, operation.attempt)
        return
    except Exception:
        # An undo, a step past its point of no return, or the database: a do that raises has turned already.
        log.exception("operation %s: attempt %s went wrong", pk, operation.attempt)
        attempt.release(strike=True)
        return
    finally:
        if Attempt.alarm:
            signal.setitimer(signal.ITIMER_REAL, 0)
    _wake_next(operation)


def _walk(attempt: Attempt) -> None:
    operation, job = attempt.operation, attempt.job
    if operation.strikes >= STRIKES:
        if attempt.may_return:
            attempt.turn(OperationStatus.FAILED, {"code": "gave-up", "data": {"times": STRIKES}}, poison=True)
        else:
            _abandon(attempt)
        return
    try:
        names = [step.name for step in job.steps]
        first = names.index(operation.step) if operation.step else 0
        for step in job.steps[first:]:
            attempt.enter(step)
            step.do(attempt)
        with attempt.hold(status=OperationStatus.DONE, holder="", ended_at=timezone.now()):
            job.finish(operation)
            _tell(operation.pk, OperationStatus.RUNNING, OperationStatus.DONE)
    except (Lost, Unreachable, *DATABASE_ILL):
        raise
    except Cancelled:
        operation.refresh_from_db(fields=["cancelled_by"])
        by = operation.cancelled_by
        attempt.turn(OperationStatus.CANCELLED, {"code": "cancelled", "data": {"by": by.get_username() if by else ""}})
    except Exception as error:
        if not attempt.may_return:
            raise
        attempt.turn(OperationStatus.FAILED, _reason_of(operation, error))


def _unwind(attempt: Attempt) -> None:
    """Undo every step that may have begun, last first; then the rows, and the lock is free."""
    operation, job = attempt.operation, attempt.job
    if operation.strikes >= STRIKES:
        _abandon(attempt)
        return
    names = [step.name for step in job.steps]
    begun = names.index(operation.step) + 1 if operation.step else 0
    for step in reversed(job.steps[:begun]):
        deadline = time.monotonic() + settings.LIMIT_MAXIMUM
        while not step.undo(attempt):
            if time.monotonic() > deadline:
                raise EngineError("undo-slow", step=step.name)
            attempt.beat()
            time.sleep(UNDO_EVERY)
        attempt.beat()
    seen = attempt.observe()
    with attempt.hold(status=OperationStatus(operation.outcome), holder="", ended_at=timezone.now()):
        job.settle(operation, seen)
        _tell(operation.pk, OperationStatus.UNDOING, operation.outcome)


def _abandon(attempt: Attempt) -> None:
    """Three attempts at it did not survive: it ends all the same, and what it had named becomes litter."""
    operation = attempt.operation
    try:
        seen = attempt.observe()
    except (Lost, Cancelled):
        raise
    except Exception:
        log.exception("operation %s: its instance could not be observed", operation.pk)
        seen = None
    was, outcome = operation.status, operation.outcome or OperationStatus.FAILED
    reason = operation.reason or {"code": "gave-up", "data": {"times": STRIKES}}
    with attempt.hold(status=outcome, outcome=outcome, holder="", reason=reason, ended_at=timezone.now()):
        operation.reason = reason
        _leave_litter(operation, seen)
        _tell(operation.pk, was, outcome)
    log.error("operation %s: given up; what it had named is litter now", operation.pk)


def _leave_litter(operation: Operation, seen: InstanceStatus | None) -> None:
    """The rows of an operation that ends without having been undone. Its end does not depend on what they say."""
    job = jobs()[operation.kind]
    for key, handle in job.litter(operation).items():
        Litter.objects.get_or_create(region_id=operation.region_id, key=key, defaults={"handle": handle})
    with _whatever_comes(operation):
        job.settle(operation, seen)


@contextmanager
def _whatever_comes(operation: Operation) -> Iterator[None]:
    """Rows that cannot be written must not keep a poisoned operation from ending."""
    try:
        with transaction.atomic():
            yield
    except Exception:
        log.exception("operation %s: its rows could not be settled", operation.pk)


@transaction.atomic
def give_up(operation: Operation) -> bool:
    """End it failed without asking its region, which an admin has given up (R24). False when it had ended."""
    with about(operation.pk):
        return _give_up(operation)


def _give_up(operation: Operation) -> bool:
    row = Operation.objects.select_for_update().get(pk=operation.pk)
    if row.status not in LIVE:
        return False
    turned = row.status == OperationStatus.UNDOING
    row.reason = row.reason or {"code": "region-given-up", "data": {}}
    if not turned:
        with _whatever_comes(row):
            jobs()[row.kind].failing(row)
    _leave_litter(row, None)
    # The attempt goes up: whoever holds it finds that it is theirs no more.
    Operation.objects.filter(pk=row.pk).update(
        status=row.outcome or OperationStatus.FAILED,
        outcome=row.outcome or OperationStatus.FAILED,
        reason=row.reason,
        holder="",
        attempt=F("attempt") + 1,
        ended_at=timezone.now(),
    )
    _tell(row.pk, row.status, row.outcome or OperationStatus.FAILED)
    log.error("operation %s: given up with its region", row.pk)
    return True


@transaction.atomic
def undo_again(operation: Operation) -> bool:
    """Let an ended operation, whose rows still move, be undone by whoever performs it next.

    False when it lives, or while another is at work on its image. It holds its instance no more: that may be at
    something else by now.
    """
    row = Operation.objects.select_for_update().get(pk=operation.pk)
    if row.status in LIVE or Operation.objects.live().filter(image__isnull=False, image=row.image_id).exists():
        return False
    job = jobs()[row.kind]
    row.outcome = row.outcome or OperationStatus.FAILED
    row.reason = row.reason or {"code": "undone-again", "data": {}}
    Operation.objects.filter(pk=row.pk).update(
        status=OperationStatus.UNDOING,
        outcome=row.outcome,
        reason=row.reason,
        step=job.steps[-1].name,  # whichever it reached
        holding=False,
        strikes=0,
        attempt=F("attempt") + 1,
        ended_at=None,
    )
    with about(row.pk):
        job.failing(row)
    _tell(row.pk, row.status, OperationStatus.UNDOING)
    log.warning("operation %s: had ended %s, and is undone again", row.pk, row.status)
    return True


def _wait_for_region(attempt: Attempt, error: Unreachable) -> None:
    """Let go until the region answers. If it answered since we last waited, it was not the region: a strike."""
    operation, region = attempt.operation, Region.objects.get(pk=attempt.operation.region_id)
    since = operation.waiting_since
    answered = since is not None and region.seen_at is not None and region.seen_at > since + timedelta(seconds=1)
    log.warning("operation %s: region %s does not answer (%s)", operation.pk, region.pk, error)
    attempt.release(strike=answered, waiting_since=timezone.now())


def _reason_of(operation: Operation, error: Exception) -> Reason:
    if isinstance(error, EngineError | Refused):
        log.warning("operation %s failed: %s", operation.pk, error, exc_info=True)
        return {"code": error.code, "data": error.data}
    log.error("operation %s failed", operation.pk, exc_info=error)
    return {"code": "unexpected", "data": {"operation": operation.pk}}


def _wake_next(operation: Operation) -> None:
    """A place of the region's limit is free: whoever waits longest is told."""
    waiting = Operation.objects.filter(region=operation.region_id, status=OperationStatus.QUEUED, holder="")
    following = waiting.order_by("created_at").first()
    if following:
        wake(following)


def run(pk: str) -> None:
    """``perform`` in a process of its own (RQ's work-horse, or ``manage.py perform``): signals may end it."""
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.signal(signal.SIGTERM, _let_go)
    Attempt.alarm = True
    perform(pk)


def _let_go(signum: int, frame: object) -> None:
    raise Released


def take_away(pk: str, *, attempt: int, beats: int) -> bool:
    """Free an operation from a holder that died or fell silent; its next write finds another attempt on the row."""
    silent = Operation.objects.filter(pk=pk, attempt=attempt, beats=beats, status__in=LIVE).exclude(holder="")
    facts = {"holder": "", "attempt": F("attempt") + 1, "strikes": F("strikes") + 1, "beat_at": timezone.now()}
    return bool(silent.update(**facts))


def wait_for(attempt: Attempt, ready: Callable[[], bool], *, code: str, seconds: float | None = None) -> None:
    """Ask ``ready`` between beats until it says yes; ``EngineError(code)`` after ``seconds`` (LIMIT_MAXIMUM)."""
    seconds = settings.LIMIT_MAXIMUM if seconds is None else seconds
    deadline = time.monotonic() + seconds
    while not ready():
        if time.monotonic() > deadline:
            raise EngineError(code, seconds=round(seconds))
        attempt.beat()
        time.sleep(LOOK_EVERY)

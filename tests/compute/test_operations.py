"""Claim, hold, turn, unwind: once, or without trace (docs/rules.md R24)."""

from __future__ import annotations

import time
from datetime import timedelta
from typing import Any

import pytest
from django.db import IntegrityError, InterfaceError, InternalError, OperationalError, transaction
from django.utils import timezone

from compute import operations, wakeup
from compute.engines.base import EngineError, Look, Unreachable, WorkState
from compute.models import Litter, Operation, Region
from compute.operations import Attempt, Cancelled, Job, Lost, Step, claim, perform, take_away
from compute.regions import _engine
from tests.factories import InstanceFactory, OperationFactory, RegionFactory

pytestmark = pytest.mark.usefixtures("database")


class Scripted(Step):
    """A step that does what its test says, and writes down what was asked of it."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.asked: list[str] = []
        self.does = lambda attempt: None
        self.undoes = lambda attempt: True

    def do(self, attempt: Attempt) -> None:
        self.asked.append("do")
        self.does(attempt)

    def undo(self, attempt: Attempt) -> bool:
        self.asked.append("undo")
        return self.undoes(attempt)


class ScriptedJob(Job):
    kind = "scripted"

    def __init__(self) -> None:
        self.steps = self.first, self.second = Scripted("first"), Scripted("second")
        self.ends: list[str] = []

    def finish(self, operation):
        self.ends.append("finish")

    def failing(self, operation):
        self.ends.append("failing")

    def settle(self, operation, facts):
        self.ends.append("settle")

    def litter(self, operation):
        return {operation.pk: {"handle": 1}}


@pytest.fixture
def job(monkeypatch) -> ScriptedJob:
    job = ScriptedJob()
    monkeypatch.setattr(operations, "jobs", lambda: {"scripted": job})
    return job


@pytest.fixture
def operation(job, folder) -> Operation:
    return OperationFactory(kind="scripted", instance=None, holding=False)


def ended(operation: Operation) -> tuple[str, str]:
    operation.refresh_from_db()
    return operation.status, operation.holder


def test_steps_in_order_then_done(job, operation):
    perform(operation.pk)
    assert (job.first.asked, job.second.asked, job.ends) == (["do"], ["do"], ["finish"])
    assert ended(operation) == ("done", "")


def test_a_failing_step_is_undone_with_all_before_it(job, operation):
    def fail(attempt):
        raise EngineError("store-full")

    job.second.does = fail
    perform(operation.pk)
    assert (job.first.asked, job.second.asked) == (["do", "undo"], ["do", "undo"])
    assert job.ends == ["failing", "settle"]
    assert ended(operation) == ("failed", "")
    assert operation.reason == {"code": "store-full", "data": {}}


def test_a_step_that_never_began_is_not_undone(job, operation):
    def fail(attempt):
        raise RuntimeError("a mistake of ours")

    job.first.does = fail
    perform(operation.pk)
    assert job.second.asked == []
    assert ended(operation) == ("failed", "")
    assert operation.reason["code"] == "unexpected"
    assert operation.pk in operation.why


def test_one_claim_wins(operation):
    assert claim(operation.pk) is not None
    assert claim(operation.pk) is None


def test_a_holder_that_was_taken_from_touches_nothing(job, operation):
    """The fence: its next write finds another attempt on the row."""
    attempt = claim(operation.pk)
    assert attempt is not None
    operation.refresh_from_db()
    assert take_away(operation.pk, attempt=operation.attempt, beats=operation.beats)
    with pytest.raises(Lost), attempt.hold():
        Region.objects.update(versions={"ghost": "1"})
    assert not Region.objects.filter(versions={"ghost": "1"}).exists()
    with pytest.raises(Lost):
        attempt.turn("failed", {"code": "unexpected", "data": {}})
    attempt.release(strike=True)
    operation.refresh_from_db()
    assert (operation.status, operation.strikes) == ("running", 1)


def test_taking_away_loses_against_a_beat(operation):
    attempt = claim(operation.pk)
    operation.refresh_from_db()
    attempt.beat()
    assert not take_away(operation.pk, attempt=operation.attempt, beats=operation.beats)


def test_cancel_turns_round_at_the_next_beat(job, operation, alice):
    def cancelled_meanwhile(attempt):
        assert operations.cancel(operation, alice)
        with pytest.raises(Cancelled):
            attempt.beat()
        attempt.beat()

    job.first.does = cancelled_meanwhile
    perform(operation.pk)
    assert job.first.asked == ["do", "undo"]
    assert job.second.asked == []
    assert ended(operation) == ("cancelled", "")


def test_at_completion_whoever_commits_first_wins(job, operation, alice):
    perform(operation.pk)
    operation.refresh_from_db()
    assert not operations.cancel(operation, alice)
    assert ended(operation) == ("done", "")


def test_no_cancel_past_the_point_of_no_return(job, operation, alice):
    job.no_return = "second"
    verdicts = []
    job.first.does = lambda attempt: verdicts.append(operations.jobs()["scripted"].no_return)
    job.second.does = lambda attempt: verdicts.append(operations.cancel(operation, alice))
    perform(operation.pk)
    assert verdicts == ["second", False]
    assert ended(operation) == ("done", "")


def test_past_the_point_of_no_return_it_only_goes_forward(job, operation):
    """It strikes out, ends failed, and what it had named is litter; nothing is undone."""
    job.no_return = "second"

    def fail(attempt):
        raise EngineError("store-failed", errno="EIO")

    job.second.does = fail
    for strikes in (1, 2, 3):
        perform(operation.pk)
        operation.refresh_from_db()
        assert (operation.status, operation.strikes) == ("running", strikes)
    perform(operation.pk)
    assert ended(operation) == ("failed", "")
    assert "undo" not in job.first.asked + job.second.asked
    assert Litter.objects.get().key == operation.pk


def test_an_undo_that_needs_time_is_asked_again(job, operation, monkeypatch):
    monkeypatch.setattr(operations, "UNDO_EVERY", 0)

    def fail(attempt):
        raise EngineError("store-full")

    answers = [True, False, False]
    job.first.does = fail
    job.first.undoes = lambda attempt: answers.pop()
    perform(operation.pk)
    assert job.first.asked == ["do", "undo", "undo", "undo"]
    assert ended(operation) == ("failed", "")


def test_an_undo_that_always_fails_ends_as_litter(job, operation):
    """Poison ends: three strikes in undoing."""

    def fail(attempt):
        raise EngineError("store-failed", errno="EIO")

    job.first.does = job.first.undoes = fail
    for _ in range(4):
        perform(operation.pk)
    assert ended(operation) == ("failed", "")
    assert Litter.objects.get().handle == {"handle": 1}
    assert job.ends == ["failing", "settle"]


def test_while_the_region_does_not_answer_it_waits_without_a_strike(job, operation):
    calls = []

    def unreachable_once(attempt):
        calls.append(1)
        if len(calls) == 1:
            raise Unreachable

    job.first.does = unreachable_once
    perform(operation.pk)
    operation.refresh_from_db()
    assert (operation.status, operation.holder, operation.strikes) == ("running", "", 0)
    assert operation.waiting_since is not None
    perform(operation.pk)
    assert ended(operation) == ("done", "")
    assert operation.waiting_since is None


def flap(job: Any, operation: Operation, bytes_seen: list[int], *, ends: bool) -> None:
    """Each attempt sees so many bytes, then the region falls silent; the last one is done if it ``ends``."""
    for number, done in enumerate(bytes_seen, 1):

        def looks_once(attempt: Any, done: int = done, last: bool = number == len(bytes_seen)) -> None:
            operations.Watch().see(attempt, Look(WorkState.RUNNING, {"vda": (done, 100)}))
            if not (ends and last):
                raise Unreachable

        job.first.does = looks_once
        perform(operation.pk)
        # The keeper sees it answer, a while later.
        Region.objects.update(seen_at=timezone.now() + timedelta(seconds=2))


def test_a_region_that_answers_every_other_time_does_not_keep_work_that_stands_still_alive(job, operation):
    """R24: each of its looks succeeds, and each next one does not; no byte has moved since the first."""
    flap(job, operation, [20] * 8, ends=False)
    assert ended(operation) == ("failed", "")
    assert operation.reason["code"] == "gave-up"


def test_a_region_that_answers_every_other_time_is_waited_for_as_long_as_bytes_move(job, operation):
    flap(job, operation, list(range(1, 9)), ends=True)
    assert ended(operation) == ("done", "")


@pytest.mark.parametrize("error", [OperationalError, InterfaceError, InternalError])
def test_a_database_that_fails_does_not_fail_the_work(job, operation, error):
    """PostgreSQL says that it ended a transaction, since its holder was stopped in it, with an ``InternalError``."""
    calls = []

    def fails_once(attempt):
        calls.append(1)
        if len(calls) == 1:
            raise error("terminating connection due to idle-in-transaction timeout")

    job.second.does = fails_once
    perform(operation.pk)
    operation.refresh_from_db()
    assert (operation.status, operation.holder, operation.strikes) == ("running", "", 1)
    perform(operation.pk)
    assert ended(operation) == ("done", "")


def test_work_that_stands_still_is_given_up(job, operation, settings):
    """As long as it moves it may take any time; then one limit of standing still."""
    settings.LIMIT_STALL = 0.3
    seen = []

    def watches(attempt):
        watch = operations.Watch()
        while True:
            moved = min(len(seen), 20)
            seen.append(moved)
            watch.see(attempt, Look(WorkState.RUNNING, {"vda": (moved, 100), "vdb": None}))
            time.sleep(0.05)

    job.second.does = watches
    perform(operation.pk)
    operation.refresh_from_db()
    assert (operation.status, operation.reason["code"]) == ("failed", "stalled")
    assert operation.progress["parts"] == {"vda": [20, 100], "vdb": None}
    assert job.ends == ["failing", "settle"]


def test_rows_that_cannot_be_written_do_not_keep_poison_alive(job, operation, monkeypatch):
    """R24: it ends failed, with litter, whatever its own rows say."""

    def broken(*arguments):
        raise RuntimeError("rows that do not fit")

    job.failing = job.settle = broken
    job.first.does = broken
    for _ in range(12):
        perform(operation.pk)
    assert ended(operation) == ("failed", "")
    assert Litter.objects.get().key == operation.pk


def test_an_engine_that_cannot_be_made_is_waited_for(job, operation, settings):
    """Like any other region that does not answer."""
    broken = {"BACKEND": "nowhere.Engine", "OPTIONS": {}}
    job.first.does = lambda attempt: attempt.engine.versions()
    settings.ENGINES = {"folder-1": broken}
    _engine.cache_clear()
    perform(operation.pk)
    operation.refresh_from_db()
    assert (operation.holder, operation.strikes) == ("", 0)
    assert operation.waiting_since is not None


def test_an_operation_of_a_region_that_was_given_up_ends_failed(job, operation):
    """R24: without asking the region; whoever holds it finds that it is theirs no more."""
    attempt = claim(operation.pk)
    assert operations.give_up(operation)
    with pytest.raises(Lost):
        attempt.beat()
    assert ended(operation) == ("failed", "")
    assert operation.reason["code"] == "region-given-up"
    assert job.ends == ["failing", "settle"]
    assert Litter.objects.get().key == operation.pk
    assert not operations.give_up(operation)


def test_turning_round_needs_no_place_among_the_running(job, folder, alice):
    """A cancelled one must not wait for hours behind copies."""
    job.long = True
    rows = [OperationFactory(kind="scripted", instance=None, holding=False) for _ in range(3)]
    assert [claim(row.pk) is not None for row in rows] == [True, True, False]
    assert operations.cancel(rows[2], alice)
    perform(rows[2].pk)
    assert ended(rows[2]) == ("cancelled", "")


def test_a_region_runs_so_many_long_operations_at_once(job, folder, settings):
    job.long = True
    rows = [OperationFactory(kind="scripted", instance=None, holding=False) for _ in range(3)]
    limit = settings.ENGINES["folder-1"]["LONG_LIMIT"]
    claims = [claim(row.pk) for row in rows]
    assert [attempt is not None for attempt in claims] == [True] * limit + [False] * (3 - limit)


def test_the_row_itself_refuses_two_holders_of_one_instance(folder):
    """The belt beneath the checks."""
    instance = InstanceFactory()
    OperationFactory(instance=instance)
    with pytest.raises(IntegrityError), transaction.atomic():
        OperationFactory(instance=instance)
    OperationFactory(instance=instance, holding=False)
    OperationFactory(instance=instance, status="done")


def test_redis_being_down_costs_the_caller_nothing(job, folder, monkeypatch):
    """The rows are committed all the same; the keeper looks for itself."""
    nobody = wakeup.redis.Redis(unix_socket_path="/nowhere", retry=None)
    monkeypatch.setattr(wakeup, "_connection", lambda: nobody)
    with transaction.atomic():
        row = operations.submit("scripted", region=RegionFactory(), holding=False, subject="anything")
    row.refresh_from_db()
    assert row.status == "queued"

"""The steps of start and stop. They have nothing to undo: what counts afterwards is what is observed."""

from __future__ import annotations

from compute import inventory
from compute.engines.base import EngineError, Power
from compute.models import Operation
from compute.operations import Attempt, Job, Step, wait_for
from compute.states import InstanceStatus


def _power(attempt: Attempt) -> Power:
    instance = attempt.operation.instance
    facts = attempt.engine.observe(instance.external_id) if instance else None
    if facts is None:
        raise EngineError("instance-gone")
    return facts.power


class PowerOn(Step):
    name = "power_on"

    def do(self, attempt: Attempt) -> None:
        instance = attempt.operation.instance
        if _power(attempt) is not Power.RUNNING and instance:
            attempt.engine.start(instance.external_id)
        wait_for(attempt, lambda: _power(attempt) is Power.RUNNING, code="did-not-start")


class PowerOff(Step):
    name = "power_off"

    def do(self, attempt: Attempt) -> None:
        instance, force = attempt.operation.instance, attempt.operation.choices["force"]
        if _power(attempt) is not Power.STOPPED and instance:
            attempt.engine.stop(instance.external_id, force=force)
        wait_for(attempt, lambda: _power(attempt) is Power.STOPPED, code="did-not-stop")


class _PowerJob(Job):
    becomes: InstanceStatus

    def finish(self, operation: Operation) -> None:
        if operation.instance:
            operation.instance.move(self.becomes, reason=None)

    def settle(self, operation: Operation, seen: InstanceStatus | None) -> None:
        if operation.instance:
            inventory.settle(operation.instance, seen, operation.reason)


class Start(_PowerJob):
    kind = "start"
    steps = (PowerOn(),)
    becomes = InstanceStatus.RUNNING


class Stop(_PowerJob):
    kind = "stop"
    steps = (PowerOff(),)
    becomes = InstanceStatus.STOPPED


JOBS: tuple[Job, ...] = (Start(), Stop())

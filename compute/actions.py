"""Verbs that cross rows. Each is one transaction: it locks, checks under the lock, writes every row, and returns.

Rows are always locked in the order operation, quota, image, snapshot, instance, disk.
"""

from __future__ import annotations

from typing import Any

from django.db import transaction

from compute.log import about
from compute.models import Instance, Operation
from compute.operations import submit
from compute.refusals import Conflict
from compute.rules import why_not_start, why_not_stop, why_not_yours
from compute.states import InstanceStatus


def locked_instance(instance: Instance, by: Any) -> Instance:
    """Its row, locked until the transaction ends; only for its owner (R22)."""
    row = Instance.objects.select_for_update(no_key=True).filter(pk=instance.pk).first()
    if row is None:
        raise Conflict
    if refused := why_not_yours(row, by):
        raise refused
    return row


@transaction.atomic
def start(*, by: Any, instance: Instance) -> Operation:
    row = locked_instance(instance, by)
    if refused := why_not_start(row):
        raise refused
    operation = submit("start", region_id=row.region_id, asked_by=by, instance=row, subject=row.name)
    with about(operation.pk):
        row.move(InstanceStatus.STARTING)
    return operation


@transaction.atomic
def stop(*, by: Any, instance: Instance, force: bool = False) -> Operation:
    """Ask the guest to shut down; with ``force``, pull its plug: what it had not written is lost."""
    row = locked_instance(instance, by)
    if refused := why_not_stop(row):
        raise refused
    choices = {"force": force}
    operation = submit("stop", region_id=row.region_id, asked_by=by, instance=row, subject=row.name, choices=choices)
    with about(operation.pk):
        row.move(InstanceStatus.STOPPING)
    return operation

"""Room in a region's image store: what is free, less what others still have to write, less a reserve.

Asked at the click, with what the keeper last saw, and again by the operation, with what is there then, before its
first byte. Free space that nobody knows is not refused for: a store that fills up all the same ends in ``store-full``.
"""

from __future__ import annotations

from django.conf import settings
from django.db.models import Q

from compute.models import Operation
from compute.refusals import Refused
from compute.states import OperationStatus

# What a store keeps free is for the tables of the copies' own files, for what a guest writes between look and instant,
# and for whoever else lies on the same file system. None of that grows with the store, so a large one keeps 1 GiB.
RESERVE = 1 << 30
RESERVE_SHARE = 20  # a store below 20 GiB keeps a twentieth


def reserve_of(region: str, total: int) -> int:
    """Bytes that stay free: ``RESERVE`` of the region's settings, or the smaller of 1 GiB and 5 % of the store."""
    reserve: int = settings.ENGINES[region].get("RESERVE", min(RESERVE, total // RESERVE_SHARE))
    return reserve


def why_not_fit(
    region: str, needed: int, space: tuple[int | None, int | None], *, operation: Operation | None = None
) -> Refused | None:
    """``space``: free and total bytes of the store. ``operation``: the one that asks; None at the click.

    Whoever asked first comes first: a click counts every live operation, an operation those that are older than it
    and those that write already. So of two that do not fit together the older one is made.
    """
    free, total = space
    if free is None or total is None:
        return None
    live = Operation.objects.live().filter(region=region).exclude(status=OperationStatus.UNDOING)
    if operation is not None:
        earlier = Q(created_at__lt=operation.created_at) | ~Q(progress={})
        live = live.filter(earlier).exclude(pk=operation.pk)
    others = sum(other.still_to_write for other in live)
    reserve = reserve_of(region, total)
    if needed + others + reserve <= free:
        return None
    return Refused("store-short", needed_bytes=needed, free_bytes=free, others_bytes=others, reserve_bytes=reserve)

"""Quota: counted under the lock of its row, never reserved, so there is nothing to leak (R5)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from compute.models import Disk, Instance, Medium, Quota, Resource, Snapshot
from compute.refusals import QuotaExceeded

# How each resource is counted for one owner in one region. Rows in Error and Deleting count until they are gone.
Count = Callable[[Any, str], int]
COUNTS: dict[Resource, Count] = {
    Resource.SNAPSHOTS: lambda owner, region: Snapshot.objects.filter(owner=owner, region=region).count(),
    Resource.INSTANCES: lambda owner, region: (
        Instance.objects.filter(owner=owner, region=region).exclude(status=Instance.Status.GONE).count()
    ),
    Resource.CLOUD_DISKS: lambda owner, region: Disk.objects.filter(
        owner=owner, region=region, medium=Medium.CLOUD
    ).count(),
}


@dataclass(frozen=True)
class Use:
    """One resource of one owner in one region."""

    resource: Resource
    used: int
    limit: int

    def after(self, more: int) -> int:
        return self.used + more

    def short(self, more: int) -> int:
        """By how many the limit would be exceeded; 0 when ``more`` fit."""
        return max(0, self.used + more - self.limit) if more else 0

    @property
    def full(self) -> bool:
        return self.used >= self.limit

    @property
    def over(self) -> bool:
        return self.used > self.limit


def uses(owner: Any, region: str) -> dict[Resource, Use]:
    """Use and limit of every resource: one query for the limits and one per resource."""
    quota = Quota.objects.filter(owner=owner, region=region).first() or Quota()
    return {
        resource: Use(resource, COUNTS[resource](owner, region), getattr(quota, resource))
        for resource in Resource
        if resource in COUNTS
    }


def take(owner: Any, region: str, needed: Mapping[Resource, int]) -> None:
    """Refuse unless all of ``needed`` fit now. Inside a transaction: until it ends, nobody else counts.

    Raises ``QuotaExceeded`` with resource, used, needed and limit of the first that does not fit.
    """
    Quota.objects.get_or_create(owner=owner, region_id=region)
    quota = Quota.objects.select_for_update().get(owner=owner, region_id=region)
    for resource, more in needed.items():
        use = Use(resource, COUNTS[resource](owner, region), getattr(quota, resource))
        if use.short(more):
            raise QuotaExceeded(
                f"quota-{resource}", resource=str(resource), used=use.used, needed=more, limit=use.limit
            )

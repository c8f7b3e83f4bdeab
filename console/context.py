"""What every page shows around its content: the region, the rooms, what is in progress, the theme."""

from __future__ import annotations

from typing import Any

from django.conf import settings
from django.http import HttpRequest

from compute.models import Operation, Region
from compute.regions import abilities_of
from compute.states import LIVE
from console.views import THEMES


def console(request: HttpRequest) -> dict[str, Any]:
    """Queries run only where a template asks: error pages and the sign-in must stand without a database."""
    match = request.resolver_match
    region = match.kwargs.get("region") if match else None
    chosen = request.COOKIES.get("theme")
    context: dict[str, Any] = {"theme": chosen if chosen in THEMES else "", "regions": list(settings.ENGINES)}
    if match and region:
        context |= {
            "region": region,
            "room": "images" if "/images/" in match.route else "instances",
            "power": abilities_of(region).power,
            "in_progress": lambda: in_progress(request, region),
            "silent_since": lambda: (
                Region.objects.filter(pk=region).values_list("unreachable_since", flat=True).first()
            ),
        }
    return context


def in_progress(request: HttpRequest, region: str) -> int:
    """How many operations of theirs are under way here."""
    live = Operation.objects.filter(region=region, status__in=LIVE)
    return (live if request.user.is_staff else live.filter(asked_by_id=request.user.pk)).count()

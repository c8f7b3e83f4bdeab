"""Verbs of an instance as its menu and its page show them."""

from __future__ import annotations

from typing import Any

from django import template
from django.utils.translation import pgettext

from compute import rules
from compute.models import Instance
from compute.refusals import Refused

register = template.Library()


@register.filter
def why_not_start(instance: Instance, by: Any) -> Refused | None:
    return rules.why_not_yours(instance, by) or rules.why_not_start(instance)


@register.filter
def why_not_stop(instance: Instance, by: Any) -> Refused | None:
    return rules.why_not_yours(instance, by) or rules.why_not_stop(instance)


@register.simple_tag
def reasons(*verbs_and_whys: Any) -> list[tuple[str, str]]:
    """``{% reasons verb why verb why … %}`` → the refused verbs with their reasons; those of one reason together."""
    found: dict[str, list[str]] = {}
    for verb, why in zip(verbs_and_whys[::2], verbs_and_whys[1::2], strict=True):
        if why:
            found.setdefault(str(why), []).append(verb)
    return [(pgettext("verbs", ", ").join(verbs), why) for why, verbs in found.items()]

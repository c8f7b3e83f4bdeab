"""Verbs of an instance as its menu shows them."""

from django import template

from compute import rules
from compute.models import Instance
from compute.refusals import Refused

register = template.Library()


@register.filter
def why_not_start(instance: Instance) -> Refused | None:
    return rules.why_not_start(instance)


@register.filter
def why_not_stop(instance: Instance) -> Refused | None:
    return rules.why_not_stop(instance)

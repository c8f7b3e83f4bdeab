"""What the pages of instances tell of images: ``compute`` itself knows nothing of them."""

from __future__ import annotations

from typing import Any

from django import template

from compute.models import Instance, Operation
from compute.refusals import Refused
from compute.rules import why_not_yours
from images import rules
from images.models import Image
from images.progress import Progress, progress_of

register = template.Library()


@register.filter
def progress(operation: Operation) -> Progress:
    return progress_of(operation)


@register.filter
def why_not_create_image(instance: Instance, by: Any) -> Refused | None:
    return why_not_yours(instance, by) or rules.why_not_create_image(instance)


@register.filter
def why_not_delete(image: Image, by: Any) -> Refused | None:
    return why_not_yours(image, by) or rules.why_not_delete(image)


@register.filter
def why_not_cancel(image: Image) -> Refused | None:
    return rules.why_not_cancel(image)


@register.filter
def why_not_use(image: Image, by: Any) -> list[Refused]:
    """Why neither instances nor shares can be made of it; one when both have the same reason (R9)."""
    if refused := why_not_yours(image, by):
        return [refused]
    return list({why.code: why for why in (rules.why_not_create_instance(image), rules.why_not_share(image))}.values())

"""What the pages of instances tell of images: ``compute`` itself knows nothing of them."""

from __future__ import annotations

from django import template
from django.utils.translation import pgettext_lazy

from compute.models import Instance, Operation
from compute.refusals import Refused
from compute.templatetags.look import KINDS
from images import rules
from images.models import Image
from images.progress import Progress, progress_of

register = template.Library()

KINDS.update(
    {
        "create_image": pgettext_lazy("operation", "Create image"),
        "delete_image": pgettext_lazy("operation", "Delete image"),
    }
)


@register.filter
def progress(operation: Operation) -> Progress:
    return progress_of(operation)


@register.filter
def why_not_create_image(instance: Instance) -> Refused | None:
    return rules.why_not_create_image(instance)


@register.filter
def why_not_delete(image: Image) -> Refused | None:
    return rules.why_not_delete(image)


@register.filter
def why_not_cancel(image: Image) -> Refused | None:
    return rules.why_not_cancel(image)


@register.filter
def why_not_use(image: Image) -> list[str]:
    """Why neither instances nor shares can be made of it; one sentence when both have the same reason (R9)."""
    return list(dict.fromkeys(str(why) for why in (rules.why_not_create_instance(image), rules.why_not_share(image))))

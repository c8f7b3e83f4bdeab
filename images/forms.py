"""What people type about images. Whether it is possible now is decided in ``rules`` and ``actions``."""

from __future__ import annotations

from typing import Any

from django import forms
from django.utils.translation import gettext_lazy as _

from compute.models import Disk, Instance, valid_description, valid_name
from images.models import Image
from images.rules import why_not_include


def chosen_last(instance: Instance) -> set[str]:
    """Ids of the data disks ticked at first: all, but those left out of this instance's last image (R3)."""
    last = instance.images.order_by("-created_at").first()
    out = {disk["device"] for disk in last.left_out} if last else set()
    return {disk.pk for disk in choosable(instance) if disk.device not in out}


def choosable(instance: Instance) -> list[Disk]:
    return [disk for disk in instance.data_disks if not why_not_include(disk)]


class CreateImageForm(forms.Form):
    """Name and description after R4, and the chosen data disks."""

    name = forms.CharField(
        validators=[valid_name],
        error_messages={
            "required": _("Give the image a name."),
            "invalid": _("This name is too short or too long, or a character of it is not allowed."),
        },
    )
    description = forms.CharField(
        required=False,
        validators=[valid_description],
        error_messages={
            "max_length": _("At most %(limit_value)s characters; these are %(show_value)s."),
            "null_characters_not_allowed": _("A character of it cannot be kept."),
        },
    )
    disks = forms.MultipleChoiceField(required=False)

    def __init__(self, instance: Instance, *args: Any, again: Image | None = None, **kwargs: Any) -> None:
        """``again``: an image whose choices the form opens with (R10)."""
        kwargs.setdefault("initial", {"disks": chosen_last(instance)})
        if again is not None:
            out = {disk["device"] for disk in again.left_out}
            kwargs["initial"] = {
                "name": again.name,
                "description": again.description,
                "disks": {disk.pk for disk in choosable(instance) if disk.device not in out},
            }
        super().__init__(*args, **kwargs)
        self.instance = instance
        field = self.fields["disks"]
        assert isinstance(field, forms.MultipleChoiceField)
        field.choices = [(disk.pk, disk.name) for disk in choosable(instance)]
        field.error_messages["invalid_choice"] = _("A chosen disk cannot be chosen any more. Look at the disks again.")

    @property
    def chosen(self) -> set[str]:
        """Ids of the data disks that are ticked now, as far as they can be."""
        return set(self["disks"].value() or ()) & {disk.pk for disk in choosable(self.instance)}


class CancelForm(forms.Form):
    delete = forms.BooleanField(required=False, initial=True)


class DeleteForm(forms.Form):
    snapshots = forms.BooleanField(required=False, initial=True)

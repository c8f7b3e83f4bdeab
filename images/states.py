"""Statuses of an image (R6 of the source: 创建中 → 复制中 → 可用)."""

from django.utils.translation import gettext_lazy as _

from compute.states import Status, Tone


class ImageStatus(Status):
    # The instant of every chosen disk is not fixed yet.
    CREATING = "creating", Tone.MOVE, "aperture", False, _("Creating")
    # The instant is fixed; bytes move into the image store.
    COPYING = "copying", Tone.MOVE, "hard-drive-download", False, _("Copying")
    # Every file is complete, inspected and hashed.
    AVAILABLE = "available", Tone.GOOD, "circle-check", True, _("Available")
    # It was not made; the reason says why. Its owner deletes it.
    ERROR = "error", Tone.BAD, "octagon-alert", True, _("Error")
    # Its files are being removed; the row goes when they are gone.
    DELETING = "deleting", Tone.REST, "trash-2", False, _("Deleting")


MAKING = (ImageStatus.CREATING, ImageStatus.COPYING)

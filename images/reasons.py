"""Sentences and words of images, added to those of ``compute.reasons``."""

from django.utils.translation import gettext_lazy as _
from django.utils.translation import pgettext_lazy

from compute.reasons import KINDS, SENTENCES

KINDS.update(
    {
        "create_image": pgettext_lazy("operation", "Create image"),
        "delete_image": pgettext_lazy("operation", "Delete image"),
    }
)

SENTENCES.update(
    {
        # Why not (R2, R3, R9, R18).
        "image-local-running": _("%(instance)s has a local system disk: stop it first."),
        "image-wrong-status": _("An image can be made while an instance is running or stopped; %(instance)s is not."),
        "image-live-unable": _("This region cannot make an image of a running instance: stop %(instance)s first."),
        "no-system-disk": _("%(instance)s has no system disk that the console knows."),
        "local-data-disk": _("Local data disks cannot be snapshotted"),
        "system-disk-always": _("System disk, always included"),
        "not-chosen": _("not chosen"),
        "not-of-instance": _("A chosen disk does not belong to %(instance)s any more. Look at the disks again."),
        "image-not-available": _("Refused until the image is available."),
        "image-in-error": _("Not possible with an image in error."),
        "image-deleting": _("The image is being deleted."),
        "image-undoing": _("It is still being cleaned up."),
        "later": _("Sharing images and creating instances from them come with a later version."),
        "not-being-made": _("It is not being made any more: there is nothing to cancel."),
    }
)

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
        # What the doctor finds.
        "doctor-redis": _("Redis does not answer (%(said)s). Nothing is lost: the keeper does what workers would."),
        "doctor-calls": _("Wake-up calls of operations that are over still lie on the queue %(queue)s (%(count)s)."),
        "doctor-unreachable": _("%(region)s does not answer (%(said)s)."),
        "doctor-store-absent": _("The image store of %(region)s, %(store)s, is not there. Is it mounted?"),
        "doctor-store-empty": _(
            "Nothing lies in the image store of %(region)s, although files should (%(count)s). Is it mounted?"
        ),
        "doctor-unusable": _("No image can be made in %(region)s: a small one was tried. %(why)s"),
        "doctor-unseen": _(
            "The keeper has not seen %(region)s for more than a minute, so what pages show of it is old. Does it run?"
        ),
        "doctor-no-region": _(
            "%(operation)s waits for ever: its region %(region)s is not in the settings. Put it back there."
        ),
        "doctor-unknown": _(
            "%(what)s lies in the image store of %(region)s, and no row says that it is ours. It is left alone: move "
            "it away, or delete it yourself."
        ),
        "doctor-leftover": _(
            "%(what)s lies in the image store of %(region)s, left behind by %(operation)s, which is over."
        ),
        "doctor-beside": _(
            "%(what)s lies in the image store of %(region)s, left behind by %(operation)s, which is over. Beside it is "
            "what must stay, so it is left alone: delete it yourself."
        ),
        "doctor-work": _("%(what)s in %(region)s still copies disks for %(operation)s, which is over."),
        "doctor-work-unknown": _(
            "%(what)s in %(region)s writes into the image store, and no row says what for. It is left alone: end it "
            "yourself."
        ),
        "doctor-litter": _("What %(operation)s had begun in %(region)s could not be removed yet."),
        "doctor-missing": _(
            "%(what)s, the file of %(row)s, is not in the image store of %(region)s. Put it back from a backup, or "
            "delete the image."
        ),
        "doctor-no-file": _("%(row)s is available, but no file is recorded for its %(device)s. Delete the image."),
        "doctor-stuck": _("%(row)s is “%(status)s”, and no operation is at work on it."),
        "doctor-holder": _("The process that held %(operation)s is dead, and nobody has taken it away from it."),
        "doctor-frozen": _("%(instance)s was to be frozen, and has not answered since that it is thawed."),
        "doctor-disk": _("%(instance)s: %(why)s"),
    }
)

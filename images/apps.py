from django.apps import AppConfig
from django.utils.translation import gettext_lazy as _


class ImagesConfig(AppConfig):
    name = "images"
    verbose_name = _("Images")
    default_auto_field = "django.db.models.BigAutoField"

    def ready(self) -> None:
        """What compute cannot know of images: how many there are, and their sentences."""
        from compute.models import Resource
        from compute.quotas import COUNTS
        from images import reasons  # noqa: F401
        from images.models import Image

        COUNTS[Resource.IMAGES] = lambda owner, region: Image.objects.filter(owner=owner, region=region).count()

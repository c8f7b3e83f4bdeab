"""`manage.py demo`: the accounts and instances that `make run` shows."""

from __future__ import annotations

from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError

from console.demo.guest import GuestError
from console.demo.story import tell


class Command(BaseCommand):
    help = "Make the demo's accounts and instances, as far as they have never been made. Only `make run` may."

    def handle(self, *args: Any, **options: Any) -> None:
        if settings.MODE != "demo":
            raise CommandError(
                "The demo's accounts have a known password: they are made under STILLFRAME_ENV=demo only."
            )
        try:
            tell(self.stdout.write)
        except (GuestError, OSError) as error:
            raise CommandError(str(error)) from error

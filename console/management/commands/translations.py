from argparse import ArgumentParser
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from console import translations


class Command(BaseCommand):
    help = "Compile the catalogues of texts (needs no gettext), or check that they are complete (needs it)."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--check", action="store_true")

    def handle(self, *args: Any, **options: Any) -> None:
        if not options["check"]:
            translations.compile_all()
        elif found := translations.problems():
            raise CommandError("\n".join(found))

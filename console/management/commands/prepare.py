from typing import Any

from django.core.management import call_command
from django.core.management.base import BaseCommand

from console import translations


class Command(BaseCommand):
    help = "All that lies between a new version of the code and its first page: migrations, texts, static files."

    def handle(self, *args: Any, **options: Any) -> None:
        call_command("migrate", interactive=False, verbosity=0)
        translations.compile_all()
        call_command("collectstatic", interactive=False, verbosity=0)

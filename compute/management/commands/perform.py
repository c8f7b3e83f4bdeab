"""``manage.py perform ID``: what a worker does with one operation, without a worker."""

from argparse import ArgumentParser
from typing import Any

from django.core.management.base import BaseCommand

from compute.operations import run


class Command(BaseCommand):
    help = "Do one operation now, unless someone holds it."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("operation", help="its id, op-…")

    def handle(self, operation: str, **options: Any) -> None:
        run(operation)

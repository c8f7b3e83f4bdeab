"""``manage.py keeper``: see ``compute.keeper``."""

import signal
from typing import Any

from django.core.management.base import BaseCommand

from compute.keeper import Keeper


class Command(BaseCommand):
    help = "Watch over operations and regions until stopped (SIGTERM or Ctrl-C)."

    def handle(self, **options: Any) -> None:
        keeper = Keeper()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: keeper.stop())
        keeper.run()

"""``manage.py doctor``: see ``images.doctor``."""

import logging
import os
import sys
from argparse import ArgumentParser
from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand
from django.utils import translation
from django.utils.translation import gettext, ngettext

from compute.engines.base import EngineError
from compute.refusals import Refused
from images.doctor import Finding, examine

log = logging.getLogger(__name__)


class Command(BaseCommand):
    help = "Compare rows, files, machines and queues, and explain each difference. Exit code 1 while there is one."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--fix", action="store_true", help="repair what needs no person, and look again")

    def handle(self, fix: bool, **options: Any) -> None:
        with translation.override(_readers_language()):
            found = self._told(examine())
            if fix and found:
                for finding in found:
                    _repair(finding)
                self.stdout.write(gettext("What could be repaired was. Looking again:"))
                found = self._told(examine())
            count = len(found)
            told = ngettext("%(count)d difference.", "%(count)d differences.", count) % {"count": count}
            self.stdout.write(told if count else gettext("No difference."))
        if found:
            sys.exit(1)

    def _told(self, findings: list[Finding]) -> list[Finding]:
        for finding in findings:
            self.stdout.write(str(finding))
        return findings


def _repair(finding: Finding) -> None:
    """A remedy that fails leaves the difference, which the next look tells."""
    if finding.remedy is None:
        return
    try:
        finding.remedy()
    except (EngineError, Refused):
        log.warning("%s could not be repaired", finding.code, exc_info=True)


def _readers_language() -> str:
    """That of the terminal, where we speak it."""
    spoken = os.environ.get("LC_ALL") or os.environ.get("LC_MESSAGES") or os.environ.get("LANG", "")
    try:
        return translation.get_supported_language_variant(spoken.partition(".")[0].replace("_", "-").lower())
    except LookupError:
        return settings.LANGUAGE_CODE

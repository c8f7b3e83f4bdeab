"""Catalogues of texts: compiled without gettext's programs, checked with them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import polib
from django.conf import settings


def catalogues() -> Iterator[Path]:
    for directory in settings.LOCALE_PATHS:
        yield from sorted(Path(directory).glob("*/LC_MESSAGES/django.po"))


def compile_all() -> None:
    """Have a current .mo beside every .po. Safe beside others that do the same."""
    for catalogue in catalogues():
        compiled = catalogue.with_suffix(".mo")
        if compiled.exists() and compiled.stat().st_mtime >= catalogue.stat().st_mtime:
            continue
        aside = compiled.with_suffix(f".{os.getpid()}")
        polib.pofile(str(catalogue)).save_as_mofile(str(aside))
        aside.rename(compiled)


def problems() -> list[str]:
    """What is missing: texts without a translation, unsure ones, and texts of the sources that no catalogue has."""
    found = []
    with tempfile.TemporaryDirectory() as directory:
        # In a copy: makemessages rewrites the catalogues it looks into.
        sources = Path(directory, "sources")
        left_out = shutil.ignore_patterns(".*", "var", "docs", "tests", "node_modules", "*.mo", "__pycache__")
        shutil.copytree(settings.BASE_DIR, sources, ignore=left_out)
        command = [sys.executable, "manage.py", "makemessages", "--all", "--no-obsolete", "--verbosity", "0"]
        subprocess.run(command, cwd=sources, check=True)
        for catalogue in catalogues():
            name = catalogue.relative_to(settings.BASE_DIR)
            fresh = {entry.msgid_with_context for entry in polib.pofile(str(sources / name))}
            kept = [entry for entry in polib.pofile(str(catalogue)) if not entry.obsolete]
            missing = fresh - {entry.msgid_with_context for entry in kept}
            found += [f"{name}: not in the catalogue: {text!r}" for text in sorted(missing)]
            for entry in kept:
                if entry.msgid_with_context not in fresh:
                    found.append(f"{name}:{entry.linenum}: no longer in the sources: {entry.msgid!r}")
                elif not entry.translated():
                    found.append(f"{name}:{entry.linenum}: not translated, or unsure: {entry.msgid!r}")
    return found

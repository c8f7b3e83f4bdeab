"""Catalogues are compiled without gettext's programs."""

from __future__ import annotations

import gettext
import os

from console import translations

CATALOGUE = """
msgid ""
msgstr "Content-Type: text/plain; charset=UTF-8\\n"

msgid "Create image"
msgstr "{}"
"""


def test_a_changed_catalogue_is_compiled_again(settings, tmp_path):
    settings.LOCALE_PATHS = [tmp_path]
    messages = tmp_path / "zh_Hans" / "LC_MESSAGES"
    messages.mkdir(parents=True)
    for text in ("制作镜像", "创建镜像"):
        (messages / "django.po").write_text(CATALOGUE.format(text))
        for old in messages.glob("*.mo"):
            os.utime(old, (0, 0))
        translations.compile_all()
        with (messages / "django.mo").open("rb") as compiled:
            assert gettext.GNUTranslations(compiled).gettext("Create image") == text
    assert {file.name for file in messages.iterdir()} == {"django.po", "django.mo"}

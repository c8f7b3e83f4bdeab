"""Every code that can reach a person has its sentence, in both languages (docs/rules.md R10)."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
from django.conf import settings
from django.utils import translation

from compute.reasons import SENTENCES, say

ROOT = Path(settings.BASE_DIR)
RAISED = {"EngineError", "Refused", "Busy", "QuotaExceeded", "NotAllowed", "Conflict", "Finding"}


def codes() -> Iterator[str]:
    """First arguments of everything that is raised to be told, and what wait_for is given."""
    for app in ("compute", "images"):
        for path in (ROOT / app).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if not isinstance(node, ast.Call):
                    continue
                name = getattr(node.func, "id", getattr(node.func, "attr", ""))
                told = [node.args[0]] if name in RAISED and node.args else []
                told += [word.value for word in node.keywords if word.arg in ("code", "problem")]
                for argument in told:
                    yield from (
                        part.value
                        for part in ast.walk(argument)
                        if isinstance(part, ast.Constant) and isinstance(part.value, str) and "-" in part.value
                    )


@pytest.mark.parametrize("code", sorted(set(codes())))
def test_every_code_has_a_sentence(code):
    if code.startswith("quota-"):
        code = code.rstrip("-")
    assert any(known == code or known.startswith(f"{code}-") for known in SENTENCES), f"no sentence for {code}"


def test_a_reason_that_cannot_be_told_is_told_all_the_same(caplog):
    assert say({"code": "never-heard-of", "data": {}}) == "It was not possible (never-heard-of)."
    assert say({"code": "busy", "data": {}}) == "It was not possible (busy)."
    assert say(None) == ""
    assert "never-heard-of" in caplog.text


@pytest.mark.parametrize("code", SENTENCES)
def test_sentences_differ_by_language(code):
    with translation.override("en"):
        english = str(SENTENCES[code])
    with translation.override("zh-hans"):
        chinese = str(SENTENCES[code])
    assert english != chinese

"""What `make` was told is looked at before anything is installed or made."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from django.conf import settings


@pytest.mark.parametrize(
    ("name", "value"), [("PORT", "http"), ("PORT", "0"), ("PORT", "70000"), ("PORT", "-1"), ("ENGINE", "vmware")]
)
def test_a_senseless_setting_is_refused_in_one_line(name: str, value: str, tmp_path: Path) -> None:
    told = subprocess.run(
        [sys.executable, settings.BASE_DIR / "console/bootstrap.py", "run"],
        env={**os.environ, "HOME": str(tmp_path), name: value},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert told.returncode == 1
    assert told.stdout == ""
    assert told.stderr.startswith(f"{name} is '{value}': choose ")
    assert told.stderr.count("\n") == 1
    assert not any(tmp_path.iterdir())

"""Real processes of the product in tests: workers, keepers, single operations."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from django.conf import settings

if TYPE_CHECKING:
    from compute.models import Operation

MANAGE = str(settings.BASE_DIR / "manage.py")


def wait_until(ready: Callable[[], Any], *, seconds: float = 30, what: str = "it") -> Any:
    """Ask until the answer is true and return it; fail after ``seconds``."""
    deadline = time.monotonic() + seconds
    while not (answer := ready()):
        assert time.monotonic() < deadline, f"{what} did not happen within {seconds} s"
        time.sleep(0.05)
    return answer


def copying(operation: Operation) -> bool:
    """Has a byte of it been copied?"""
    operation.refresh_from_db()
    return any(part and part[0] for part in operation.progress.get("parts", {}).values())


def ended(operation: Operation) -> bool:
    operation.refresh_from_db()
    return not operation.is_live


@contextmanager
def manage(*arguments: str, env: dict[str, str], stdout: int | None = None) -> Iterator[subprocess.Popen[bytes]]:
    """``manage.py …`` as a process; killed at the end if it still runs."""
    process = subprocess.Popen([sys.executable, MANAGE, *arguments], env=env, stdin=subprocess.DEVNULL, stdout=stdout)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def slow_region(directory: Path, root: Path, *, rate: int) -> dict[str, str]:
    """Environment in which the folder region copies ``rate`` bytes per second."""
    file = directory / "engines.toml"
    file.write_text(
        '["folder-1"]\nBACKEND = "compute.engines.folder.FolderEngine"\nLONG_LIMIT = 2\n'
        f'OPTIONS = {{ ROOT = "{root}", RATE = {rate} }}\n'
    )
    return {"ENGINES_FILE": str(file)}

"""The product on PostgreSQL as a user meets it: `make run`'s processes and a real browser, on a region of files.

docs/rules.md R1, R8, R11, R13, R18. With machines, and on SQLite as well, it is tests/browser/test_story.py.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from playwright.sync_api import Browser, expect

from console.demo import PASSWORD
from tests.console_process import FIRST_START, Console
from tests.postgres import Server
from tests.processes import wait_until

pytestmark = [pytest.mark.browser, pytest.mark.postgres]
SECONDS = 60_000  # of Playwright, in ms


@pytest.fixture
def rows(postgres: Server) -> str:
    return postgres.create("console")


@pytest.fixture
def console(rows: str, tmp_path: Path, guest_cache: Path) -> Iterator[Console]:
    console = Console(tmp_path, guest_cache, ENGINE="folder", DATABASE_URL=rows)
    try:
        console.start(FIRST_START)
        yield console
    finally:
        console.remove()


def statuses(rows: str, table: str) -> list[str]:
    with psycopg.connect(rows) as connection:
        return [status for (status,) in connection.execute(f"SELECT status FROM {table}")]


def test_an_image_from_click_to_bits_and_away(console, rows, chromium: Browser):
    page = chromium.new_context(base_url=console.url).new_page()
    page.goto("/")
    page.get_by_label("User name").fill("bob")
    page.get_by_label("Password").fill(PASSWORD)
    page.get_by_role("button", name="Sign in").click()
    page.get_by_role("button", name="More · cache-1").click()
    page.get_by_role("link", name="Create image…").click()
    dialog = page.get_by_role("dialog")
    dialog.get_by_label("Name").fill("cache-1-v1")
    dialog.get_by_role("button", name="Create image").click()
    expect(page).to_have_url(re.compile("/r/folder-1/images/img-[0-9a-f]+/$"))
    expect(page.locator("h1 ~ .pill, .pill").first).to_have_text("Available", timeout=SECONDS)

    folder = console.data / "folder"
    (stored,) = folder.glob("store/*/vda.raw")
    hashed = subprocess.check_output(["sha256sum", stored], text=True).split()[0]
    assert page.get_by_role("main").get_by_text(hashed).count() == 1, "the hash on the page is that of the file"
    (disk,) = (
        path for path in folder.glob("instances/*/vda.raw") if "cache-1" in (path.parent / "instance.json").read_text()
    )
    assert not subprocess.run(["cmp", stored, disk], check=False).returncode, "and the file is what the disk is"
    assert statuses(rows, "images_image") == statuses(rows, "compute_snapshot") == ["available"]
    assert statuses(rows, "compute_operation") == ["done"]
    assert not list(console.data.glob("*.sqlite3"))

    page.get_by_role("main").get_by_text("Delete…").click()
    page.get_by_role("dialog").get_by_role("button", name="Delete").click()
    wait_until(lambda: not statuses(rows, "images_image"), what="the image gone")
    assert not statuses(rows, "compute_snapshot")
    assert not list((folder / "store").iterdir())
    page.context.close()
    assert console.interrupt() == 0
    assert console.pids() == []

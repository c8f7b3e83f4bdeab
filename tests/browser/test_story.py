"""The product as a user meets it: `make run`'s processes, a real browser, real machines, and the bits beside the badge.

All on one console, once with its rows in SQLite and once in PostgreSQL: docs/rules.md R1–R13, R18, R20, R22, R24.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect

from console.demo import PASSWORD
from console.libvirtd import PrivateLibvirtd
from tests.console_process import FIRST_START, LATER_START, Console
from tests.demo.machine import Machine
from tests.processes import wait_until

pytestmark = [pytest.mark.qemu, pytest.mark.browser]
SECONDS = 60_000  # of Playwright, in ms: as long as a copy may take on a busy machine


@pytest.fixture(scope="module", params=["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
def console(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, guest_cache: Path
) -> Iterator[Console]:
    chosen = {}
    if request.param == "postgres":
        chosen["DATABASE_URL"] = request.getfixturevalue("postgres").create("story")
    console = Console(tmp_path_factory.mktemp("console"), guest_cache, **chosen)
    try:
        console.start(FIRST_START)
        yield console
    finally:
        console.remove()


@pytest.fixture(scope="module")
def pages(chromium: Browser, console: Console) -> Any:
    """One signed-in window per person."""
    open_pages: dict[str, Page] = {}

    def page_of(name: str) -> Page:
        if name not in open_pages:
            page = chromium.new_context(base_url=console.url, viewport={"width": 1440, "height": 900}).new_page()
            page.goto("/")
            page.get_by_label("User name").fill(name)
            page.get_by_label("Password").fill(PASSWORD)
            page.get_by_role("button", name="Sign in").click()
            expect(page).to_have_url(re.compile("/r/kvm-1/instances/$"))
            open_pages[name] = page
        return open_pages[name]

    return page_of


@pytest.fixture
def libvirtd(console: Console) -> Iterator[Any]:
    import libvirt  # here: plain pytest collects this file also where there is none

    connection = libvirt.open(PrivateLibvirtd(console.sockets / "l").uri)
    yield connection
    connection.close()


class Slowly:
    """Holds the copies of a machine to so many MiB/s from the moment they begin, so that they can be watched."""

    def __init__(self, connection: Any, machine: str, rate: int) -> None:
        self.domain = connection.lookupByName(machine)
        self.rate = rate
        self.over = threading.Event()
        self.thread = threading.Thread(target=self._hold)

    def _hold(self) -> None:
        import libvirt

        while not self.over.wait(0.02):
            for device in ("vda", "vdb", "vdc"):
                try:
                    if self.domain.blockJobInfo(device, 0):
                        self.domain.blockJobSetSpeed(device, self.rate, 0)
                except libvirt.libvirtError:
                    continue  # no job on it now

    def __enter__(self) -> None:
        self.thread.start()

    def __exit__(self, *_: object) -> None:
        self.over.set()
        self.thread.join()


def open_dialog(page: Page, instance: str) -> Any:
    page.goto("/r/kvm-1/instances/")
    page.get_by_role("button", name=f"More · {instance}").click()
    page.get_by_role("link", name="Create image…").click()
    dialog = page.get_by_role("dialog")
    expect(dialog.get_by_role("heading", name="Create image")).to_be_visible()
    return dialog


def submit(page: Page, name: str, *, without: tuple[str, ...] = ("/dev/vdc",)) -> None:
    dialog = open_dialog(page, "web-1")
    dialog.get_by_label("Name").fill(name)
    for device in without:
        dialog.get_by_role("checkbox", name=device).uncheck()
    dialog.get_by_role("button", name="Create image").click()


def image_page(page: Page, name: str) -> str:
    """Address of the image on whose page the browser has come to be."""
    expect(page).to_have_url(re.compile("/images/img-[0-9a-f]+/$"))
    expect(page.get_by_role("heading", level=1)).to_contain_text(name)
    return page.url


def pill(page: Page) -> Any:
    return page.locator("h1 ~ .pill, .pill").first


def stored(console: Console) -> list[Path]:
    return sorted(path for path in (console.data / "store").rglob("*") if path.is_file())


def counts(page: Page) -> tuple[int, int]:
    """Images and snapshots used, as the instance list shows them."""
    page.goto("/r/kvm-1/instances/")
    text = page.get_by_role("region", name="Quota").inner_text()
    return tuple(int(re.search(rf"{word}\s+(\d+) of", text)[1]) for word in ("Images", "Snapshots"))


def sha256(path: Path) -> str:
    return subprocess.check_output(["sha256sum", path], text=True).split()[0]


def assert_it_boots(files: dict[str, Path], place: Path) -> None:
    """Two thin copies of the captured disks boot, mount each other, and hold what the machine held."""
    disks = []
    for name, path in sorted(files.items()):
        thin = place / f"{name}.qcow2"
        subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-b", path, "-F", "qcow2", thin], check=True)
        disks.append(thin)
    with Machine(place, *disks) as machine:
        machine.wait_said("ready")
        machine.wait_agent()
        assert machine.run("ls /srv/www").strip()
        assert machine.run("ls /srv/data/photos").strip()
        assert "/srv/logs" not in machine.run("cat /proc/mounts"), "the disk that was left out is not there"


def test_an_image_of_a_running_machine_from_click_to_bits(pages, console, libvirtd, tmp_path):
    """R1, R3, R5, R8, R9, R11, R13, R18, R22: it becomes Available by itself, and the bits are those of the click."""
    page = pages("alice")
    images, snapshots = counts(page)
    expect(page.get_by_role("link", name="web-1", exact=True)).to_be_visible()
    expect(page.get_by_role("link", name="db-1", exact=True)).to_be_visible()
    expect(page.get_by_text("cache-1")).to_have_count(0)
    before = set(stored(console))

    # The guest has booted once its agent answers: then the dialog promises what the receipt must show.
    wait_until(lambda: "File systems frozen" in open_dialog(page, "web-1").inner_text(), seconds=180)
    seen: list[str] = []
    with Slowly(libvirtd, "stillframe-web-1", 400):
        submit(page, "web-1-v1")
        address = image_page(page, "web-1-v1")
        page.evaluate("window.untouched = true")
        expect(pill(page)).to_have_text(re.compile("Creating|Copying"))
        for verb in ("Create instance", "Share", "Delete…"):
            expect(page.get_by_role("button", name=verb)).to_be_disabled()
        expect(page.get_by_text("until the image is available").first).to_be_visible()
        wait_until(lambda: seen.append(pill(page).inner_text()) or seen[-1] == "Available", seconds=90)
    assert "Copying" in seen
    assert page.evaluate("window.untouched"), "the page moved by itself, without being loaded again"
    main = page.get_by_role("main")
    expect(main.get_by_text("File systems frozen").first).to_be_visible()
    expect(main.get_by_text("/dev/vdc web-1-logs")).to_be_visible()

    files = {path.stem: path for path in set(stored(console)) - before if path.suffix == ".qcow2"}
    assert set(files) == {"vda", "vdb"}
    for path in files.values():
        about = json.loads(subprocess.check_output(["qemu-img", "info", "--output=json", "-f", "qcow2", path]))
        assert "backing-filename" not in about, "it stands alone"
        assert main.get_by_text(sha256(path)).count() == 1, "the hash on the page is that of the file"
    assert_it_boots(files, tmp_path)

    assert counts(page) == (images + 1, snapshots + 2)
    for name, status in (("charlie", 404), ("bob", 404), ("dana", 200)):
        assert pages(name).goto(address).status == status

    page.goto(address)
    page.get_by_role("main").get_by_text("Delete…").click()
    page.get_by_role("dialog").get_by_role("button", name="Delete").click()
    expect(page).to_have_url(re.compile("/images/$"))
    expect(page.get_by_role("link", name="web-1-v1")).to_have_count(0, timeout=SECONDS)
    wait_until(lambda: set(stored(console)) == before, what="the files gone")
    assert counts(page) == (images, snapshots)


def set_limit(page: Page, images: int) -> None:
    page.goto("/admin/compute/quota/")
    page.get_by_role("row", name="alice").get_by_role("link").first.click()
    page.locator("#id_images").fill(str(images))
    page.get_by_role("button", name="Save", exact=True).click()
    expect(page.get_by_text("was changed successfully")).to_be_visible()


def test_at_the_limit_it_is_refused_until_the_admin_raises_it(pages):
    """R5, R20: nothing is made; what was typed is kept."""
    page = pages("alice")
    images, _ = used = counts(page)
    set_limit(pages("dana"), images)
    submit(page, "one-too-many")
    dialog = page.get_by_role("dialog")
    expect(dialog.get_by_role("alert")).to_contain_text(f"{images} of {images} are used")
    expect(dialog.get_by_label("Name")).to_have_value("one-too-many")
    assert counts(page) == used
    set_limit(pages("dana"), images + 5)
    expect(open_dialog(page, "web-1").get_by_text(f"limit {images + 5}")).to_be_visible()


def test_a_worker_killed_in_the_middle_is_followed_by_another(pages, console, libvirtd):
    """R24: killed with SIGKILL while QEMU copies; the image becomes Available all the same."""
    page = pages("alice")
    with Slowly(libvirtd, "stillframe-web-1", 100):
        submit(page, "web-1-survivor")
        image_page(page, "web-1-survivor")
        expect(pill(page)).to_have_text("Copying", timeout=SECONDS)
        before = set(console.pids("rqworker", "long-"))
        for pid in before:
            os.kill(pid, signal.SIGKILL)
        wait_until(lambda: set(console.pids("rqworker", "long-")) - before, what="new workers")
    expect(pill(page)).to_have_text("Available", timeout=SECONDS)


def test_a_machine_killed_in_the_middle_ends_in_error_with_nothing_left(pages, console, libvirtd):
    """R10: a reason, no snapshot, no file; and the machine can be started again."""
    page = pages("alice")
    images, snapshots = counts(page)
    before = stored(console)
    with Slowly(libvirtd, "stillframe-web-1", 50):
        submit(page, "web-1-lost")
        image_page(page, "web-1-lost")
        expect(pill(page)).to_have_text("Copying", timeout=SECONDS)
        (machine,) = console.pids("qemu-system", "guest=stillframe-web-1")
        os.kill(machine, signal.SIGKILL)
        expect(pill(page)).to_have_text("Error", timeout=SECONDS)
    wait_until(lambda: stored(console) == before, what="the clean store")
    wait_until(lambda: counts(page) == (images + 1, snapshots), what="snapshots gone")
    row = page.get_by_role("row", name="web-1")
    expect(row).to_contain_text("Stopped", timeout=SECONDS)
    page.get_by_role("button", name="More · web-1").click()
    page.get_by_role("button", name="Start", exact=True).click()
    expect(page.get_by_text("Running").first).to_be_visible(timeout=SECONDS)


def test_ctrl_c_leaves_no_process_and_the_next_start_goes_on(pages, console, libvirtd):
    """An image under way stays live and is ended by the next start; machines that ran run again; rows are kept."""
    page = pages("alice")
    images, snapshots = counts(page)
    before = stored(console)
    with Slowly(libvirtd, "stillframe-web-1", 10):
        submit(page, "web-1-cut-off")
        address = image_page(page, "web-1-cut-off")
        expect(pill(page)).to_have_text("Copying", timeout=SECONDS)
        assert console.interrupt() == 0
    assert console.pids() == []
    console.start(LATER_START)
    page.goto(address)
    expect(pill(page)).to_have_text("Error", timeout=SECONDS)
    wait_until(lambda: counts(page) == (images + 1, snapshots), what="snapshots gone")
    assert stored(console) == before
    expect(page.get_by_role("row", name="web-1")).to_contain_text("Running", timeout=SECONDS)

"""Pages in a real browser, over rows alone: they move by themselves, and everyone can use them (docs/rules.md R26)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from django.urls import reverse
from django.utils import timezone
from playwright.sync_api import Page, expect

from compute.models import Instance, Operation
from images.models import Image
from tests.factories import (
    GIB,
    DiskFactory,
    ImageFactory,
    InstanceFactory,
    MappingFactory,
    OperationFactory,
    QuotaFactory,
    SnapshotFactory,
)

pytestmark = [pytest.mark.browser, pytest.mark.django_db(transaction=True)]
REGION = "folder-1"


def path(name: str, *args: str) -> str:
    return reverse(name, args=[REGION, *args])


@dataclass
class World:
    """Alice's: web-1 is free, db-1 is held while ``moving`` is copied; one image is whole and one in error."""

    alice: Any
    web: Instance
    moving: Image
    making: Operation
    whole: Image
    failed: Image


@pytest.fixture
def world(alice) -> World:
    QuotaFactory(owner=alice)
    web = InstanceFactory(owner=alice, name="web-1")
    DiskFactory(instance=web, device="vdb", medium="local", name="web-1-scratch")
    DiskFactory(instance=web, device="vdc", name="web-1-data")
    db = InstanceFactory(owner=alice, name="db-1")
    moving = ImageFactory(owner=alice, instance=db, instance_name="db-1", name="moving", status="copying")
    MappingFactory(image=moving, snapshot=SnapshotFactory(owner=alice, status="creating"))
    making = OperationFactory(
        kind="create_image",
        status="running",
        step="capture",
        instance=db,
        image=moving,
        exclusive=True,
        asked_by=alice,
        choices={"parts": {"vda": {"disk": "d", "size": GIB}}, "disks": []},
        work={"capture": {"began": timezone.now().isoformat(), "handle": {}}},
        progress={"phase": "copy", "parts": {"vda": [GIB // 4, GIB]}, "rate": 1 << 20},
    )
    out = [{"device": "vdb", "name": "web-1-scratch", "size": GIB, "why": {"code": "local-data-disk", "data": {}}}]
    whole = ImageFactory(owner=alice, instance=web, name="whole", instant=timezone.now(), left_out=out)
    snapshot = SnapshotFactory(owner=alice, sha256="ab" * 32, stored_bytes=GIB)
    MappingFactory(image=whole, snapshot=snapshot)
    failed = ImageFactory(
        owner=alice, instance=web, name="failed", status="error", reason={"code": "store-full", "data": {}}
    )
    OperationFactory(kind="create_image", status="failed", instance=None, image=failed, reason=failed.reason)
    return World(alice, web, moving, making, whole, failed)


def settle(world: World) -> None:
    Operation.objects.filter(pk=world.making.pk).update(status="done", ended_at=timezone.now())
    Image.objects.filter(pk=world.moving.pk).update(status="available", available_at=timezone.now())


def open_dialog(page: Page) -> None:
    page.get_by_role("button", name="web-1").click()
    page.locator("[popover]:popover-open a").first.click()
    page.locator("dialog[open] form").wait_for()


# Everyone -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("theme", "language", "width"),
    [("light", "en", 1440), ("dark", "en", 390), ("dark", "zh-hans", 1440), ("light", "zh-hans", 390)],
)
def test_R26_no_page_has_an_accessibility_violation_or_runs_off_the_screen(open_page, world, theme, language, width):
    addresses = [
        path("instances"),
        path("instance", world.web.pk),
        path("instance-stop", world.web.pk),
        path("image-create", world.web.pk),
        path("images"),
        path("image", world.moving.pk),
        path("image", world.whole.pk),
        path("image", world.failed.pk),
        path("image-cancel", world.moving.pk),
        path("image-delete", world.whole.pk),
        reverse("help-device-names"),
    ]
    page = open_page(reverse("login"), language=language, theme=theme, width=width)
    look(page, "sign-in")
    page = open_page(path("images"), user=world.alice, language=language, theme=theme, width=width)
    for address in addresses:
        page.goto(address)
        look(page, address)
    page.goto(path("instances"))
    open_dialog(page)
    look(page, "the dialog")


def look(page: Page, where: str) -> None:
    page.evaluate(
        "Promise.all(document.getAnimations().filter(a => a.effect.getTiming().iterations === 1).map(a => a.finished))"
    )
    result = Axe().run(page)
    assert result.violations_count == 0, f"{where}: {result.generate_report()}"
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), f"{where} runs off the screen"


def test_R26_an_image_is_made_without_javascript(open_page, world):
    page = open_page(path("instances"), user=world.alice, script=False)
    page.get_by_role("button", name="web-1").click()
    page.locator("[popover]:popover-open a").first.click()
    page.wait_for_url(f"**{path('image-create', world.web.pk)}")
    page.get_by_label("Name").fill("web 1")
    page.get_by_role("button", name="Create image").click()
    expect(page.get_by_label("Name")).to_have_value("web 1")
    page.get_by_label("Name").fill("web-1-base")
    page.get_by_role("button", name="Create image").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("web-1-base")
    assert Image.objects.get(name="web-1-base").instance == world.web


def test_the_dialog_works_by_keyboard_and_gives_the_focus_back(open_page, world):
    page = open_page(path("instances"), user=world.alice)
    more = page.get_by_role("button", name="web-1")
    more.focus()
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    page.locator("dialog[open] form").wait_for()
    expect(page.get_by_label("Name")).to_be_focused()
    page.keyboard.type("web 1")
    page.keyboard.press("Enter")
    expect(page.locator("#name-help.errors")).to_be_visible()
    expect(page.get_by_label("Name")).to_be_focused()
    expect(page.get_by_label("Name")).to_have_value("web 1")
    page.keyboard.press("Escape")
    expect(page.locator("dialog[open]")).to_have_count(0)
    expect(more).to_be_focused()


def test_ticking_a_disk_changes_what_the_image_takes(open_page, world):
    page = open_page(path("instances"), user=world.alice)
    open_dialog(page)
    expect(page.locator("#takes")).to_contain_text("after 4")
    page.get_by_label("/dev/vdc").uncheck()
    expect(page.locator("#takes")).to_contain_text("after 3")
    expect(page.locator("#promise")).to_contain_text("The disk as of one instant")
    assert page.get_by_label("/dev/vda").is_disabled()
    assert page.get_by_label("/dev/vdb").is_disabled()


# Moving -------------------------------------------------------------------------------------------------------------


def test_R11_the_image_page_moves_by_itself_and_then_stops_asking(open_page, world):
    page = open_page(path("image", world.moving.pk), user=world.alice)
    expect(page.locator("#pill")).to_have_text("Copying")
    expect(page).to_have_title("25% Copying · moving · Stillframe")
    Operation.objects.update(progress={"phase": "copy", "parts": {"vda": [GIB // 2, GIB]}, "rate": None})
    expect(page.locator("#figures")).to_contain_text("50")
    expect(page).to_have_title("50% Copying · moving · Stillframe")
    settle(world)
    expect(page.locator("#pill")).to_have_text("Available")
    expect(page.locator("#announce")).to_have_text("moving: Available")
    expect(page.get_by_role("link", name="Delete…")).to_be_visible()
    expect(page.locator("#watch")).not_to_have_attribute("data-moving", "")
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.wait_for_timeout(2500)  # that nothing is asked for can only be waited for
    assert asked == []


def test_a_list_swaps_single_cells_under_an_open_menu(open_page, world):
    page = open_page(path("images"), user=world.alice)
    page.get_by_role("button", name="More · moving").click()
    menu = page.locator(f"#menu-{world.moving.pk}")
    menu.locator("button").focus()
    settle(world)
    expect(page.locator(f"#state-{world.moving.pk}")).to_contain_text("Available")
    expect(menu).to_be_visible()
    expect(menu.locator("button")).to_be_focused()
    page.keyboard.press("Escape")
    page.get_by_role("button", name="More · moving").click()
    expect(menu.get_by_role("link", name="Delete…")).to_be_visible()


def test_a_page_whose_session_ended_goes_to_sign_in_and_comes_back(open_page, world):
    page = open_page(path("image", world.moving.pk), user=world.alice)
    page.context.clear_cookies()
    page.wait_for_url("**/sign-in/?next=*")
    page.get_by_label("User name").fill("alice")
    page.get_by_label("Password").fill("demo-console")
    page.get_by_role("button", name="Sign in").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("moving")


def test_a_hidden_tab_asks_seldom_and_one_that_is_looked_at_again_asks_at_once(open_page, world):
    page = open_page(path("images"), user=world.alice)
    show = "h => { Object.defineProperty(document, 'hidden', {value: h, configurable: true});"
    show += "document.dispatchEvent(new Event('visibilitychange')); }"
    asked: list[str] = []
    with page.expect_request("**/poll/**"):
        pass
    page.evaluate(show, True)
    page.on("request", lambda request: asked.append(request.url))
    page.wait_for_timeout(3500)  # that it asks at most once in ten seconds can only be waited for
    assert len(asked) <= 1
    with page.expect_request("**/poll/**", timeout=3000):
        page.evaluate(show, False)
    settle(world)
    expect(page.locator(f"#state-{world.moving.pk}")).to_contain_text("Available")
    expect(page.locator("#watch")).not_to_have_attribute("data-moving", "")
    Image.objects.filter(pk=world.whole.pk).update(status="deleting")
    page.evaluate(show, False)
    expect(page.locator(f"#state-{world.whole.pk}")).to_contain_text("Deleting")

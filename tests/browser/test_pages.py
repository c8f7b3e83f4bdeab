"""Pages in a real browser, over rows alone: they move by themselves, and everyone can use them (docs/rules.md R26)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import django_rq
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
    expect(page.locator("#name-error")).to_be_visible()
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
    expect(page.locator("dialog .promise")).to_have_count(1)
    expect(page.locator("dialog .promise")).to_contain_text("The disk as of one instant")
    page.get_by_label("/dev/vdc").check()
    expect(page.get_by_text("2 disks as of one instant")).to_have_count(1)
    expect(page.locator("dialog .promise")).to_contain_text("2 disks as of one instant")
    assert page.get_by_label("/dev/vda").is_disabled()
    assert page.get_by_label("/dev/vdb").is_disabled()


def test_a_dialog_tells_what_went_wrong_and_keeps_what_was_typed(open_page, world):
    page = open_page(path("instances"), user=world.alice)
    open_dialog(page)
    page.get_by_label("Name").fill("web-1-base")
    page.get_by_label("/dev/vdc").uncheck()
    # Signed in anew in another tab: the token of this page is worth nothing now.
    page.evaluate("document.querySelector('dialog [name=csrfmiddlewaretoken]').value = 'x'.repeat(64)")
    page.get_by_role("button", name="Create image").click()
    alert = page.locator("dialog").get_by_role("alert")
    expect(alert).to_contain_text("Nothing is lost: press the button again.")
    assert alert_is_on_the_raised_surface(page)
    page.route("**/create-image/", lambda route: route.abort())
    page.get_by_role("button", name="Create image").click()
    expect(alert).to_contain_text("The console did not answer.")
    page.unroute("**/create-image/")
    expect(page.get_by_label("Name")).to_have_value("web-1-base")
    Instance.objects.filter(pk=world.web.pk).update(owner=None)
    page.get_by_role("button", name="Create image").click()
    expect(alert).to_contain_text("It is not there any more, or not yours to see.")
    page.get_by_role("button", name="Close").click()
    expect(page.locator("dialog[open]")).to_have_count(0)


def alert_is_on_the_raised_surface(page: Page) -> bool:
    """Everything that the dialog shows lies on its sheet, whose ground is not see-through."""
    ground = "getComputedStyle(document.querySelector('dialog > .sheet')).backgroundColor"
    return page.locator("dialog > *").count() == 1 and page.evaluate(ground) == "rgb(255, 255, 255)"


def test_a_fresh_token_comes_with_the_notice(open_page, world):
    page = open_page(path("instances"), user=world.alice)
    open_dialog(page)
    page.get_by_label("Name").fill("web-1-base")
    page.evaluate("document.querySelector('dialog [name=csrfmiddlewaretoken]').value = 'x'.repeat(64)")
    page.get_by_role("button", name="Create image").click()
    expect(page.locator("dialog").get_by_role("alert")).to_contain_text("press the button again")
    page.get_by_role("button", name="Create image").click()
    page.wait_for_url("**/images/img-*/")
    expect(page.get_by_role("heading", level=1)).to_have_text("web-1-base")


def test_deleting_what_is_gone_says_so(open_page, world):
    page = open_page(path("image", world.whole.pk), user=world.alice)
    page.get_by_role("link", name="Delete…").click()
    page.locator("dialog[open] form").wait_for()
    Image.objects.filter(pk=world.whole.pk).delete()
    page.locator("dialog").get_by_role("button", name="Delete").click()
    alert = page.locator("dialog").get_by_role("alert")
    expect(alert).to_contain_text("It is not there any more")
    expect(alert.get_by_role("link", name="Load the page again")).to_be_visible()


@pytest.mark.parametrize("script", [True, False])
def test_what_a_dialog_says_follows_its_box(open_page, world, script):
    page = open_page(path("image-delete", world.whole.pk), user=world.alice, script=script)
    expect(page.get_by_text("2 → 1 of 15")).to_be_visible()
    expect(page.get_by_text("kept, and counts in the quota")).to_be_hidden()
    page.locator("[name=snapshots]").uncheck()
    expect(page.get_by_text("2 → 2 of 15")).to_be_visible()
    expect(page.get_by_text("2 → 1 of 15")).to_be_hidden()
    expect(page.get_by_text("kept, and counts in the quota")).to_be_visible()
    page.goto(path("instance-stop", world.web.pk))
    expect(page.get_by_text("The system is asked to shut down.")).to_be_visible()
    page.locator("[name=force]").check()
    expect(page.get_by_text("The power is cut at once;")).to_be_visible()
    expect(page.get_by_text("The system is asked to shut down.")).to_be_hidden()


def test_a_menu_closes_when_the_focus_leaves_it_and_escape_gives_it_back(open_page, world):
    page = open_page(path("instances"), user=world.alice)
    more, menu = page.get_by_role("button", name="More · db-1"), page.locator(f"#menu-{world.making.instance_id}")
    more.focus()
    page.keyboard.press("Enter")
    expect(menu).to_be_visible()
    for _ in range(menu.locator("a, button").count() + 1):
        page.keyboard.press("Tab")
    expect(menu).to_be_hidden()
    more.click()
    page.evaluate("document.activeElement.blur()")
    page.keyboard.press("Escape")
    expect(menu).to_be_hidden()
    expect(more).to_be_focused()


# Controls that a thumb can miss. Links in a text are not meant; a box counts with the label around it.
SMALL = """[...document.querySelectorAll(
    'main :is(.button, .plain, .tick, textarea, .field input), [popover]:popover-open .item'
)].filter(e => e.checkVisibility() && e.offsetHeight < 44).map(e => e.outerHTML)"""


def test_on_a_phone_controls_are_large_and_more_is_flush_right(open_page, world):
    addresses = [path("instances"), path("images"), path("image-create", world.web.pk)]
    addresses += [path("image", world.moving.pk), path("image-delete", world.whole.pk)]
    page = open_page(path("instances"), user=world.alice, width=390)
    for address in addresses:
        page.goto(address)
        assert page.evaluate(SMALL) == [], address
    for address in addresses[:2]:
        page.goto(address)
        gap = page.evaluate(
            "(() => { const b = document.querySelector('.more .plain'), c = b.closest('tr');"
            "return c.getBoundingClientRect().right - b.querySelector('svg').getBoundingClientRect().right })()"
        )
        assert 12 <= gap <= 20, f"{address}: {gap}"
        page.locator(".more .plain").first.click()
        assert page.evaluate(SMALL) == [], f"the menu of {address}"


@pytest.mark.parametrize("language", ["en", "zh-hans"])
def test_tables_stay_within_their_cards(open_page, world, language):
    for device in ("vdb", "vdc"):
        snapshot = SnapshotFactory(owner=world.alice, name=f"web-1-image-nightly-{device}", sha256="cd" * 32)
        MappingFactory(image=world.whole, device=device, snapshot=snapshot)
    page = open_page(path("image", world.whole.pk), user=world.alice, language=language)
    wide = "[...document.querySelectorAll('.card table')].filter(t => t.getBoundingClientRect().right >"
    wide += " t.closest('.card').getBoundingClientRect().right + 1).map(t => t.closest('.card').id)"
    for width in (1024, 1100, 1260, 1261, 1280, 1366, 1440):
        page.set_viewport_size({"width": width, "height": 900})
        assert page.evaluate(wide) == [], width


def test_without_a_script_nothing_says_that_it_updates_by_itself(open_page, world):
    for address in (path("image", world.moving.pk), path("images"), path("instances")):
        page = open_page(address, user=world.alice, script=False)
        expect(page.get_by_text("Updates by itself")).to_be_hidden()
        page.get_by_role("link", name="Load again").click()
        page.wait_for_url(f"**{address}")
        page = open_page(address, user=world.alice)
        expect(page.get_by_text("Updates by itself")).to_be_visible()
        expect(page.get_by_role("link", name="Load again")).to_have_count(0)


def test_R20_the_queue_can_be_used_under_our_own_policy(open_page, dana):
    for _ in range(2):
        django_rq.get_queue("short").enqueue(print)
    page = open_page("/admin/", user=dana)
    page.get_by_role("link", name="Queue").click()
    page.get_by_role("row", name="short").get_by_role("link", name="2").click()
    page.locator("#action-toggle").check()
    expect(page.locator("input.action-select:checked")).to_have_count(2)
    page.get_by_label("Actions:").select_option("delete")
    page.get_by_role("button", name="Go").click()
    page.get_by_role("button", name="Delete 2 jobs").click()
    expect(page.get_by_text("0 jobs")).to_be_visible()


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


def test_the_end_of_a_deletion_is_announced(open_page, world):
    Image.objects.filter(pk__in=[world.failed.pk, world.whole.pk]).update(status="deleting")
    page, alone = (
        open_page(path("images"), user=world.alice),
        open_page(path("image", world.whole.pk), user=world.alice),
    )
    expect(page.locator("#announce")).to_have_attribute("role", "status")
    Image.objects.filter(pk__in=[world.failed.pk, world.whole.pk]).delete()
    expect(page.locator("#announce")).to_contain_text("2 images are deleted.")
    alone.wait_for_url(f"**{path('images')}")
    expect(alone.locator("#announce")).to_have_text("The image is deleted.")
    expect(alone.get_by_role("main").get_by_text("The image is deleted.")).to_be_visible()


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

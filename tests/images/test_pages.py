"""Pages of images: what they say of rows, what they refuse, and how little they ask (docs/rules.md R1–R13, R22)."""

from __future__ import annotations

import re
from datetime import timedelta
from html import unescape

import pytest
from django.test import Client
from django.urls import reverse
from django.utils import timezone

from compute.models import Operation, Snapshot
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

pytestmark = pytest.mark.django_db
REGION = "folder-1"


def page(name: str, *args: str) -> str:
    return reverse(name, args=[REGION, *args])


@pytest.fixture
def web(alice):
    """web-1: a cloud system disk, a local data disk and two cloud ones."""
    instance = InstanceFactory(owner=alice, name="web-1")
    DiskFactory(instance=instance, device="vdb", medium="local", name="web-1-scratch")
    DiskFactory(instance=instance, device="vdc", name="web-1-data")
    DiskFactory(instance=instance, device="vdd", name="web-1-logs")
    return instance


@pytest.fixture
def browser(alice) -> Client:
    client = Client()
    client.force_login(alice)
    return client


def box(html: str, device: str) -> str:
    """The checkbox of a disk."""
    found = re.search(rf'<input type="checkbox"[^>]*aria-label="/dev/{device}[^>]*>', html)
    assert found, device
    return found[0]


def making(image: Image, **facts) -> Operation:
    facts = {"kind": "create_image", "status": "running", "step": "capture", "exclusive": True} | facts
    facts.setdefault("choices", {"parts": {"vda": {"disk": "d", "size": GIB}}, "disks": []})
    return OperationFactory(image=image, region=image.region, asked_by=image.owner, instance=None, **facts)


def copying(image: Image, done: int, total: int, rate: int | None = None) -> dict[str, object]:
    return {
        "work": {"capture": {"began": timezone.now().isoformat(), "handle": {}}},
        "progress": {"phase": "copy", "parts": {"vda": [done, total]}, "rate": rate},
    }


# The dialog ---------------------------------------------------------------------------------------------------------


def test_R3_the_system_disk_is_locked_local_ones_say_why_and_cloud_ones_are_ticked(browser, web):
    html = browser.get(page("image-create", web.pk)).content.decode()
    assert "checked disabled" in box(html, "vda")
    assert "disabled" in box(html, "vdb")
    assert "checked" not in box(html, "vdb")
    assert "Local data disks cannot be snapshotted" in html
    assert "checked" in box(html, "vdc")
    assert "checked" in box(html, "vdd")
    assert reverse("help-device-names") in html


def test_R3_later_the_boxes_are_as_in_the_last_image(browser, web):
    out = {"device": "vdd", "name": "web-1-logs", "size": GIB, "why": {"code": "not-chosen", "data": {}}}
    ImageFactory(owner=web.owner, instance=web, left_out=[out])
    html = browser.get(page("image-create", web.pk)).content.decode()
    assert "checked" in box(html, "vdc")
    assert "checked" not in box(html, "vdd")


@pytest.mark.parametrize("name", ["v2", "数据库-备份.v2", "_a"])
def test_R4_a_good_name_makes_an_image(browser, web, name):
    answer = browser.post(page("image-create", web.pk), {"name": f"  {name} ", "description": ""})
    image = Image.objects.get()
    assert (answer.status_code, answer["Location"]) == (302, page("image", image.pk))
    assert image.name == name


@pytest.mark.parametrize("name", ["a", "web 1", "ｗｅｂ", "web🙂", "x" * 33, ""])
def test_R4_a_bad_name_is_told_beside_its_field_and_what_was_typed_is_kept(browser, web, name):
    logs = web.disks.get(device="vdd")
    answer = browser.post(page("image-create", web.pk), {"name": name, "description": "kept <b>", "disks": [logs.pk]})
    html = answer.content.decode()
    assert answer.status_code == 422
    assert 'aria-invalid="true"' in html
    assert f'value="{name}"' in html
    assert "kept &lt;b&gt;" in html
    assert "checked" in box(html, "vdd")
    assert "checked" not in box(html, "vdc")
    assert not Image.objects.exists()


@pytest.mark.parametrize(
    ("language", "typed", "told"),
    [
        ("en", {"name": ""}, "Give the image a name."),
        ("en", {"name": "web 1"}, "This name is too short or too long, or a character of it is not allowed."),
        ("en", {"name": "v2", "description": "x" * 257}, "At most 256 characters; these are 257."),
        ("en", {"name": "v2", "description": "\0"}, "A character of it cannot be kept."),
        ("zh-hans", {"name": ""}, "请输入镜像名称。"),
        ("zh-hans", {"name": "web 1"}, "名称过短、过长，或包含不支持的字符。"),
        ("zh-hans", {"name": "v2", "description": "x" * 257}, "不超过 256 个字符，当前为 257 个。"),
    ],
)
def test_R4_what_is_wrong_is_told_in_our_own_words_and_the_hint_stays(browser, web, language, typed, told):
    browser.cookies["django_language"] = language
    answer = browser.post(page("image-create", web.pk), typed)
    html = answer.content.decode()
    assert answer.status_code == 422
    assert told in html
    assert ("2–32 characters: " if language == "en" else "2–32 个字符，") in html
    assert not Image.objects.exists()


def test_R5_quota_is_told_as_used_after_limit_and_follows_the_boxes(browser, web, alice):
    QuotaFactory(owner=alice, images=4, snapshots=3)
    ImageFactory(owner=alice)
    html = browser.get(page("image-create", web.pk)).content.decode()
    assert "Used <b>1</b> → after <b>2</b> → limit <b>4</b>" in html
    assert "Used <b>0</b> → after <b>3</b> → limit <b>3</b>" in html
    html = browser.get(page("image-create-takes", web.pk), {"disks": web.disks.get(device="vdc").pk}).content.decode()
    assert "Used <b>0</b> → after <b>2</b> → limit <b>3</b>" in html


def test_R5_too_little_quota_is_refused_with_the_numbers_before_anything_is_made(browser, web, alice):
    QuotaFactory(owner=alice, images=0)
    answer = browser.post(page("image-create", web.pk), {"name": "v2"})
    html = answer.content.decode()
    assert answer.status_code == 422
    assert "0 of 0 are used and 1 is needed" in html
    assert "administrator" in html
    assert 'value="v2"' in html
    assert not Image.objects.exists()


def test_R6_warnings_before_submitting(browser, web, alice):
    html = browser.get(page("image-create", web.pk)).content.decode()
    assert "/etc/fstab" in html
    assert "70-persistent-net.rules" in html
    assert "far less reliable" not in html
    web.disks.filter(device="vda").update(medium="local")
    web.os = "Windows Server 2022"
    web.save()
    html = browser.get(page("image-create", web.pk)).content.decode()
    assert "/etc/fstab" not in html
    assert "far less reliable" in html


def test_R8_the_dialog_says_what_can_be_reached_and_unknown_bytes_are_said_to_be(browser, web):
    html = browser.get(page("image-create", web.pk)).content.decode()
    assert "Offline" in html
    assert "About 768 MB" in html
    web.disks.filter(device="vdc").update(allocated_bytes=None)
    html = browser.get(page("image-create", web.pk)).content.decode()
    assert "About" not in html
    assert "Expected time" not in html


def test_an_expected_time_is_a_range_from_past_copies(browser, web, alice):
    for seconds in (10, 20):
        instant = timezone.now()
        image = ImageFactory(owner=alice, instant=instant, available_at=instant + timedelta(seconds=seconds))
        MappingFactory(image=image, snapshot=SnapshotFactory(owner=alice, stored_bytes=GIB))
    html = browser.get(page("image-create", web.pk)).content.decode()
    # Three disks, a quarter of a GiB each.
    assert "8 s – 15 s" in html
    Image.objects.update(available_at=instant + timedelta(seconds=20), instant=instant)
    html = browser.get(page("image-create", web.pk)).content.decode()
    assert '<dd class="value">15 s</dd>' in html


def test_the_dialog_is_a_fragment_for_htmx_and_leads_on_by_header(browser, web):
    htmx = {"HX-Request": "true"}
    assert "<html" not in browser.get(page("image-create", web.pk), headers=htmx).content.decode()
    assert browser.post(page("image-create", web.pk), {"name": "a"}, headers=htmx).status_code == 422
    answer = browser.post(page("image-create", web.pk), {"name": "v2"}, headers=htmx)
    assert answer["HX-Redirect"] == page("image", Image.objects.get().pk)


def test_R10_try_again_opens_the_dialog_with_what_was_chosen(browser, web, alice):
    out = [{"device": "vdc", "name": "web-1-data", "size": GIB, "why": {"code": "not-chosen", "data": {}}}]
    failed = ImageFactory(owner=alice, instance=web, status="error", name="v2", description="why", left_out=out)
    ImageFactory(owner=alice, instance=web)
    html = browser.get(page("image-create", web.pk), {"again": failed.pk}).content.decode()
    assert 'value="v2"' in html
    assert ">why</textarea>" in html
    assert "checked" not in box(html, "vdc")
    assert "checked" in box(html, "vdd")


def test_R22_nobody_elses_choices_are_opened(browser, web, bob):
    theirs = ImageFactory(owner=bob, instance=web, name="secret")
    assert "secret" not in browser.get(page("image-create", web.pk), {"again": theirs.pk}).content.decode()


# Image page and list ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", ["creating", "copying"])
def test_R9_share_create_instance_and_delete_are_really_disabled_and_say_why(browser, alice, status):
    image = ImageFactory(owner=alice, status=status)
    making(image)
    html = browser.get(page("image", image.pk)).content.decode()
    for verb in ("Create instance", "Share", "Delete…"):
        assert f'<button class="button" disabled>{verb}</button>' in html
    assert "are refused until the image is available" in html
    for verb in ("image-share", "image-launch", "image-delete"):
        answer = browser.post(page(verb, image.pk))
        assert answer.status_code == 422
        assert "Refused until the image is available." in answer.content.decode()
    assert Image.objects.get().status == status


def test_R11_progress_is_told_per_disk_and_what_is_unknown_is_said_to_be(browser, alice):
    image = ImageFactory(owner=alice, status="copying")
    operation = making(image, **copying(image, 3 * GIB // 4, GIB, rate=64 << 20))
    html = browser.get(page("image", image.pk)).content.decode()
    assert "75<small>%</small>" in html
    assert "768 MB of 1 GB examined" in html
    assert "64 MB/s" in html
    assert "4 s of copying, then checks" in html
    assert "<title>75% Copying · web-1-image" in html
    Operation.objects.filter(pk=operation.pk).update(progress={"phase": "copy", "parts": {"vda": None}, "rate": None})
    html = browser.get(page("image", image.pk)).content.decode()
    assert "progress unknown" in html
    assert "time left unknown" in html


def test_R11_promise_and_progress_have_one_word_for_capacity_that_is_gone_through(browser, web, alice):
    image = ImageFactory(owner=alice, status="copying")
    making(image, **copying(image, GIB // 2, GIB))
    for language, promised, told in (
        ("en", "3 GB are examined; empty blocks are skipped", "512 MB of 1 GB examined"),
        ("zh-hans", "检查总容量 3 GB，跳过空白块", "已检查 512 MB / 1 GB"),
    ):
        browser.cookies["django_language"] = language
        assert promised in browser.get(page("image-create", web.pk)).content.decode()
        for address in (page("image", image.pk), page("images")):
            assert told in browser.get(address).content.decode()


def test_without_a_script_a_moving_page_offers_to_be_loaded_again(browser, alice):
    image = ImageFactory(owner=alice, status="copying")
    making(image, **copying(image, 1, 4))
    for address in (page("image", image.pk), page("images")):
        html = browser.get(address).content.decode()
        assert (
            '<span class="quiet by-itself">Updates by itself</span><noscript><a href="">Load again</a></noscript>'
            in html
        )
    Operation.objects.update(status="done")
    Image.objects.update(status="available")
    assert "Load again" not in browser.get(page("images")).content.decode()


def test_R22_staff_may_cancel_but_are_told_whose_image_it_is(alice, dana):
    image, being_made = ImageFactory(owner=alice), ImageFactory(owner=alice, status="copying")
    making(being_made)
    admin = Client()
    admin.force_login(dana)
    for row in (image, being_made):
        html = admin.get(page("image", row.pk)).content.decode()
        assert "It belongs to alice." in html
        assert '<button class="button" disabled>Delete…</button>' in html
    assert page("image-cancel", being_made.pk) in html
    assert page("image-delete", image.pk) not in admin.get(page("images")).content.decode()
    assert "It belongs to alice." in admin.get(page("image-delete", image.pk)).content.decode()
    for verb in ("image-delete", "image-share", "image-launch"):
        answer = admin.post(page(verb, image.pk), {"snapshots": "on"})
        assert (answer.status_code, "It belongs to alice." in answer.content.decode()) == (403, True)
    assert admin.post(page("image-cancel", being_made.pk)).status_code == 302


def test_what_a_later_version_brings_is_said_once_in_the_list(browser, alice):
    ImageFactory(owner=alice)
    ImageFactory(owner=alice)
    later = "Sharing images and creating instances from them come with a later version."
    assert browser.get(page("images")).content.decode().count(later) == 1
    assert browser.get(page("image", Image.objects.first().pk)).content.decode().count(later) == 1


def test_R24_a_region_that_does_not_answer_is_said_to_be_waited_for(browser, alice):
    image = ImageFactory(owner=alice, status="copying")
    making(image, waiting_since=timezone.now())
    assert "Waiting for the region" in browser.get(page("image", image.pk)).content.decode()
    assert "Waiting for the region" in browser.get(page("images")).content.decode()


def test_R10_an_image_in_error_says_why_that_it_cleans_up_and_then_what_was_observed(browser, web, alice):
    image = ImageFactory(
        owner=alice, instance=web, status="error", reason={"code": "store-full", "data": {}, "observed": None}
    )
    operation = making(image, status="undoing", outcome="failed", reason=image.reason)
    for address in (page("image", image.pk), page("images")):
        html = browser.get(address).content.decode()
        assert "The image store filled up" in html
        assert "Cleaning up" in html
    seen = {"power": "running", "at": timezone.now().isoformat()}
    Operation.objects.filter(pk=operation.pk).update(status="failed", ended_at=timezone.now())
    Image.objects.filter(pk=image.pk).update(reason=image.reason | {"observed": seen})
    html = browser.get(page("image", image.pk)).content.decode()
    assert "Cleaning up" not in html
    assert "web-1 was seen running on its own disks" in html
    assert "No snapshot and no partial file of it is left." in html
    assert f"{page('image-create', web.pk)}?again={image.pk}" in html


def test_R11_cancel_has_delete_ticked_and_without_it_the_row_stays(browser, web, alice):
    image = ImageFactory(owner=alice, instance=web, status="copying")
    making(image)
    html = browser.get(page("image-cancel", image.pk)).content.decode()
    assert re.search(r'name="delete" checked', html)
    assert browser.post(page("image-cancel", image.pk)).status_code == 302
    image.refresh_from_db()
    assert not image.delete_wanted
    assert image.operation.cancelled_by == alice
    assert "Cancelling…" in browser.get(page("images")).content.decode()


def test_R13_device_mapping_names_every_disk_and_what_was_left_out(browser, alice):
    out = {"device": "vdb", "name": "web-1-scratch", "size": GIB, "why": {"code": "local-data-disk", "data": {}}}
    image = ImageFactory(owner=alice, left_out=[out])
    snapshot = SnapshotFactory(owner=alice, name="web-1-image-vda", sha256="ab" * 32, stored_bytes=GIB // 2)
    MappingFactory(image=image, snapshot=snapshot, encrypted=None)
    html = browser.get(page("image", image.pk)).content.decode()
    for text in ("/dev/vda", "System disk", "Cloud disk", "web-1-image-vda", snapshot.pk, "unknown", "ab" * 32):
        assert text in html
    assert re.search(r"web-1-scratch, 1 GB · Local data disks cannot be snapshotted", html)


def test_R13_a_local_image_shows_itself_and_its_warning(browser, alice):
    image = ImageFactory(owner=alice, medium="local")
    MappingFactory(image=image, medium="local", snapshot=None)
    html = browser.get(page("image", image.pk)).content.decode()
    assert "the image itself" in html
    assert "far less reliable" in html
    assert "cannot be deleted while instances made from it exist" in html
    assert "Converting it to a cloud-disk image is not offered yet." in html
    cloud = browser.get(page("image", ImageFactory(owner=alice).pk)).content.decode()
    assert "Converting" not in cloud


def test_R18_delete_says_what_goes_and_what_stays(browser, web, alice):
    image, other = ImageFactory(owner=alice, instance=web), ImageFactory(owner=alice)
    own = SnapshotFactory(owner=alice, name="own", stored_bytes=GIB)
    shared = SnapshotFactory(owner=alice, name="shared", device="vdb", stored_bytes=GIB)
    MappingFactory(image=image, snapshot=own)
    MappingFactory(image=image, device="vdb", snapshot=shared)
    MappingFactory(image=other, device="vdb", snapshot=shared)
    html = unescape(browser.get(page("image-delete", image.pk)).content.decode())
    assert "1 snapshot (1 GB)" in html
    assert re.search(r'name="snapshots" checked', html)
    assert "shared: another image uses it" in html
    assert browser.post(page("image-delete", image.pk), {"snapshots": "on"}).status_code == 302
    assert set(Snapshot.objects.values_list("name", "status")) == {("own", "deleting"), ("shared", "available")}


def test_R18_the_quota_after_is_told_with_the_snapshots_and_without_them(browser, web, alice):
    image = ImageFactory(owner=alice, instance=web)
    MappingFactory(image=image, snapshot=SnapshotFactory(owner=alice, name="own", stored_bytes=GIB))
    SnapshotFactory(owner=alice, name="another")
    html = browser.get(page("image-delete", image.pk)).content.decode()
    ticked = re.search(r'<div class="ticked">(.*?)</div>', html, re.S)[1]
    unticked = re.search(r'<div class="unticked">(.*?)</div>', html, re.S)[1]
    assert "<b>2 → 1</b> of 15" in ticked
    assert "<b>2 → 2</b> of 15" in unticked
    stays = re.search(r'<li class="unticked">(.*?)</li>', html, re.S)[1]
    assert "own: kept, and counts in the quota until it is deleted" in stays


def test_R18_the_size_of_a_local_disk_image_is_that_of_its_own_file(browser, web, alice):
    image = ImageFactory(owner=alice, instance=web, medium="local")
    facts = {"external_id": "op/vda.qcow2", "stored_bytes": GIB // 2}
    MappingFactory(image=image, medium="local", snapshot=None, **facts)
    MappingFactory(image=image, device="vdb", snapshot=SnapshotFactory(owner=alice, stored_bytes=GIB))
    html = browser.get(page("image-delete", image.pk)).content.decode()
    assert "The image: 512 MB in the image store" in html
    assert "1 snapshot (1 GB)" in html
    failed = ImageFactory(owner=alice, medium="local", status="error")
    MappingFactory(image=failed, medium="local", snapshot=None)
    assert "in the image store" not in browser.get(page("image-delete", failed.pk)).content.decode()


@pytest.mark.parametrize(
    ("power", "told"),
    [
        ("running", "web-1 was seen running on its own disks"),
        ("stopped", "web-1 was seen stopped"),
        ("gone", "web-1 was not there any more"),
        ("paused", "web-1 was neither running nor stopped"),
    ],
)
def test_R10_what_was_observed_is_told(browser, web, alice, power, told):
    seen = {"power": power, "at": timezone.now().isoformat()}
    reason = {"code": "store-full", "data": {}, "observed": seen}
    image = ImageFactory(owner=alice, instance=web, status="error", reason=reason)
    assert told in browser.get(page("image", image.pk)).content.decode()


def test_names_are_escaped_everywhere(browser, alice):
    bad = "<script>alert(1)</script>"
    instance = InstanceFactory(owner=alice, name=bad)
    image = ImageFactory(owner=alice, instance=instance, instance_name=bad, description=bad, status="error")
    addresses = [page("instances"), page("instance", instance.pk), page("images"), page("image", image.pk)]
    addresses += [page("image-create", instance.pk), page("image-delete", image.pk), page("instance-stop", instance.pk)]
    for address in addresses:
        html = browser.get(address).content.decode()
        assert bad not in html
        assert "&lt;script&gt;" in html


# Watching -----------------------------------------------------------------------------------------------------------


def watcher(html: str) -> str:
    return unescape(re.search(r'<div id="watch" hx-get="([^"]*)" hx-trigger="([^"]*)"', html)[1])


def is_moving(html: str) -> bool:
    return "every 1s" in re.search(r'<div id="watch"[^>]*>', html)[0]


@pytest.mark.parametrize("where", ["images", "image"])
def test_R11_a_poll_costs_three_queries_and_answers_204_until_something_changes(
    browser, alice, where, django_assert_max_num_queries
):
    image = ImageFactory(owner=alice, status="copying")
    operation = making(image, **copying(image, 1, 4))
    address = page("images") if where == "images" else page("image", image.pk)
    html = browser.get(address).content.decode()
    assert is_moving(html)
    with django_assert_max_num_queries(3):
        assert browser.get(watcher(html)).status_code == 204
    Operation.objects.filter(pk=operation.pk).update(**copying(image, 2, 4))
    answer = browser.get(watcher(html))
    html = answer.content.decode()
    assert "50%" in html
    assert 'hx-swap-oob="true"' in html
    assert "disabled" not in html, "buttons stay as they are while only numbers move"
    assert browser.get(watcher(html)).status_code == 204
    Operation.objects.filter(pk=operation.pk).update(status="done", ended_at=timezone.now())
    Image.objects.filter(pk=image.pk).update(status="available")
    html = browser.get(watcher(html)).content.decode()
    assert "web-1-image: Available" in html, "a change of status is announced"
    assert not is_moving(html), "a settled page stops asking"
    assert browser.get(watcher(html)).status_code == 204


def test_R11_a_live_page_ends_with_all_that_a_reload_shows(browser, alice):
    image = ImageFactory(owner=alice, status="copying")
    snapshot = SnapshotFactory(owner=alice)
    MappingFactory(image=image, snapshot=snapshot)
    making(image, **copying(image, 1, 4))
    html = browser.get(page("image", image.pk)).content.decode()
    Operation.objects.update(status="done", ended_at=timezone.now())
    Snapshot.objects.update(sha256="ab" * 32, stored_bytes=GIB)
    Image.objects.update(status="available", available_at=timezone.now(), versions={"qemu": "7.2.19"})
    live = browser.get(watcher(html)).content.decode()
    whole = browser.get(page("image", image.pk)).content.decode()
    for part in ("pill", "verbs", "error", "making", "mapping", "receipt", "steps", "facts", "history"):
        assert f'id="{part}"' in live
        assert f'id="{part}"' in whole
    for text in ("ab" * 32, "<dt>qemu</dt><dd>7.2.19</dd>"):
        assert text in whole
        assert text in live


def test_a_settled_page_that_is_looked_at_again_is_loaded_again_if_it_changed(browser, alice):
    image = ImageFactory(owner=alice)
    html = browser.get(page("images")).content.decode()
    assert browser.get(watcher(html)).status_code == 204
    Image.objects.filter(pk=image.pk).update(status="deleting")
    assert browser.get(watcher(html))["HX-Refresh"] == "true"


def test_a_row_that_is_gone_is_taken_off_the_list_and_its_page_leads_to_the_list(browser, alice):
    image = ImageFactory(owner=alice, status="deleting")
    listed = browser.get(page("images")).content.decode()
    alone = browser.get(page("image", image.pk)).content.decode()
    ImageFactory(owner=alice)
    Image.objects.filter(pk=image.pk).delete()
    html = browser.get(watcher(listed)).content.decode()
    assert f'<div id="row-{image.pk}" hx-swap-oob="delete">' in html
    assert '<div hx-swap-oob="innerHTML:#announce">1 image is deleted.</div>' in html
    assert browser.get(watcher(alone))["HX-Redirect"] == page("images")
    assert "data-say>The image is deleted.</p>" in browser.get(page("images")).content.decode()


def test_a_poll_without_a_session_leads_its_page_to_sign_in_and_back(client, alice):
    image = ImageFactory(owner=alice, status="copying")
    shown = f"http://testserver{page('image', image.pk)}"
    answer = client.get(page("image-poll", image.pk), headers={"HX-Request": "true", "HX-Current-URL": shown})
    assert answer.status_code == 200
    assert answer["HX-Redirect"] == f"{reverse('login')}?next={page('image', image.pk).replace('/', '%2F')}"


def test_R22_a_poll_tells_a_stranger_nothing(client, charlie, alice):
    image = ImageFactory(owner=alice, status="copying")
    client.force_login(charlie)
    answer = client.get(page("images-poll"), {"rows": f"{image.pk}.x.y"})
    assert image.name not in answer.content.decode()


@pytest.mark.parametrize("count", [1, 12])
def test_the_list_costs_the_same_queries_for_one_image_as_for_many(browser, alice, count, django_assert_num_queries):
    for number in range(count):
        image = ImageFactory(owner=alice, instance=InstanceFactory(owner=alice), status="copying")
        MappingFactory(image=image, snapshot__owner=alice)
        if number % 2:
            making(image, **copying(image, 1, 4))
    browser.get(page("images"))
    with django_assert_num_queries(13):
        browser.get(page("images"))

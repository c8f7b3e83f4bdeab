"""Pages of instances, and what is around every page (docs/rules.md R1, R20, R22, R26)."""

from __future__ import annotations

import re
from html import unescape
from typing import Any

import pytest
from django.contrib.admin.models import LogEntry
from django.test import Client
from django.urls import reverse
from django.utils import timezone

from compute.models import Disk, Instance, Operation, Quota, Region
from tests.factories import (
    DiskFactory,
    ImageFactory,
    InstanceFactory,
    OperationFactory,
    QuotaFactory,
    RegionFactory,
    UserFactory,
)

pytestmark = pytest.mark.django_db
REGION = "folder-1"


def page(name: str, *args: str) -> str:
    return reverse(name, args=[REGION, *args])


def signed_in(user: Any) -> Client:
    client = Client()
    client.force_login(user)
    return client


@pytest.fixture
def browser(alice) -> Client:
    return signed_in(alice)


# Lists and pages ----------------------------------------------------------------------------------------------------


def test_R1_the_front_page_and_sign_in_lead_to_the_instances(client, alice):
    answer = client.get("/")
    assert answer["Location"] == f"{reverse('login')}?next=/"
    answer = client.post(reverse("login"), {"username": "alice", "password": "demo-console", "next": "/"}, follow=True)
    assert answer.redirect_chain[-1][0] == page("instances")


def test_a_row_tells_name_id_status_size_and_disks(browser, alice):
    instance = InstanceFactory(owner=alice, vcpus=4, memory_mib=8192)
    DiskFactory(instance=instance, device="vdb", medium="local")
    DiskFactory(instance=instance, device="vdc", size_bytes=3 << 30)
    html = browser.get(page("instances")).content.decode()
    for text in (instance.name, instance.pk, "Stopped", "4 vCPUs", "8 GB", "2 · 4 GB", "1 cloud, 1 local"):
        assert text in html


def test_R22_others_things_are_not_listed_and_staff_see_whose_they_are(browser, bob, dana):
    theirs = InstanceFactory(owner=bob, name="bobs")
    InstanceFactory(owner=None, name="nobodys")
    assert theirs.pk not in browser.get(page("instances")).content.decode()
    html = signed_in(dana).get(page("instances")).content.decode()
    assert "bobs" in html
    assert "no owner" in html


def test_a_forbidden_verb_stays_reachable_with_its_reason_inside(browser, alice):
    instance = InstanceFactory(owner=alice)
    html = browser.get(page("instances")).content.decode()
    start = re.search(r'<button class="item"[^>]*aria-disabled="true">(?:(?!</button>).)*Start.*?</button>', html, re.S)
    assert "Instances do not run in this region." in start[0]
    # The page of the instance has buttons: really disabled, the reason beside them.
    html = browser.get(page("instance", instance.pk)).content.decode()
    assert '<button class="button" disabled>Start</button>' in html
    assert "Instances do not run in this region." in html


def test_every_page_of_a_region_without_machines_says_so(browser, alice):
    instance, image = InstanceFactory(owner=alice), ImageFactory(owner=alice)
    for address in (
        page("instances"),
        page("images"),
        page("instance", instance.pk),
        page("image", image.pk),
        page("image-create", instance.pk),
    ):
        assert "Instances do not run in this region: it keeps disks only" in browser.get(address).content.decode()


def test_R12_a_held_instance_says_by_what_and_how_far_it_is(browser, alice):
    instance = InstanceFactory(owner=alice)
    image = ImageFactory(owner=alice, instance=instance, status="copying", name="nightly")
    OperationFactory(
        kind="create_image",
        status="running",
        step="capture",
        instance=instance,
        image=image,
        exclusive=True,
        choices={"parts": {"vda": {}}},
        work={"capture": {"handle": {}}},
        progress={"phase": "copy", "parts": {"vda": [1, 4]}, "rate": 1},
    )
    for address in (page("instances"), page("instance", instance.pk)):
        html = browser.get(address).content.decode()
        assert page("image", image.pk) in html
        assert "25%" in html
        assert 'value="25" max="100"' in html
        assert "Other changes are refused until then." in html
    assert "1 in progress" in html


@pytest.fixture
def held(alice) -> Instance:
    """Held while its image is copied, with 192 seconds to go."""
    instance = InstanceFactory(owner=alice)
    image = ImageFactory(owner=alice, instance=instance, status="copying", name="nightly")
    OperationFactory(
        kind="create_image",
        status="running",
        instance=instance,
        image=image,
        exclusive=True,
        progress={"phase": "copy", "parts": {"vda": [8, 200]}, "rate": 1},
    )
    return instance


def test_R12_the_reason_names_the_image_and_its_time_left_in_the_readers_language(browser, held):
    for address in (page("instances"), page("instance", held.pk)):
        html = browser.get(address).content.decode()
        assert "web-1 is held while its image nightly is made (about 3 min 12 s left)." in html
    browser.cookies["django_language"] = "zh-hans"
    assert "正在制作镜像 nightly（约剩 3 分 12 秒）" in browser.get(page("instances")).content.decode()


@pytest.mark.parametrize(
    "facts",
    [
        {"progress": {}},
        {"progress": {"phase": "copy", "parts": {"vda": None}, "rate": 1}},
        {"progress": {"phase": "copy", "parts": {"vda": [1, 0]}, "rate": 1}},
        {"progress": {"phase": "copy", "parts": {"vda": [1, 2]}, "rate": None}},
        {"progress": {"phase": "check", "parts": {"vda": [1, 2]}, "rate": 1}},
        {"status": "undoing"},
        {"waiting_since": timezone.now()},
    ],
)
def test_R12_a_time_left_that_nobody_knows_is_not_told(browser, held, facts):
    Operation.objects.update(**facts)
    html = browser.get(page("instance", held.pk)).content.decode()
    assert "web-1 is held while its image nightly is made." in html


def test_R12_the_time_left_in_the_reason_moves_with_the_poll(browser, held):
    html = browser.get(page("instance", held.pk)).content.decode()
    Operation.objects.update(progress={"phase": "copy", "parts": {"vda": [140, 200]}, "rate": 1})
    assert "(about 1 min 0 s left)" in browser.get(watcher(html)).content.decode()


def test_R12_another_operation_is_named(browser, alice):
    instance = InstanceFactory(owner=alice, status="stopping")
    OperationFactory(kind="stop", status="running", instance=instance)
    html = browser.get(page("instances")).content.decode()
    assert "Another operation on web-1 is still going on: Stop." in html


def test_each_disabled_verb_has_its_reason_and_verbs_of_one_reason_share_it(browser, held):
    html = browser.get(page("instance", held.pk)).content.decode()
    assert "<b>Start, Stop:</b> Instances do not run in this region." in html
    assert "<b>Create image:</b> web-1 is held" in html


def test_R22_staff_see_verbs_on_others_things_disabled_with_whose_they_are(dana, bob):
    theirs, nobodys = InstanceFactory(owner=bob), InstanceFactory(owner=None)
    admin = signed_in(dana)
    for row, why in ((theirs, "It belongs to bob."), (nobodys, "It belongs to nobody yet")):
        html = admin.get(page("instance", row.pk)).content.decode()
        assert f"<b>Start, Stop, Create image:</b> {why}" in html
        for name in ("instance-stop", "image-create"):
            assert why in admin.get(page(name, row.pk)).content.decode()
            answer = admin.post(page(name, row.pk), {"name": "v2"})
            assert (answer.status_code, why in answer.content.decode()) == (403, True)
        assert admin.post(page("instance-start", row.pk)).status_code == 403
    html = admin.get(page("instances")).content.decode()
    assert html.count("<small>It belongs to bob.</small>") == 3
    assert page("image-create", theirs.pk) not in html


def test_R26_stop_is_confirmed_on_a_page_of_its_own_and_force_is_not_ticked(browser, alice):
    instance = InstanceFactory(owner=alice)
    html = browser.get(page("instance-stop", instance.pk)).content.decode()
    assert '<input type="checkbox" name="force">' in html
    assert '<p class="unticked">The system is asked to shut down.' in html
    assert '<p class="ticked">The power is cut at once' in html
    assert browser.post(page("instance-stop", instance.pk)).status_code == 422


def test_a_refusal_outside_a_form_is_a_page_that_says_why_with_an_id_to_quote(browser, alice):
    instance = InstanceFactory(owner=alice)
    answer = browser.post(page("instance-start", instance.pk))
    html = answer.content.decode()
    assert answer.status_code == 422
    assert "Instances do not run in this region." in html
    assert re.search(r"quote <code>[0-9a-f]{8}</code>", html)


def test_a_region_that_does_not_answer_is_said_on_its_pages(browser, alice):
    RegionFactory()
    Region.objects.update(unreachable_since=timezone.now())
    assert "The region has not answered since" in browser.get(page("instances")).content.decode()


@pytest.mark.parametrize("count", [1, 12])
def test_the_list_costs_the_same_queries_for_one_instance_as_for_many(browser, alice, count, django_assert_num_queries):
    for number in range(count):
        instance = InstanceFactory(owner=alice)
        DiskFactory(instance=instance)
        if number % 2:
            image = ImageFactory(owner=alice, instance=instance, status="creating")
            OperationFactory(kind="create_image", instance=instance, image=image, exclusive=True)
    browser.get(page("instances"))
    with django_assert_num_queries(13):
        browser.get(page("instances"))


# Watching -----------------------------------------------------------------------------------------------------------


def watcher(html: str) -> str:
    return unescape(re.search(r'<div id="watch" hx-get="([^"]*)"', html)[1])


@pytest.mark.parametrize("where", ["instances", "instance"])
def test_a_poll_costs_three_queries_swaps_cells_and_stops_when_settled(
    browser, alice, where, django_assert_max_num_queries
):
    instance = InstanceFactory(owner=alice, status="stopping")
    other = InstanceFactory(owner=alice, name="other")
    operation = OperationFactory(kind="stop", status="running", instance=instance)
    html = browser.get(page("instances") if where == "instances" else page("instance", instance.pk)).content.decode()
    with django_assert_max_num_queries(3):
        assert browser.get(watcher(html)).status_code == 204
    Operation.objects.filter(pk=operation.pk).update(status="done")
    Instance.objects.filter(pk=instance.pk).update(status="stopped")
    html = browser.get(watcher(html)).content.decode()
    assert "web-1: Stopped" in html
    assert other.pk not in html
    assert "every 1s" not in html
    assert "<tr" not in html.replace("<table", "").split('id="made"')[0], "cells are swapped, never rows"


def test_a_row_that_is_gone_is_announced(browser, alice):
    instance = InstanceFactory(owner=alice, status="stopping", system=None)
    InstanceFactory(owner=alice)
    html = browser.get(page("instances")).content.decode()
    instance.delete()
    assert "1 instance is not listed any more." in browser.get(watcher(html)).content.decode()


# Around every page --------------------------------------------------------------------------------------------------


def test_language_and_theme_are_remembered_without_a_script(client, alice):
    back = reverse("login")
    assert client.post(reverse("language"), {"language": "zh-hans", "next": back})["Location"] == back
    assert client.post(reverse("theme"), {"theme": "dark", "next": back})["Location"] == back
    html = client.get(back).content.decode()
    assert '<html lang="zh-hans" data-theme="dark">' in html
    assert "登录" in html
    assert client.post(reverse("theme"), {"theme": "dark", "next": "https://example.org/"})["Location"] == "/"


def test_every_status_has_its_word_in_both_languages(browser, alice):
    words = {
        "pending": "创建中",
        "starting": "启动中",
        "running": "运行中",
        "stopping": "停止中",
        "stopped": "已停止",
        "paused": "已暂停",
        "error": "错误",
        "gone": "已不存在",
    }
    assert set(words) == set(Instance.Status.values)
    browser.cookies["django_language"] = "zh-hans"
    for status, word in words.items():
        instance = InstanceFactory(owner=alice, status=status)
        assert f"</svg>{word}</span>" in browser.get(page("instance", instance.pk)).content.decode()


def test_times_are_told_in_the_readers_zone(browser, alice):
    instance = InstanceFactory(owner=alice)
    Instance.objects.update(observed_at="2026-11-23T20:30:00Z")
    assert "23 Nov 2026 20:30:00" in browser.get(page("instance", instance.pk)).content.decode()
    browser.cookies["zone"] = "Asia/Shanghai"
    assert "24 Nov 2026 04:30:00" in browser.get(page("instance", instance.pk)).content.decode()
    browser.cookies["zone"] = "../../etc/passwd"
    assert "23 Nov 2026 20:30:00" in browser.get(page("instance", instance.pk)).content.decode()


def test_pages_bring_no_inline_styles_or_scripts(browser, alice):
    instance, image = InstanceFactory(owner=alice), ImageFactory(owner=alice)
    addresses = [page("instances"), page("image-create", instance.pk), page("image", image.pk), reverse("login")]
    for address in addresses:
        answer = browser.get(address)
        html = answer.content.decode()
        assert "unsafe-inline" not in answer["Content-Security-Policy"]
        assert not re.search(r"<style|\sstyle=|\son\w+=|<script(?! [^>]*src)", html)


def test_errors_are_pages_in_the_readers_language_without_a_trace(browser, settings, monkeypatch):
    settings.DEBUG = False
    browser.cookies["django_language"] = "zh-hans"
    answer = browser.get(page("image", "img-none"))
    assert answer.status_code == 404
    assert "页面不存在，或您无权查看。" in answer.content.decode()
    monkeypatch.setattr("compute.quotas.uses", None)  # a defect, as any could be
    browser.raise_request_exception = False
    answer = browser.get(page("instances"))
    html = answer.content.decode()
    assert answer.status_code == 500
    assert "控制台内部出错" in html
    assert "Traceback" not in html
    assert re.search(r"<code>[0-9a-f]{8}</code>", html)


def test_too_many_wrong_passwords_are_answered_by_a_page(client, alice, settings):
    for _ in range(settings.AXES_FAILURE_LIMIT):
        answer = client.post(reverse("login"), {"username": "alice", "password": "wrong"})
    assert answer.status_code == 429
    assert "Wait a quarter of an hour" in answer.content.decode()


@pytest.mark.parametrize(
    ("language", "typed", "told"),
    [
        ("en", {"username": "alice", "password": "no"}, "This user name and password do not belong together."),
        ("en", {"username": "", "password": "no"}, "Enter your user name."),
        ("en", {"username": "alice", "password": ""}, "Enter your password."),
        ("zh-hans", {"username": "alice", "password": "no"}, "用户名或密码不正确，请注意区分大小写。"),
        ("zh-hans", {"username": "", "password": ""}, "请输入用户名。"),
    ],
)
def test_sign_in_says_what_is_wrong_in_our_own_words(client, alice, language, typed, told):
    client.cookies["django_language"] = language
    html = client.post(reverse("login"), typed).content.decode()
    assert told in html
    assert "This field is required" not in html


def test_who_is_signed_in_is_led_on_from_the_door(browser):
    assert browser.get(reverse("login"), follow=True).redirect_chain[-1][0] == page("instances")


# Dialogs ------------------------------------------------------------------------------------------------------------

HTMX = {"HX-Request": "true"}


def test_what_a_dialog_cannot_do_is_a_notice_and_never_a_page_in_it(browser, dana, bob):
    theirs = InstanceFactory(owner=bob)
    answer = browser.post(page("image-create", theirs.pk), {"name": "v2"}, headers=HTMX)
    html = answer.content.decode()
    assert (answer.status_code, answer["X-Notice"]) == (404, "1")
    assert "It is not there any more, or not yours to see." in html
    assert "Load the page again" in html
    assert "<html" not in html
    answer = signed_in(dana).post(page("image-create", theirs.pk), {"name": "v2"}, headers=HTMX)
    assert (answer.status_code, answer["X-Notice"]) == (403, "1")
    assert "It belongs to bob." in answer.content.decode()


def test_a_dialog_whose_token_is_stale_gets_a_fresh_one_and_goes_on(alice):
    instance = InstanceFactory(owner=alice)
    client = Client(enforce_csrf_checks=True)
    client.force_login(alice)
    client.get(page("image-create", instance.pk))
    answer = client.post(
        page("image-create", instance.pk), {"name": "v2", "csrfmiddlewaretoken": "stale"}, headers=HTMX
    )
    assert answer.status_code == 403
    assert "Nothing is lost: press the button again." in answer.content.decode()
    fresh = re.search(r'name="csrfmiddlewaretoken" value="([^"]+)"', answer.content.decode())[1]
    typed = {"name": "v2", "csrfmiddlewaretoken": ["stale", fresh]}
    assert client.post(page("image-create", instance.pk), typed, headers=HTMX)["HX-Redirect"]


def test_a_dialog_whose_session_ended_keeps_what_was_typed(client, alice):
    instance = InstanceFactory(owner=alice)
    answer = client.post(page("image-create", instance.pk), {"name": "v2"}, headers=HTMX)
    assert (answer.status_code, answer["X-Notice"]) == (403, "1")
    assert "You are signed out." in answer.content.decode()
    assert f'<a href="{reverse("login")}" target="_blank">' in answer.content.decode()


def test_every_dialog_can_be_closed_in_its_head(browser, alice):
    instance, image = InstanceFactory(owner=alice), ImageFactory(owner=alice)
    for name, row in (("instance-stop", instance), ("image-create", instance), ("image-delete", image)):
        head = browser.get(page(name, row.pk), headers=HTMX).content.decode().split("</header>")[0]
        assert "data-close" in head
        head = browser.get(page(name, row.pk)).content.decode().split('class="sheet"')[1].split("</header>")[0]
        assert 'class="plain close" href="' in head


# Administration -----------------------------------------------------------------------------------------------------


def test_R20_limits_are_edited_beside_their_use_and_each_edit_is_in_the_history(dana, alice):
    quota = QuotaFactory(owner=alice)
    ImageFactory(owner=alice)
    ImageFactory(owner=alice)
    address = reverse("admin:compute_quota_change", args=[quota.pk])
    limits = {"images": 1, "snapshots": 15, "instances": 20, "cloud_disks": 40}
    assert signed_in(dana).post(address, limits).status_code == 302
    quota.refresh_from_db()
    assert quota.images == 1
    assert LogEntry.objects.get().user == dana
    html = signed_in(dana).get(address).content.decode()
    assert "2, over the limit" in html
    assert "2 of 1, over the limit" in signed_in(dana).get(reverse("admin:compute_quota_changelist")).content.decode()


def test_R20_staff_edit_quotas_and_read_the_rest_but_not_the_queue(alice):
    erin = signed_in(UserFactory(username="erin", is_staff=True))
    quota = QuotaFactory(owner=alice)
    limits = {"images": 9, "snapshots": 15, "instances": 20, "cloud_disks": 40}
    assert erin.post(reverse("admin:compute_quota_change", args=[quota.pk]), limits).status_code == 302
    assert Quota.objects.get().images == 9
    assert erin.get(reverse("django_rq:home")).status_code == 403
    for model in ("region", "instance", "disk", "snapshot", "operation", "litter"):
        assert erin.get(reverse(f"admin:compute_{model}_changelist")).status_code == 200
        assert erin.get(reverse(f"admin:compute_{model}_add")).status_code == 403
    for model in ("image", "devicemapping"):
        assert erin.get(reverse(f"admin:images_{model}_changelist")).status_code == 200
        assert erin.get(reverse(f"admin:images_{model}_add")).status_code == 403


def test_R20_superusers_see_the_pages_of_the_queue(dana):
    admin, erin = signed_in(dana), signed_in(UserFactory(username="erin", is_staff=True))
    for name in ("jobs", "queue_details", "finished_jobs", "failed_jobs", "scheduled_jobs", "started_jobs", "workers"):
        assert admin.get(reverse(f"django_rq:{name}", args=[0])).status_code == 200
    for name in ("home", "home_json", "metrics"):
        assert admin.get(reverse(f"django_rq:{name}")).status_code == 200
        assert erin.get(reverse(f"django_rq:{name}")).status_code == 403


def test_R20_rows_that_stand_for_things_are_not_deleted_and_an_instance_is_given_an_owner_with_its_disks(dana, bob):
    instance = InstanceFactory(owner=None)
    admin = signed_in(dana)
    assert admin.post(reverse("admin:compute_instance_delete", args=[instance.pk])).status_code == 403
    answer = admin.post(reverse("admin:compute_instance_change", args=[instance.pk]), {"owner": bob.pk})
    assert answer.status_code == 302
    instance.refresh_from_db()
    assert instance.owner == bob
    assert Disk.objects.get().owner == bob


def test_R20_an_owner_of_anything_cannot_be_deleted(dana, bob, charlie):
    InstanceFactory(owner=bob)
    admin = signed_in(dana)
    assert admin.post(reverse("admin:auth_user_delete", args=[bob.pk]), {"post": "yes"}).status_code == 403
    chosen = {"action": "delete_selected", "_selected_action": [bob.pk], "post": "yes"}
    admin.post(reverse("admin:auth_user_changelist"), chosen)
    bob.refresh_from_db()
    assert admin.post(reverse("admin:auth_user_delete", args=[charlie.pk]), {"post": "yes"}).status_code == 302


def test_the_administration_speaks_chinese_too(dana, alice):
    QuotaFactory(owner=alice)
    admin = signed_in(dana)
    admin.cookies["django_language"] = "zh-hans"
    html = admin.get(reverse("admin:compute_quota_changelist")).content.decode()
    for word in ("配额", "所有者", "地域", "云硬盘快照"):
        assert word in html

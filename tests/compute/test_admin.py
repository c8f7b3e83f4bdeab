"""What runs now, in the administration (docs/rules.md R20, R22, R24)."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
import time_machine
from django.contrib.admin.models import LogEntry
from django.contrib.messages import get_messages
from django.test import Client
from django.urls import reverse, reverse_lazy
from django.utils import timezone

from compute.models import Operation
from tests.factories import ImageFactory, InstanceFactory, OperationFactory, UserFactory

pytestmark = pytest.mark.django_db

NOW = reverse_lazy("admin:compute_liveoperation_changelist")


def signed_in(user: Any) -> Client:
    client = Client()
    client.force_login(user)
    return client


@pytest.fixture
def running(alice):
    """An image of Alice's that is copied, by process 4711."""
    image = ImageFactory(owner=alice, status="copying", name="web-1-v1")
    progress = {"phase": "copy", "parts": {"vda": [3 << 20, 4 << 20]}, "rate": 1 << 20}
    return OperationFactory(
        kind="create_image", status="running", image=image, asked_by=alice, subject="web-1-v1", step="capture",
        attempt=2, strikes=1, holder="boot/space/4711/99", beat_at=timezone.now() - timedelta(seconds=3),
        progress=progress, exclusive=True,
    )  # fmt: skip


def chosen(*rows):
    return {"action": "cancel", "_selected_action": [row.pk for row in rows]}


def told(response):
    return [str(message) for message in get_messages(response.wsgi_request)]


def test_R24_staff_see_what_runs_now(running, alice):
    OperationFactory(instance=None, holding=False, status="done", subject="long-ago")
    waiting = OperationFactory(kind="start", asked_by=alice, instance=None, holding=False, subject="web-2")
    Operation.objects.filter(pk=waiting.pk).update(created_at=timezone.now() - timedelta(seconds=70))
    erin = signed_in(UserFactory(username="erin", is_staff=True))
    with time_machine.travel(running.beat_at + timedelta(seconds=3), tick=False):
        html = erin.get(NOW).content.decode()
    for word in (
        "What runs now", running.pk, "Create image", "web-1-v1", "folder-1", "alice", "capture", "4711", "3 s ago",
        "75%, 3 MB of 4 MB", "web-2", "nobody for 1 min 10 s",
    ):  # fmt: skip
        assert word in html, word
    assert "long-ago" not in html
    Operation.objects.filter(pk=running.pk).update(status="undoing")
    assert "75%" not in erin.get(NOW, {"q": "folder-1"}).content.decode(), "nothing of it is copied any more"
    assert running.pk not in erin.get(NOW, {"q": "elsewhere"}).content.decode()
    assert reverse("admin:compute_operation_change", args=[running.pk]) in html


def test_what_runs_now_costs_as_many_queries_for_many(running, dana, django_assert_max_num_queries):
    admin = signed_in(dana)
    for n in range(8):
        instance = InstanceFactory(owner=UserFactory(username=f"owner-{n}"), name=f"web-{n}")
        OperationFactory(instance=instance, asked_by=instance.owner)
    with django_assert_max_num_queries(14):
        admin.get(NOW)


def test_R22_staff_may_cancel_what_runs_now(running):
    erin = UserFactory(username="erin", is_staff=True)
    assert told(signed_in(erin).post(NOW, chosen(running))) == ["1 operation was cancelled and is being cleaned up."]
    running.refresh_from_db()
    assert running.cancelled_by == erin
    assert LogEntry.objects.get().object_id == running.pk
    assert "Running, cancelled by erin" in signed_in(erin).get(NOW).content.decode()


def test_R22_a_cancel_that_comes_too_late_is_refused_with_the_reason(running, dana):
    admin = signed_in(dana)
    erasing = OperationFactory(kind="delete_image", step="erase", status="running", instance=None, holding=False)
    undoing = OperationFactory(status="undoing", instance=None, holding=False)
    ended = OperationFactory(status="done", instance=None, holding=False)
    admin.post(NOW, chosen(running))
    answers = {row: "\n".join(told(admin.post(NOW, chosen(row)))) for row in (running, erasing, undoing, ended)}
    assert "dana has cancelled it already" in answers[running]
    assert "cannot be turned back any more" in answers[erasing]
    assert "being cleaned up already" in answers[undoing]
    assert "it has ended" in answers[ended]
    for row, answer in answers.items():
        assert row.pk in answer
        assert "not cancelled" in answer
    for row in (erasing, undoing, ended):
        row.refresh_from_db()
        assert row.cancelled_by is None


def test_what_runs_now_speaks_chinese_too(running, dana):
    admin = signed_in(dana)
    admin.cookies["django_language"] = "zh-hans"
    html = admin.get(NOW).content.decode()
    for word in ("正在进行", "心跳", "执行者", "进度", "取消：停止所选操作", "制作镜像"):
        assert word in html, word

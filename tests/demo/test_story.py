"""`manage.py demo` on plain files: made once, whole after an interruption, and only where the demo runs."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from django.conf import LazySettings
from django.contrib.auth import get_user_model
from django.core.management import CommandError, call_command

from compute.models import Disk, Instance, Medium
from console.demo import ACCOUNTS, PASSWORD, story
from console.demo.guest import data_disk
from tests.world import Folder

pytestmark = pytest.mark.django_db

PEOPLE = get_user_model().objects


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same instances with less in them."""
    disks = {plan.name: tuple(replace(disk, size_mib=32, data_mib=10) for disk in plan.disks) for plan in story.PLANS}
    monkeypatch.setattr(story, "PLANS", tuple(replace(plan, disks=disks[plan.name]) for plan in story.PLANS))


def quietly(said: str) -> None:
    pass


def owned() -> dict[str, tuple[str, list[tuple[str, str, str]]]]:
    return {
        row.name: (
            row.owner.get_username(),
            [(disk.device, disk.name, disk.medium) for disk in row.disks.filter(owner=row.owner).order_by("device")],
        )
        for row in Instance.objects.exclude(owner=None)
    }


def files(folder: Folder) -> dict[Path, tuple[int, int]]:
    """Every disk file, with what changes when it is made again."""
    found = folder.root.glob("instances/*/*.raw")
    return {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in found}


def test_everyone_has_what_the_demo_tells_of(folder: Folder) -> None:
    story.tell(quietly)
    cloud, local = Medium.CLOUD, Medium.LOCAL
    assert owned() == {
        "web-1": (
            "alice",
            [("vda", "web-1-system", cloud), ("vdb", "web-1-data", cloud), ("vdc", "web-1-logs", cloud)],
        ),
        "db-1": (
            "alice",
            [("vda", "db-1-system", local), ("vdb", "db-1-scratch", local), ("vdc", "db-1-tables", cloud)],
        ),
        "cache-1": ("bob", [("vda", "cache-1-system", cloud)]),
    }
    assert {user.get_username() for user in PEOPLE.all()} == set(ACCOUNTS)
    assert all(user.check_password(PASSWORD) for user in PEOPLE.all())
    assert [user.get_username() for user in PEOPLE.filter(is_staff=True)] == ["dana"]
    assert PEOPLE.get(username="dana").is_superuser


def test_disks_carry_data_that_takes_room(folder: Folder) -> None:
    story.tell(quietly)
    assert all((disk.allocated_bytes or 0) > 10 << 20 for disk in Disk.objects.all())


def test_second_time_changes_nothing(folder: Folder) -> None:
    story.tell(quietly)
    alice = PEOPLE.get(username="alice")
    alice.set_password("her own")
    alice.save()
    Instance.objects.filter(name="web-1").update(name="shop")
    before = files(folder)
    story.tell(quietly)
    assert files(folder) == before
    assert set(owned()) == {"shop", "db-1", "cache-1"}
    assert PEOPLE.get(username="alice").check_password("her own")


def test_what_its_owner_deleted_does_not_come_back(folder: Folder) -> None:
    story.tell(quietly)
    row = Instance.objects.get(name="web-1")
    row.disks.all().delete()
    row.delete()
    shutil.rmtree(folder.root / "instances" / row.external_id)
    story.tell(quietly)
    assert set(owned()) == {"db-1", "cache-1"}
    assert len({path.parent for path in files(folder)}) == 2


@pytest.mark.parametrize("reached", ["web-1", "db-1", "cache-1"])
def test_interrupted_it_goes_on_where_it_was(folder: Folder, reached: str) -> None:
    def interrupt(said: str) -> None:
        if reached in said:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        story.tell(interrupt)
    # Nobody signs in to half a demo.
    assert not PEOPLE.exists()
    made = files(folder)
    story.tell(quietly)
    assert set(owned()) == {"web-1", "db-1", "cache-1"}
    assert made.items() <= files(folder).items()


def test_interrupted_between_two_disks_it_keeps_the_whole_one(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(target: Path, **facts: Any) -> None:
        if target.name == "vdb.raw":
            target.with_name("vdb.raw.making").mkdir()
            raise KeyboardInterrupt
        data_disk(target, **facts)

    monkeypatch.setattr(story, "data_disk", interrupted)
    with pytest.raises(KeyboardInterrupt):
        story.tell(quietly)
    made = files(folder)
    assert len(made) == 1
    monkeypatch.setattr(story, "data_disk", data_disk)
    story.tell(quietly)
    assert made.items() <= files(folder).items()
    assert not list(folder.root.glob("instances/*/*.making"))


def test_command_refuses_anywhere_but_in_the_demo(folder: Folder, settings: LazySettings) -> None:
    with pytest.raises(CommandError, match="STILLFRAME_ENV=demo"):
        call_command("demo")
    assert not PEOPLE.exists()
    assert not files(folder)
    settings.MODE = "demo"
    call_command("demo")
    assert set(owned()) == {"web-1", "db-1", "cache-1"}

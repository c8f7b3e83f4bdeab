"""What differs is told in a sentence and repaired where it can be; what is not ours is never touched (R24).

Each difference is made by hand on the folder engine with real files. Machines are in tests/engines/test_doctor.py.
"""

from __future__ import annotations

import io
import shutil
import subprocess
from datetime import timedelta
from types import SimpleNamespace

import pytest
from django.core.management import call_command
from django.utils import timezone

from compute.engines.base import Part
from compute.engines.folder import FolderEngine
from compute.engines.processes import is_alive, name_of
from compute.models import Instance, Litter, Operation, Region, Snapshot
from compute.operations import claim, identity, perform, undo_again
from images import doctor
from images.actions import create_image, delete_image
from images.doctor import examine
from images.models import DeviceMapping, Image
from tests.factories import OperationFactory, RegionFactory
from tests.processes import manage, wait_until
from tests.world import Folder

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture(autouse=True)
def _at_once(monkeypatch):
    monkeypatch.setattr(doctor, "BETWEEN_LOOKS", 0)
    monkeypatch.setenv("LC_ALL", "C")


@pytest.fixture
def web(folder: Folder, alice) -> Instance:
    return folder.instance("web-1", alice, vda="cloud", vdb="cloud")


@pytest.fixture
def asked(web, alice, private_redis) -> Operation:
    """An image that was asked for and that nobody has begun."""
    chosen = [disk.pk for disk in web.data_disks]
    image = create_image(by=alice, instance=web, name="web-1-v1", description="", disks=chosen)
    private_redis.flushall()
    return image.operations.get()


@pytest.fixture
def made(asked) -> Operation:
    perform(asked.pk)
    asked.refresh_from_db()
    assert asked.status == "done"
    return asked


@pytest.fixture
def failed(asked, folder) -> Operation:
    """One that could not be made, and that was cleaned up."""
    disk = folder.disk("web-1", "vdb")
    hidden = disk.rename(disk.with_name("hidden"))
    perform(asked.pk)
    hidden.rename(disk)
    asked.refresh_from_db()
    assert asked.status == "failed"
    return asked


def told() -> list[str]:
    return [str(finding) for finding in examine()]


def run(*, fix: bool = False) -> tuple[int, list[str]]:
    """Exit code and lines of the command."""
    out = io.StringIO()
    try:
        call_command("doctor", fix=fix, stdout=out)
    except SystemExit as end:
        return int(end.code or 0), out.getvalue().splitlines()
    return 0, out.getvalue().splitlines()


def fixed() -> None:
    """The repair leaves nothing to tell."""
    code, lines = run(fix=True)
    assert (code, lines[-2:]) == (0, ["What could be repaired was. Looking again:", "No difference."])
    assert told() == []


def held_by_the_dead(operation: Operation) -> None:
    dead = subprocess.Popen(["true"])
    boot, space, _, started = identity().split("/")
    dead.wait()
    attempt = claim(operation.pk)
    assert attempt is not None
    Operation.objects.filter(pk=operation.pk).update(holder=f"{boot}/{space}/{dead.pid}/{started}")


def test_where_nothing_differs_nothing_is_told(made, folder):
    folder.stored("lost+found").mkdir()
    before = folder.store_files()
    assert run() == (0, ["No difference."])
    assert folder.store_files() == before, "the proof of the store leaves nothing"


def test_what_is_under_way_is_no_difference(asked, folder):
    """Queued; held, with a room and a copier."""
    assert told() == []
    assert claim(asked.pk)
    slow = FolderEngine(folder.region, {"ROOT": folder.root, "RATE": 1 << 18})
    slow.make_room(asked.pk)
    handle, _ = slow.begin(asked.pk, "web-1", (Part("web-1/vda.raw", "vda"),))
    assert told() == []
    wait_until(lambda: slow.discard(asked.pk, handle))


def test_only_what_two_looks_find_is_told(made, folder, monkeypatch):
    passing, lasting = folder.stored("passing"), folder.stored("lasting")
    passing.touch()
    lasting.touch()
    monkeypatch.setattr(doctor, "time", SimpleNamespace(sleep=lambda seconds: passing.unlink()))
    assert [finding.data["what"] for finding in examine()] == ["lasting"]


def test_it_is_told_in_the_language_of_the_terminal(made, folder, monkeypatch):
    folder.stored("notes.txt").touch()
    monkeypatch.setenv("LC_ALL", "zh_CN.UTF-8")
    code, lines = run()
    assert code == 1
    assert lines == [
        "folder-1 的镜像存储中有 notes.txt，没有任何记录表明它属于本控制台，因此不做处理。请自行移走或删除。",
        "1 处差异。",
    ]


# Files and rooms -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["notes.txt", "somebody/else.raw", "op-unheard.creating/vda.raw", "op-unheard/vda.raw"]
)
def test_what_no_operation_names_is_told_and_never_deleted(made, folder, name):
    file = folder.stored(name)
    file.parent.mkdir(exist_ok=True)
    file.write_text("precious")
    code, lines = run(fix=True)
    assert code == 1
    assert f"{name} lies in the image store of folder-1, and no row says that it is ours." in "\n".join(lines)
    assert lines[-1] in ("1 difference.", "2 differences.")
    assert file.read_text() == "precious"


def test_a_link_is_told_and_not_followed(made, folder, tmp_path):
    (tmp_path / "vda.raw").write_text("precious")
    folder.stored("op-link").symlink_to(tmp_path)
    _, lines = run(fix=True)
    assert lines[0].startswith("op-link lies in the image store")
    assert (tmp_path / "vda.raw").read_text() == "precious"
    assert folder.stored("op-link").is_symlink()


@pytest.mark.parametrize("name", ["notes.txt", "vdz.raw"])
def test_a_foreign_file_beside_an_images_own_is_never_deleted(made, folder, name):
    file = folder.stored(f"{made.pk}/{name}")
    file.write_text("precious")
    code, lines = run(fix=True)
    assert (code, len(lines)) == (1, 4)
    assert lines[0].startswith(f"{made.pk}/{name} lies in the image store of folder-1, and no row says")
    assert file.read_text() == "precious"


def test_a_foreign_file_in_a_room_that_was_left_keeps_the_room(failed, folder):
    room = folder.stored(f"{failed.pk}.creating")
    room.mkdir()
    (room / "vda.raw").write_text("ours")
    (room / "notes.txt").write_text("precious")
    code, lines = run(fix=True)
    assert code == 1
    assert f"{failed.pk}.creating/notes.txt lies in the image store" in "\n".join(lines)
    assert (room / "notes.txt").read_text() == "precious"
    (room / "notes.txt").unlink()
    fixed()
    assert not room.exists()


def test_a_room_that_was_left_is_discarded(failed, folder):
    room = folder.stored(f"{failed.pk}.creating")
    room.mkdir()
    for name in ("vda.raw", "copy.json", "copy.progress.new", "copy.lock", "sealed.json.0123abcd.draft"):
        (room / name).touch()
    assert told() == [
        f"{room.name} lies in the image store of folder-1, left behind by {failed.pk}, which is over.",
    ]
    fixed()
    assert not room.exists()
    failed.refresh_from_db()
    assert failed.status == "failed"


def test_the_room_of_an_image_that_was_made_and_deleted_is_discarded(made, folder, alice, private_redis):
    """As a ghost could make it, late."""
    delete_image(by=alice, image=made.image, snapshots=True)
    perform(Operation.objects.get(kind="delete_image").pk)
    private_redis.flushall()
    folder.stored(f"{made.pk}.creating").mkdir()
    assert len(told()) == 1
    fixed()
    assert folder.store_files() == set()


def test_a_published_file_that_no_row_names_is_erased_and_the_others_stay(made, folder):
    mapping = made.image.mappings.get(device="vdb")
    file = mapping.snapshot.external_id
    mapping.delete()
    Snapshot.objects.filter(external_id=file).delete()
    assert told() == [f"{file} lies in the image store of folder-1, left behind by {made.pk}, which is over."]
    fixed()
    assert folder.store_files() == {f"{made.pk}/vda.raw", f"{made.pk}/sealed.json"}


def test_a_foreign_file_beside_a_published_one_that_no_row_names_is_never_deleted(made, folder):
    """Ours is erased, and with it would go its directory."""
    precious = folder.stored(f"{made.pk}/notes.txt")
    precious.write_text("precious")
    named = list(Snapshot.objects.values_list("external_id", flat=True))
    made.image.mappings.all().delete()
    Snapshot.objects.all().delete()
    Image.objects.all().delete()
    code, _ = run(fix=True)
    assert code == 1
    assert not any(folder.stored(name).exists() for name in named)
    assert precious.read_text() == "precious"
    precious.unlink()
    fixed()
    assert folder.store_files() == set()


def test_files_that_a_kept_snapshot_names_are_not_left_behind(made, folder, alice, private_redis):
    """R18: the image was deleted without its snapshots."""
    delete_image(by=alice, image=made.image, snapshots=False)
    perform(Operation.objects.get(kind="delete_image").pk)
    private_redis.flushall()
    assert told() == []
    folder.stored(f"{made.pk}.creating").mkdir()
    code, lines = run(fix=True)
    assert code == 1
    assert lines[0].endswith("Beside it is what must stay, so it is left alone: delete it yourself.")
    assert f"{made.pk}/vda.raw" in folder.store_files(), "what was published under the same key would have gone too"


def test_a_copier_that_nobody_watches_is_ended(failed, folder):
    slow = FolderEngine(folder.region, {"ROOT": folder.root, "RATE": 1 << 18})
    slow.make_room(failed.pk)
    slow.begin(failed.pk, "web-1", (Part("web-1/vda.raw", "vda"),))
    copier = folder.stored(f"{failed.pk}.creating/copy.lock").read_text()
    name = name_of(int(copier))
    assert f"PID {copier} in folder-1 still copies disks for {failed.pk}, which is over." in told()
    fixed()
    assert not is_alive(name)
    assert folder.store_files() == set()


def test_litter_is_told_and_discarded(failed, folder):
    folder.stored(f"{failed.pk}.creating").mkdir()
    Litter.objects.create(region_id=folder.region, key=failed.pk)
    assert told() == [f"What {failed.pk} had begun in folder-1 could not be removed yet."]
    fixed()
    assert folder.store_files() == set()


def test_litter_waits_for_its_region(failed, folder):
    folder.stored(f"{failed.pk}.creating").mkdir()
    Litter.objects.create(region_id=folder.region, key=failed.pk)
    hidden = folder.root / "hidden"
    folder.root.joinpath("instances").rename(hidden)
    code, lines = run(fix=True)
    hidden.rename(folder.root / "instances")
    assert code == 1
    assert lines[-2:] == [
        f"The image store of folder-1, {folder.root}/instances, is not there. Is it mounted?",
        "1 difference.",
    ]
    fixed()


def test_a_stored_file_that_is_missing_is_told_and_nothing_else_is_touched(made, folder):
    snapshot = Snapshot.objects.get(device="vdb")
    folder.stored(snapshot.external_id).unlink()
    sentence = (
        f"{snapshot.external_id}, the file of {snapshot.pk}, is not in the image store of folder-1. "
        "Put it back from a backup, or delete the image."
    )
    again = ["What could be repaired was. Looking again:", sentence, "1 difference."]
    assert run(fix=True) == (1, [sentence, *again])
    made.image.refresh_from_db()
    assert made.image.status == "available"


def test_an_available_image_without_a_file_is_told(made):
    made.image.mappings.filter(device="vdb").update(snapshot=None)
    Snapshot.objects.filter(device="vdb").update(status="error")
    assert told() == [f"{made.image.pk} is available, but no file is recorded for its /dev/vdb. Delete the image."]


def test_a_store_in_which_everything_is_missing_is_one_difference(made, folder):
    """As an empty mount point looks."""
    for place in (folder.root / "store").iterdir():
        shutil.rmtree(place)
    assert told() == [
        "Nothing lies in the image store of folder-1, although files should (2). Is it mounted?",
    ]


# Rows ----------------------------------------------------------------------------------------------------------------


def test_an_operation_whose_holder_is_dead_is_taken_away(asked):
    held_by_the_dead(asked)
    assert told() == [f"The process that held {asked.pk} is dead, and nobody has taken it away from it."]
    fixed()
    asked.refresh_from_db()
    assert (asked.status, asked.holder) == ("running", "")
    perform(asked.pk)
    asked.refresh_from_db()
    assert asked.status == "done"


@pytest.mark.parametrize("status", ["creating", "copying"])
def test_an_image_that_nobody_makes_is_undone(asked, folder, status):
    """R10: with everything of it, and its instance keeps what it is doing."""
    folder.engine.make_room(asked.pk)
    Operation.objects.filter(pk=asked.pk).update(status="failed", ended_at=timezone.now())
    Image.objects.filter(pk=asked.image.pk).update(status=status)
    Instance.objects.update(status="starting")
    start = OperationFactory(instance=asked.instance, kind="start", asked_by=asked.asked_by)
    word = status.capitalize()
    assert f"{asked.image.pk} is “{word}”, and no operation is at work on it." in told()
    fixed()
    asked.refresh_from_db()
    assert (asked.status, asked.image.status, asked.image.reason["code"]) == ("failed", "error", "undone-again")
    assert not Snapshot.objects.exists()
    assert folder.store_files() == set()
    assert Instance.objects.get().status == "starting"
    assert start.is_live


def test_an_image_that_nobody_deletes_can_be_deleted_again(made, alice, private_redis, folder):
    delete_image(by=alice, image=made.image, snapshots=True)
    deleting = Operation.objects.get(kind="delete_image")
    Operation.objects.filter(pk=deleting.pk).update(status="failed", ended_at=timezone.now())
    private_redis.flushall()
    assert told()[0] == f"{made.image.pk} is “Deleting”, and no operation is at work on it."
    fixed()
    image = Image.objects.get()
    assert image.status == "error"
    delete_image(by=alice, image=image, snapshots=True)
    perform(Operation.objects.filter(kind="delete_image").latest("created_at").pk)
    assert not Image.objects.exists()
    assert folder.store_files() == set()


def test_what_lives_is_not_undone_again(made, alice):
    """Neither itself, nor while another operation is at work on its image."""
    delete_image(by=alice, image=made.image, snapshots=True)
    assert not undo_again(made)
    assert not undo_again(Operation.objects.get(kind="delete_image"))
    assert set(Operation.objects.values_list("status", flat=True)) == {"done", "queued"}


def test_files_of_an_image_that_was_available_are_not_undone(made, folder):
    """Somebody wrote a status by hand: what to do is for a person to say."""
    Image.objects.update(status="deleting")
    before = folder.store_files()
    code, lines = run(fix=True)
    assert (code, lines[-1]) == (1, "1 difference.")
    assert folder.store_files() == before
    made.refresh_from_db()
    assert made.status == "done"


def test_snapshots_that_nobody_makes_go_with_what_made_them(asked, folder):
    """Their image is in error already: the rows could not be settled when the operation ended."""
    Operation.objects.filter(pk=asked.pk).update(status="failed", ended_at=timezone.now(), reason={"code": "stalled"})
    Image.objects.update(status="error", reason={"code": "stalled", "data": {"seconds": 300}})
    assert len(told()) == 2
    fixed()
    assert not Snapshot.objects.exists()
    assert Image.objects.get().reason["code"] == "stalled"


def test_a_snapshot_that_nothing_explains_is_told(made):
    DeviceMapping.objects.filter(device="vdb").delete()
    snapshot = Snapshot.objects.get(device="vdb")
    Snapshot.objects.filter(pk=snapshot.pk).update(status="deleting")
    code, lines = run(fix=True)
    assert code == 1
    assert lines[0] == f"{snapshot.pk} is “Deleting”, and no operation is at work on it."
    assert Snapshot.objects.filter(pk=snapshot.pk).exists()


def test_an_instance_that_nobody_starts_becomes_what_is_seen_of_it(web):
    Instance.objects.update(status="starting")
    assert told() == ["web-1 is “Starting”, and no operation is at work on it."]
    fixed()
    web.refresh_from_db()
    assert web.status == "stopped"


def test_a_guest_that_owes_a_thaw_is_asked(web):
    Instance.objects.update(thaw_owed=timezone.now() - timedelta(seconds=10))
    assert told() == [], "the keeper has not had its time"
    Instance.objects.update(thaw_owed=timezone.now() - timedelta(minutes=1))
    assert told() == ["web-1 was to be frozen, and has not answered since that it is thawed."]
    fixed()
    web.refresh_from_db()
    assert web.thaw_owed is None


@pytest.mark.parametrize("since", [timedelta(minutes=-2), timedelta(hours=1)], ids=["long ago", "later"])
def test_a_region_that_the_keeper_does_not_look_at_is_told(web, folder, since):
    Region.objects.update(seen_at=timezone.now() + since)
    assert told() == [
        "The keeper has not seen folder-1 for more than a minute, so what pages show of it is old. Does it run?"
    ]
    fixed()


def test_a_disk_whose_file_is_missing_is_told(web, folder):
    folder.disk("web-1", "vdb").unlink()
    Region.objects.update(seen_at=timezone.now() - timedelta(minutes=2))
    assert told() == [
        "The keeper has not seen folder-1 for more than a minute, so what pages show of it is old. Does it run?"
    ]
    code, lines = run(fix=True)
    assert (code, lines[-2]) == (1, "web-1: The file of /dev/vdb is missing on the host.")


def test_an_operation_of_a_region_that_is_not_configured_is_told(folder):
    row = OperationFactory(region=RegionFactory(name="gone-1"), instance=None)
    assert told()[0] == f"{row.pk} waits for ever: its region gone-1 is not in the settings. Put it back there."


# Regions and Redis ---------------------------------------------------------------------------------------------------


def test_a_store_that_is_not_there_is_not_an_empty_one(made, folder):
    store = folder.root / "store"
    hidden = store.rename(folder.root / "hidden")
    code, lines = run(fix=True)
    assert (code, lines[0]) == (1, f"The image store of folder-1, {store}, is not there. Is it mounted?")
    assert not store.exists()
    hidden.rename(store)
    assert told() == []


def test_a_store_that_cannot_be_written_makes_its_region_unusable(made, folder):
    """/sys takes no directories from anybody, root included."""
    store = folder.root / "store"
    hidden = store.rename(folder.root / "hidden")
    store.symlink_to("/sys/kernel")
    code, lines = run(fix=True)
    store.unlink()
    hidden.rename(store)
    assert code == 1
    assert lines[0].startswith("No image can be made in folder-1: a small one was tried. The image store failed (E")
    assert told() == []


def test_a_proof_that_was_killed_leaves_nothing_to_the_next(made, folder):
    for name in ("doctor", "doctor.creating"):
        folder.stored(name).mkdir()
        folder.stored(f"{name}/vda.raw").write_text("half")
    folder.engine.prove()
    assert {name.split("/")[0] for name in folder.store_files()} == {made.pk}


def test_calls_of_operations_that_are_over_are_taken_back(made, private_redis):
    from compute import wakeup

    wakeup.send("short", made.pk)
    assert told() == ["Wake-up calls of operations that are over still lie on the queue short (1)."]
    fixed()


def test_a_call_of_an_operation_that_lives_is_no_difference(web, alice):
    create_image(by=alice, instance=web, name="web-1-v1", description="", disks=[])
    assert told() == []


def test_redis_being_down_is_told(made, child_env, tmp_path):
    env = child_env | {"REDIS_URL": f"unix://{tmp_path}/nobody.sock", "LC_ALL": "C"}
    with manage("doctor", env=env, stdout=subprocess.PIPE) as process:
        lines = process.communicate(timeout=30)[0].decode().splitlines()
    assert process.returncode == 1
    assert lines[0].startswith("Redis does not answer (")
    assert lines[-1] == "1 difference."

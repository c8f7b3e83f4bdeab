"""Nobody but keepers: no Redis and no worker. One finishes all; two do it once (docs/rules.md R24)."""

from __future__ import annotations

import subprocess
from datetime import timedelta

import pytest
from django.utils import timezone

from compute.engines import processes
from compute.models import Instance, Litter, Operation
from compute.states import OperationStatus
from images.actions import create_image
from tests.processes import manage, wait_until
from tests.world import Folder

pytestmark = pytest.mark.usefixtures("database")


@pytest.fixture
def env(child_env, tmp_path):
    return child_env | {"REDIS_URL": f"unix://{tmp_path}/nobody.sock"}


def make(folder: Folder, alice, name: str) -> Operation:
    instance = folder.instance(name, alice, vda="cloud", vdb="cloud")
    disks = [disk.pk for disk in instance.disks.filter(device="vdb")]
    return create_image(by=alice, instance=instance, name=name, description="", disks=disks).operations.get()


def assert_whole(operation: Operation, folder: Folder) -> None:
    operation.refresh_from_db()
    assert (operation.status, operation.image.status) == ("done", "available")
    for mapping in operation.image.mappings.all():
        content = folder.disk(operation.subject, mapping.device).read_bytes()
        assert folder.stored(mapping.file.external_id).read_bytes() == content


def dead_holder() -> str:
    """The name of a process of this machine that is no more."""
    process = subprocess.Popen(["sleep", "100"])
    name = processes.name_of(process.pid)
    process.kill()
    process.wait()
    return name


def test_the_keeper_alone_finishes_it(folder, alice, env):
    """It starts a child that does what a worker does."""
    making = make(folder, alice, "web-1")
    with manage("keeper", env=env) as keeper:
        wait_until(lambda: not Operation.objects.live().exists(), what="the end")
        keeper.terminate()
        assert keeper.wait(timeout=10) == 0
    assert_whole(making, folder)


def test_two_keepers_do_it_once(folder, alice, env):
    """Both see the same: whoever acts first has done it, and the other has nothing to do."""
    queued = [make(folder, alice, name) for name in ("web-1", "web-2")]
    orphan = make(folder, alice, "web-3")
    facts = {"status": OperationStatus.RUNNING, "attempt": 1, "holder": dead_holder()}
    Operation.objects.filter(pk=orphan.pk).update(**facts)
    Litter.objects.create(region_id="folder-1", key="op-given-up")
    (folder.root / "store" / "op-given-up.creating").mkdir()
    Instance.objects.filter(name="web-1").update(thaw_owed=timezone.now() - timedelta(seconds=60))
    with manage("keeper", env=env) as one, manage("keeper", env=env) as other:
        wait_until(lambda: not Operation.objects.live().exists(), seconds=60, what="the end")
        wait_until(lambda: not Litter.objects.exists(), what="the litter gone")
        wait_until(lambda: not Instance.objects.exclude(thaw_owed=None).exists(), what="the thaw")
        for keeper in (one, other):
            keeper.terminate()
            assert keeper.wait(timeout=10) == 0
    for operation in (*queued, orphan):
        assert_whole(operation, folder)
    assert [(row.attempt, row.strikes) for row in queued] == [(1, 0), (1, 0)]
    # Taken from the dead (2) by one of them, and claimed once after that (3).
    assert (orphan.attempt, orphan.strikes) == (3, 1)
    kept = {f"{row.pk}/{name}" for row in (*queued, orphan) for name in ("vda.raw", "vdb.raw", "sealed.json")}
    assert folder.store_files() == kept

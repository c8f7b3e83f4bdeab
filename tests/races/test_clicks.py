"""Fifty people at once, over HTTP, on real gunicorn workers: exactly one wins, and the others are told why."""

from __future__ import annotations

from collections import Counter

import pytest
from django.contrib.auth.hashers import PBKDF2PasswordHasher

from compute.models import Instance, Operation, Snapshot
from images.models import Image
from tests.factories import InstanceFactory, MappingFactory, QuotaFactory
from tests.races.web import serving

pytestmark = pytest.mark.usefixtures("database")
PEOPLE = 50
PASSWORD = "demo-console"


@pytest.fixture
def alice(alice):
    # As the product stores it; the tests' own hasher is unknown to it.
    alice.password = PBKDF2PasswordHasher().encode(PASSWORD, "salt", iterations=1)
    alice.save()
    return alice


@pytest.fixture
def web(child_env, alice, tmp_path):
    """A region with power, so that there is more than one verb."""
    engines = tmp_path / "engines.toml"
    engines.write_text('["folder-1"]\nBACKEND = "tests.kill.world.PoweredFolder"\nOPTIONS = { ROOT = "/nowhere" }\n')
    with serving(child_env | {"ENGINES_FILE": str(engines)}) as web:
        web.sign_in("alice", PASSWORD)
        yield web


def create_image(instance: Instance, name: str = "one-of-many"):
    return f"/r/folder-1/instances/{instance.pk}/create-image/", {"name": name}


@pytest.mark.parametrize(
    ("resource", "limits"),
    [
        # Nobody has written a quota row for her: the first of the fifty does, with the limits that are everybody's.
        pytest.param("images", None, id="images"),
        pytest.param("snapshots", {"images": 2 * PEOPLE, "snapshots": 5}, id="snapshots"),
    ],
)
def test_the_last_of_a_quota_is_taken_once(web, alice, resource, limits):
    """R5: fifty images of fifty instances, and quota for one more."""
    before = [MappingFactory(image__owner=alice, snapshot__owner=alice) for _ in range(4)]
    instances = [InstanceFactory(owner=alice, name=f"web-{n}") for n in range(PEOPLE)]
    if limits:
        QuotaFactory(owner=alice, **limits)
    answers = web.click_at_once([create_image(instance) for instance in instances])
    refusal = f"Not enough quota for {resource}: 5 of 5 are used"
    kinds = Counter((status, told[: len(refusal)]) for status, told in answers)
    assert kinds == {(302, ""): 1, (422, refusal): PEOPLE - 1}
    image = Image.objects.exclude(mappings__in=before).get()
    assert Snapshot.objects.exclude(mappings__in=before).get() == image.mappings.get().snapshot
    assert Operation.objects.get().image == image


def test_one_instance_has_one_operation(web, alice):
    """R12: half of them make an image of it, half start it."""
    QuotaFactory(owner=alice, images=PEOPLE, snapshots=PEOPLE)
    instance = InstanceFactory(owner=alice)
    start = f"/r/folder-1/instances/{instance.pk}/start/", {}
    answers = web.click_at_once([create_image(instance), start] * (PEOPLE // 2))
    operation = Operation.objects.get()
    instance.refresh_from_db()
    held, status = {
        "create_image": ("web-1 is held while its image one-of-many is made.", "stopped"),
        "start": ("Another operation on web-1 is still going on: Start.", "starting"),
    }[operation.kind]
    assert Counter(answers) == {(302, ""): 1, (422, held): PEOPLE - 1}
    assert instance.status == status
    assert Image.objects.count() == Snapshot.objects.count() == (operation.kind == "create_image")

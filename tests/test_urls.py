"""Every address, for every person: docs/rules.md R22. An address without a line here fails."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from django.test import Client
from django.urls import NoReverseMatch, URLPattern, URLResolver, get_resolver, reverse

from compute.models import Litter
from tests.factories import (
    DiskFactory,
    ImageFactory,
    InstanceFactory,
    MappingFactory,
    OperationFactory,
    QuotaFactory,
    RegionFactory,
)

pytestmark = pytest.mark.django_db

PEOPLE = ("anonymous", "stranger", "owner", "admin")
# Name → what GET and POST answer to anonymous, stranger, owner, admin. 302: to sign-in and back, or on to somewhere.
# All of Alice's; the admin reads every page, and may cancel, but has no other verb on others' things.
ON = (302, 302, 302, 302)
DOOR = (200, 302, 302, 302)
NO = (405, 405, 405, 405)
NOT_FOR_GET = (302, 405, 405, 405)
PAGE = (302, 200, 200, 200)
THEIRS = (302, 404, 200, 200)
TABLE: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {
    "home": (ON, NOT_FOR_GET),
    "login": (DOOR, DOOR),
    "logout": (NOT_FOR_GET, ON),
    "language": (ON, ON),
    "theme": (NO, ON),
    "healthz": ((200, 200, 200, 200), NO),
    # No keeper is at work: see tests/console/test_health.py.
    "readyz": ((503, 503, 503, 503), NO),
    "metrics": ((401, 403, 403, 200), NO),
    "help-device-names": (PAGE, NOT_FOR_GET),
    "instances": (PAGE, NOT_FOR_GET),
    "instances-poll": (PAGE, NOT_FOR_GET),
    "instance": (THEIRS, NOT_FOR_GET),
    "instance-poll": (THEIRS, NOT_FOR_GET),
    "instance-start": (NOT_FOR_GET, (302, 404, 422, 403)),
    "instance-stop": (THEIRS, (302, 404, 422, 403)),
    "image-create": (THEIRS, (302, 404, 422, 403)),
    "image-create-takes": (THEIRS, NOT_FOR_GET),
    "images": (PAGE, NOT_FOR_GET),
    "images-poll": (PAGE, NOT_FOR_GET),
    "image": (THEIRS, NOT_FOR_GET),
    "image-poll": (THEIRS, NOT_FOR_GET),
    "image-cancel": (THEIRS, (302, 404, 422, 422)),
    "image-delete": (THEIRS, (302, 404, 302, 403)),
    "image-share": (NOT_FOR_GET, (302, 404, 422, 403)),
    "image-launch": (NOT_FOR_GET, (302, 404, 422, 403)),
}
# Admin and queue pages: nobody but staff, and the queue's only for superusers (see also test_admin.py).
STAFF_ONLY = ("admin", "django_rq")


def walk(patterns: list[Any], namespace: str = "") -> Iterator[str]:
    for pattern in patterns:
        if isinstance(pattern, URLResolver):
            inner = f"{namespace}{pattern.namespace}:" if pattern.namespace else namespace
            yield from walk(pattern.url_patterns, inner)
        elif isinstance(pattern, URLPattern):
            # The admin's two patterns without a name lead on to its others.
            yield f"{namespace}{pattern.name}"


NAMES = sorted(set(walk(get_resolver().url_patterns)) - {"admin:None"})


@pytest.fixture
def things(alice) -> dict[str, dict[str, str]]:
    """One of everything, Alice's. Nothing is going on."""
    region = RegionFactory()
    instance = InstanceFactory(owner=alice, region=region)
    DiskFactory(instance=instance, region=region)
    image = ImageFactory(owner=alice, region=region, instance=instance)
    MappingFactory(image=image, snapshot__owner=alice, snapshot__region=region)
    OperationFactory(region=region, instance=instance, image=image, asked_by=alice, status="done")
    QuotaFactory(owner=alice, region=region)
    Litter.objects.create(region=region, key="op-1")
    return {"instance": {"region": region.pk, "pk": instance.pk}, "image": {"region": region.pk, "pk": image.pk}}


@pytest.fixture
def person(request, alice, charlie, dana) -> Client:
    client = Client()
    who = {"stranger": charlie, "owner": alice, "admin": dana}.get(request.param)
    if who is not None:
        client.force_login(who)
    return client


def address(name: str, things: dict[str, dict[str, str]]) -> str:
    for arguments in ({}, {"region": things["image"]["region"]}):
        try:
            return reverse(name, kwargs=arguments)
        except NoReverseMatch:
            continue
    of_instance = name.startswith("instance") or name in ("image-create", "image-create-takes")
    return reverse(name, kwargs=things["instance" if of_instance else "image"])


def test_every_address_has_a_line():
    ours = {name for name in NAMES if name.split(":")[0] not in STAFF_ONLY}
    assert ours == set(TABLE)


@pytest.mark.parametrize("name", TABLE)
@pytest.mark.parametrize("person", PEOPLE, indirect=True)
@pytest.mark.parametrize("method", ["get", "post"])
def test_who_gets_what(name, person, method, things, request):
    index = PEOPLE.index(request.node.callspec.params["person"])
    expected = TABLE[name][method == "post"][index]
    response = getattr(person, method)(address(name, things))
    assert response.status_code == expected
    if expected == 302 and index == 0 and name not in ("logout", "language", "theme"):
        assert response.url.startswith("/sign-in/?next="), "to sign-in, and back from there"


ARGUMENTS = ([], ["1"], ["auth"], ["default"], [0], [0, "1"], [0, "1", "2"], ["0", "1"])


def reversed_or_none(name: str, arguments: list[Any]) -> str | None:
    try:
        return reverse(name, args=arguments)
    except NoReverseMatch:
        return None


@pytest.mark.parametrize("name", [name for name in NAMES if name.split(":")[0] in STAFF_ONLY])
@pytest.mark.parametrize("person", ["anonymous", "stranger", "owner"], indirect=True)
def test_admin_pages_are_for_staff(name, person, things):
    url = next(filter(None, (reversed_or_none(name, arguments) for arguments in ARGUMENTS)), None)
    assert url is not None, f"no address could be made for {name}: add its arguments"
    if name in ("admin:login", "admin:logout", "admin:jsi18n"):
        return  # open to everybody, and tell nothing
    response = person.get(url)
    assert response.status_code in (302, 403)
    if response.status_code == 302:
        assert "/sign-in/" in response.url or "/admin/login/" in response.url or response.url.startswith("/admin/")


def test_an_unknown_region_is_nowhere(person_of, alice):
    assert person_of(alice).get("/r/elsewhere/instances/").status_code == 404


def test_ids_of_another_region_are_nowhere(things, person_of, alice, settings):
    """R22: the region in the address is not decoration."""
    settings.ENGINES = settings.ENGINES | {"folder-2": settings.ENGINES["folder-1"]}
    for kind in ("instance", "image"):
        assert person_of(alice).get(reverse(kind, args=["folder-2", things[kind]["pk"]])).status_code == 404


@pytest.fixture
def person_of():
    def sign_in(who: Any) -> Client:
        client = Client()
        client.force_login(who)
        return client

    return sign_in

"""One place with one guest for all tests of a module; what a test leaves behind fails it."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from django.conf import settings as configured
from django.utils.html import escape

from compute.models import Instance, Operation
from compute.reasons import say
from tests.failures.place import REGION, SMALL, Place


@pytest.fixture(scope="module")
def _place(guest_cache: Path) -> Iterator[Place]:
    if os.geteuid() == 0:
        pytest.fail("run the tests as an ordinary user: make test does")
    # Not pytest's directory: its path is too long for sockets.
    root = Path(tempfile.mkdtemp(prefix="sf-", dir="/tmp"))
    place = Place(root, guest_cache)
    try:
        yield place
    finally:
        place.end()
        shutil.rmtree(root)


@pytest.fixture
def place(_place: Place, child_env: dict[str, str], settings: Any, tmp_path: Path) -> Iterator[Place]:
    """The place, known to the console; nothing that a test makes is left in it when the test is over."""
    file = tmp_path / "engines.toml"
    lines = []
    for region, entry in _place.engines().items():
        options = entry["OPTIONS"]
        lines += [f'[{region}]\nBACKEND = "{entry["BACKEND"]}"\nLONG_LIMIT = {entry["LONG_LIMIT"]}']
        lines += [f'[{region}.OPTIONS]\nURI = "{options["URI"]}"\nSTORE = "{options["STORE"]}"']
    file.write_text("\n".join(lines))
    settings.ENGINES = _place.engines()
    nobody = {"REDIS_URL": f"unix://{tmp_path}/nobody.sock"}
    _place.env = child_env | nobody | {"ENGINES_FILE": str(file), "PYTHONPATH": str(configured.BASE_DIR)}
    yield _place
    for region in (REGION, SMALL):
        store = _place.world.store if region == REGION else _place.apart.seen
        for path in store.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()


@pytest.fixture
def guest(place: Place) -> Iterator[str]:
    """Id of the running guest; it counts, and its agent answers."""
    place.guest.ready()
    yield place.guest.id
    place.guest.rest()


@pytest.fixture
def plain(place: Place) -> Iterator[str]:
    """Id of a stopped machine without a system."""
    engine = place.world.engine()
    engine.stop(place.plain, force=True)
    yield place.plain
    engine.stop(place.plain, force=True)


Told = Callable[[Operation, str, str], None]


@pytest.fixture
def told(client: Any, alice: Any) -> Told:
    """``told(operation, sentence, observed)``: the image is Error, says this and what was seen; all is undone."""
    client.force_login(alice)

    def check(operation: Operation, sentence: str, observed: str) -> None:
        operation.refresh_from_db()
        image = operation.image
        assert not operation.is_live
        assert image is not None
        image.refresh_from_db()
        assert (image.status, say(image.reason)) == ("error", sentence)
        assert image.reason["observed"], "the instance was looked at"
        page = client.get(f"/r/{image.region_id}/images/{image.pk}/").content.decode()
        assert escape(sentence) in page
        assert observed in page
        assert not image.mappings.exclude(snapshot=None).exists()
        assert not image.mappings.exclude(external_id="").exists()

    return check


@pytest.fixture
def clean(place: Place) -> Callable[..., None]:
    """``clean(…)``: the stores hold nothing but these, no helper is left, no thaw is owed, the guest is not frozen."""

    def check(*kept: str, running: bool = True) -> None:
        left = {path.name for store in (place.world.store, place.apart.seen) for path in store.iterdir()}
        assert left == set(kept)
        assert not any(name.startswith("stillframe-") for name in place.world.names())
        assert not Instance.objects.exclude(thaw_owed=None).exists()
        if running:
            assert not place.is_frozen()
            place.guest.counts()

    return check

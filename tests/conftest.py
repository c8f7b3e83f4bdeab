"""What every test gets: a private Valkey, emptied after each test, and the choice of what runs here."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import redis
from django.conf import settings
from django.core.management import call_command
from django.utils import translation

from compute import regions
from console import translations, valkey
from tests.factories import UserFactory
from tests.postgres import Server, rows_in, url_of_rows
from tests.settings import HOME
from tests.world import Folder

ELSEWHERE = ("qemu", "browser", "postgres")

# The same examples each time, so that a failure is everybody's; `--hypothesis-profile=long` looks for others.
EXAMPLES = {"deadline": None, "suppress_health_check": list(hypothesis.HealthCheck), "stateful_step_count": 40}
QUICKLY = (hypothesis.Phase.generate,)  # a shorter way to the same failure is worth minutes of `long` only
hypothesis.settings.register_profile("test", max_examples=20, derandomize=True, phases=QUICKLY, **EXAMPLES)
hypothesis.settings.register_profile("long", max_examples=500, print_blob=True, **EXAMPLES)
hypothesis.settings.load_profile("test")


def _turn(item: pytest.Item) -> tuple[bool, str, str, int]:
    """QEMU's first; of those the stories, told in their order, since each part leaves its machines to the next."""
    other = item.get_closest_marker("qemu") is None
    if item.path.parent.name != "failures" and not item.path.match("browser/test_story.py"):
        return other, "~", "", 0  # after the stories, in any order
    told_on = item.callspec.id if hasattr(item, "callspec") else ""
    return other, str(item.path), told_on, item.reportinfo()[1] or 0


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> Iterator[None]:
    """Plain `pytest` runs anywhere: what needs QEMU, Chromium or PostgreSQL is left to `make test`, or to `-m`.

    Under xdist the QEMU tests are one group, so that no two run at once; it comes first, for it takes longest.
    """
    for item in items:
        if item.get_closest_marker("qemu"):
            item.add_marker(pytest.mark.xdist_group("qemu"))
    yield  # to xdist, which names the groups, and to the shuffling of pytest-randomly
    items.sort(key=_turn)
    if os.environ.get("STILLFRAME_TEST_ALL") or config.option.markexpr:
        return
    left_out = [item for item in items if any(item.get_closest_marker(marker) for marker in ELSEWHERE)]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    count = len(terminalreporter.stats.get("deselected", []))
    if count and not terminalreporter.config.option.markexpr:
        markers = ", ".join(ELSEWHERE)
        terminalreporter.write_line(f"{count} tests left out ({markers}): `make test` runs everything, `-m qemu` some.")


def pytest_unconfigure() -> None:
    shutil.rmtree(HOME, ignore_errors=True)


@pytest.fixture(scope="session", autouse=True)
def _session() -> Iterator[redis.Redis]:
    translations.compile_all()
    socket = valkey.socket_directory(settings.SOCKETS) / "valkey.sock"
    with (HOME / "valkey.log").open("wb") as log:
        server = subprocess.Popen(valkey.command(settings.SOCKETS, settings.DATA), stdout=log, stderr=log)
    try:
        valkey.wait_ready(socket)
        with redis.Redis(unix_socket_path=str(socket)) as client:
            yield client
    finally:
        server.terminate()
        server.wait()


@pytest.fixture(autouse=True)
def private_redis(_session: redis.Redis) -> Iterator[redis.Redis]:
    """The tests' own Redis. Nothing queued by one test reaches the next."""
    yield _session
    _session.flushall()


@pytest.fixture(autouse=True)
def _own_engines() -> None:
    """A region's name is all that an engine is found by, and the last test's region of that name is gone."""
    regions._engine.cache_clear()


@pytest.fixture(autouse=True)
def english() -> Iterator[None]:
    """Every test begins in English: a request in another language leaves its thread in that language."""
    with translation.override("en"):
        yield


@pytest.fixture(autouse=True)
def _one_machine_at_a_time(request: pytest.FixtureRequest) -> None:
    """Two workers that boot machines at once slow each other down beyond every deadline: the groups have to work."""
    if request.node.get_closest_marker("qemu") and "PYTEST_XDIST_WORKER" in os.environ:
        assert request.node.nodeid.endswith("@qemu")


@pytest.fixture(scope="session")
def postgres() -> Iterator[Server]:
    """A private PostgreSQL server; the host's own are not touched."""
    with Server(HOME / "postgres") as server:
        yield server


@pytest.fixture(scope="session")
def _rows_in_postgres(postgres: Server, django_db_blocker: Any) -> str:
    """URL of a database with the product's tables."""
    url = postgres.create("tests")
    with django_db_blocker.unblock(), rows_in(url):
        call_command("migrate", verbosity=0)
    return url


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
def _rows(request: pytest.FixtureRequest, django_db_setup: None) -> Iterator[None]:
    if request.param == "sqlite":
        yield
        return
    with rows_in(request.getfixturevalue("_rows_in_postgres")):
        yield


@pytest.fixture
def database(_rows: None, transactional_db: None) -> None:
    """Rows of the test and of its processes: once in SQLite, once in PostgreSQL. Asked for before any row is."""


@pytest.fixture
def child_env(transactional_db: None) -> dict[str, str]:
    """The environment in which a child process (`manage.py …`) sees this test's database, queue and engine."""
    return os.environ | {
        "DJANGO_SETTINGS_MODULE": "console.settings",
        "DATABASE_URL": url_of_rows(),
    }


@pytest.fixture
def alice(db: None) -> Any:
    return UserFactory(username="alice")


@pytest.fixture
def bob(db: None) -> Any:
    return UserFactory(username="bob")


@pytest.fixture
def charlie(db: None) -> Any:
    return UserFactory(username="charlie")


@pytest.fixture
def dana(db: None) -> Any:
    return UserFactory(username="dana", is_staff=True, is_superuser=True)


@pytest.fixture
def folder(db: None) -> Iterator[Folder]:
    """The folder region, with nothing in it yet."""
    world = Folder()
    yield world
    shutil.rmtree(world.root)


@pytest.fixture(scope="session")
def guest_cache(pytestconfig: pytest.Config) -> Path:
    """What the tiny guest is made of, in pytest's own cache: fetched once, `pytest --cache-clear` forgets it."""
    assert pytestconfig.cache is not None
    return pytestconfig.cache.mkdir("guest")

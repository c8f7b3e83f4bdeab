"""Shared by the tests of the demo: where the guest's packages are kept from one run to the next."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def guest_cache(pytestconfig: pytest.Config) -> Path:
    """In pytest's own cache: fetched from the network once, `pytest --cache-clear` forgets it."""
    assert pytestconfig.cache is not None
    return pytestconfig.cache.mkdir("guest")

"""The regions the engines are tried on. Everything is made below temporary directories and ends with the tests."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from console.libvirtd import PrivateLibvirtd
from tests.engines.worlds import FolderWorld, Guest, LibvirtWorld, World


@pytest.fixture(scope="session")
def libvirtd() -> Iterator[PrivateLibvirtd]:
    """A private libvirtd; its machines are destroyed and it is stopped at the end."""
    if os.geteuid() == 0:
        pytest.fail("run the tests as an ordinary user: make test does")
    # Not pytest's directory: its path is too long for sockets.
    root = Path(tempfile.mkdtemp(prefix="sf-", dir="/tmp"))
    daemon = PrivateLibvirtd(root)
    daemon.start()
    try:
        daemon.wait_ready()
        yield daemon
        import libvirt

        conn = libvirt.open(daemon.uri)
        for dom in conn.listAllDomains(libvirt.VIR_CONNECT_LIST_DOMAINS_ACTIVE):
            dom.destroy()
        conn.close()
    finally:
        daemon.stop()
        shutil.rmtree(root)


@pytest.fixture
def libvirt_world(libvirtd: PrivateLibvirtd, tmp_path: Path) -> Iterator[LibvirtWorld]:
    world = LibvirtWorld(tmp_path, libvirtd)
    yield world
    world.clear()


@pytest.fixture(params=["folder", pytest.param("libvirt", marks=pytest.mark.qemu)])
def world(request: pytest.FixtureRequest, tmp_path: Path) -> World:
    """Every engine there is, one after the other."""
    if request.param == "folder":
        return FolderWorld(tmp_path)
    world: LibvirtWorld = request.getfixturevalue("libvirt_world")
    return world


@pytest.fixture(scope="session")
def booted(libvirtd: PrivateLibvirtd, tmp_path_factory: pytest.TempPathFactory) -> Guest:
    place = tmp_path_factory.mktemp("guest")
    return Guest(LibvirtWorld(place, libvirtd), place)


@pytest.fixture
def guest(booted: Guest) -> Iterator[Guest]:
    """A running machine that counts on its disks, and an empty image store."""
    booted.ready()
    yield booted
    for path in booted.world.store.iterdir():
        booted.world.engine().discard(path.name.removesuffix(".creating"), None)
    booted.rest()

"""The demo's machines on a libvirt region: made once, shut down and started with the console.

Only domains whose names begin with ``stillframe-`` are touched: the demo's own and the captures' stand-ins.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from compute.engines.libvirt import binding as libvirt
from compute.engines.libvirt.domain import DiskSource, domain_xml

PREFIX = "stillframe-"
PRESS_AGAIN = 3  # seconds
log = logging.getLogger(__name__)


def define(
    options: Mapping[str, Any], name: str, *, uuid: str, memory_mib: int, disks: Iterable[DiskSource], running: bool
) -> None:
    """Make sure that the machine exists, and that it runs if it should. An existing definition is left as it is."""
    with _connected(options) as connection:
        known = {domain.name(): domain for domain in connection.listAllDomains()}
        domain = known.get(PREFIX + name)
        if domain is None:
            console = Path(options["DISKS"]) / f"{name}.console.log"
            domain = connection.defineXML(
                domain_xml(
                    name=PREFIX + name, uuid=uuid, memory_mib=memory_mib, vcpus=1, disks=disks, console_log=console
                )
            )
        if running and not domain.isActive():
            domain.create()


def power_off(options: Mapping[str, Any], grace_seconds: float = 20) -> list[str]:
    """Shut our machines down, by force those that are not off after ``grace_seconds``; the names of those that ran.

    They are written down before anything is asked of them, for ``power_on``. Stand-ins end at once.
    """
    with _connected(options) as connection:
        ran = sorted(domain.name() for domain in _active(connection) if domain.isPersistent())
        if ran:
            # An earlier call may have been interrupted after it had shut some of them down.
            _ran(options).write_text(json.dumps(sorted({*ran, *_recorded(options)})))
        deadline = time.monotonic() + grace_seconds
        pressed = float("-inf")
        while (active := _active(connection)) and time.monotonic() < deadline:
            # Pressed again now and then: a guest that still boots does not notice.
            press = time.monotonic() - pressed > PRESS_AGAIN
            if press:
                pressed = time.monotonic()
            for domain in active:
                with _unless_gone():
                    if not domain.isPersistent():
                        domain.destroy()
                    elif press:
                        # The power button, not the agent: a hung agent would hold up all the others.
                        domain.shutdownFlags(libvirt.VIR_DOMAIN_SHUTDOWN_ACPI_POWER_BTN)
            time.sleep(0.1)
        for domain in active:
            log.warning("%s did not shut down within %s s: forced", domain.name(), grace_seconds)
            with _unless_gone():
                domain.destroy()
    return ran


def power_on(options: Mapping[str, Any]) -> None:
    """Start those that ran before ``power_off``. One that does not start is logged and left off."""
    with _connected(options) as connection:
        ran = _recorded(options)
        for domain in _ours(connection, libvirt.VIR_CONNECT_LIST_DOMAINS_INACTIVE):
            if domain.name() in ran:
                try:
                    domain.create()
                except libvirt.libvirtError:
                    log.exception("%s does not start", domain.name())
    _ran(options).unlink(missing_ok=True)


def _ran(options: Mapping[str, Any]) -> Path:
    return Path(options["DISKS"]) / "ran.json"


def _recorded(options: Mapping[str, Any]) -> list[str]:
    try:
        names: list[str] = json.loads(_ran(options).read_bytes())
    except FileNotFoundError:
        return []
    return names


def _active(connection: Any) -> list[Any]:
    return _ours(connection, libvirt.VIR_CONNECT_LIST_DOMAINS_ACTIVE)


def _ours(connection: Any, flags: int) -> list[Any]:
    return [domain for domain in connection.listAllDomains(flags) if domain.name().startswith(PREFIX)]


@contextmanager
def _connected(options: Mapping[str, Any]) -> Iterator[Any]:
    # Errors are raised; the library would print them as well.
    libvirt.registerErrorHandler(lambda _context, _error: None, None)
    connection = libvirt.open(options["URI"])
    try:
        yield connection
    finally:
        connection.close()


@contextmanager
def _unless_gone() -> Iterator[None]:
    try:
        yield
    except libvirt.libvirtError as error:
        if error.get_error_code() not in (libvirt.VIR_ERR_NO_DOMAIN, libvirt.VIR_ERR_OPERATION_INVALID):
            raise

"""Finding domains, and what state they are in."""

from __future__ import annotations

from typing import Any

from compute.engines.base import EngineError, Power
from compute.engines.libvirt import binding as lv


def find(conn: Any, uuid: str) -> Any | None:
    """The domain, or None when libvirt answers that there is none."""
    try:
        return conn.lookupByUUIDString(uuid)
    except lv.libvirtError as error:
        if not gone(error):
            raise
        return None


def gone(error: Any) -> bool:
    """Does the error say that there is no such domain (any more)?"""
    return bool(error.get_error_code() == lv.VIR_ERR_NO_DOMAIN)


def present(conn: Any, uuid: str) -> Any:
    """The domain; ``EngineError("instance-vanished")`` when there is none."""
    dom = find(conn, uuid)
    if dom is None:
        raise EngineError("instance-vanished")
    return dom


def power(dom: Any) -> Power:
    state, reason = dom.state()
    match state:
        case lv.VIR_DOMAIN_RUNNING | lv.VIR_DOMAIN_BLOCKED:
            return Power.RUNNING
        case lv.VIR_DOMAIN_PAUSED if reason == lv.VIR_DOMAIN_PAUSED_STARTING_UP:
            return Power.CHANGING
        case lv.VIR_DOMAIN_PAUSED | lv.VIR_DOMAIN_PMSUSPENDED:
            return Power.PAUSED
        case lv.VIR_DOMAIN_SHUTOFF | lv.VIR_DOMAIN_CRASHED:
            return Power.STOPPED
        case _:
            return Power.CHANGING

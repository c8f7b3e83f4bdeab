"""The guest agent: untrusted, often absent, sometimes hung. Nothing here raises for what an agent does or omits."""

from __future__ import annotations

import json
from typing import Any

from compute.engines.libvirt import binding as lv

ASK_SECONDS = 2
FREEZE_SECONDS = 5
LONGEST_NAME = 128


def asked(dom: Any) -> tuple[bool, str]:
    """Does the agent answer, and what does it call its system ("" when it does not say)?"""
    try:
        told = _command(dom, "guest-get-osinfo")
        system = told.get("pretty-name", "") if isinstance(told, dict) else ""
    except lv.libvirtError as error:
        # While it is frozen, or when it is old, it refuses this question and still answers that it is there.
        return not _silent(error) and _pings(dom), ""
    except _NoAgent:
        return False, ""
    return True, _printable(system)


def freeze(dom: Any) -> int | None:
    """Freeze the guest's file systems; how many were. None when that is unknown: a thaw is owed all the same."""
    try:
        dom.agentSetResponseTimeout(FREEZE_SECONDS, 0)
        return int(dom.fsFreeze())
    except lv.libvirtError:
        return None


def thaw(dom: Any) -> int | None:
    """Thaw the guest's file systems; how many were frozen. None when it did not answer."""
    try:
        dom.agentSetResponseTimeout(FREEZE_SECONDS, 0)
        return int(dom.fsThaw())
    except lv.libvirtError:
        return None


def thawed(dom: Any) -> bool:
    """Thaw the guest; True once it answered that it is thawed, or when it is switched off or has no agent at all.

    A freeze that timed out may still happen, so silence is no answer; nor is it of one that is paused.
    """
    try:
        dom.agentSetResponseTimeout(FREEZE_SECONDS, 0)
        try:
            dom.fsThaw()
        except lv.libvirtError as error:
            # It answered, with an error of its own: then what it says of its state counts.
            if error.get_error_code() != lv.VIR_ERR_INTERNAL_ERROR:
                raise
        return bool(_command(dom, "guest-fsfreeze-status") == "thawed")
    except _NoAgent:
        return False
    except lv.libvirtError as error:
        if error.get_error_code() == lv.VIR_ERR_OPERATION_INVALID:
            # "Not running", libvirt says of one that is paused as well: it will be as frozen as it was when it goes on.
            return not dom.isActive()
        never = (lv.VIR_ERR_ARGUMENT_UNSUPPORTED, lv.VIR_ERR_NO_DOMAIN)
        # An agent that knows neither question knows none that freezes.
        if error.get_error_code() in (*never, lv.VIR_ERR_INTERNAL_ERROR):
            return True
        if error.get_error_code() == lv.VIR_ERR_AGENT_UNRESPONSIVE:
            return False
        raise


def _pings(dom: Any) -> bool:
    try:
        _command(dom, "guest-ping")
    except (lv.libvirtError, _NoAgent):
        return False
    return True


class _NoAgent(Exception):
    """What answers there does not speak the agent's language."""


def _command(dom: Any, name: str) -> Any:
    import libvirt_qemu

    answer = libvirt_qemu.qemuAgentCommand(dom, json.dumps({"execute": name}), ASK_SECONDS, 0)
    try:
        return json.loads(answer)["return"]
    except (ValueError, LookupError, TypeError) as error:
        raise _NoAgent from error


def _silent(error: Any) -> bool:
    return error.get_error_code() in (lv.VIR_ERR_AGENT_UNRESPONSIVE, lv.VIR_ERR_ARGUMENT_UNSUPPORTED)


def _printable(text: object) -> str:
    # The guest chooses it, and it is shown to people.
    return "".join(character for character in str(text) if character.isprintable())[:LONGEST_NAME]

"""A guest's agent as a client that is not ours asks it, and one that writes down how long it kept files frozen."""

from __future__ import annotations

import base64
import json
from typing import Any

# The files of a guest whose agent has a hook, which can also be slow: each freeze and thaw, by the guest's own clock.
FREEZES = "/run/frozen"
FILES = {
    "/etc/init.d/agent": b"""#!/bin/sh
export PATH=/bin:/sbin:/usr/sbin
chmod 755 /etc/hook
while :; do
    for port in /sys/class/virtio-ports/vport*; do
        if [ "$(cat "$port/name" 2>/dev/null)" = org.qemu.guest_agent.0 ]; then
            exec qemu-ga -p "/dev/${port##*/}" -t /run -l /run/qemu-ga.log -F/etc/hook
        fi
    done
    usleep 100000
done
""",
    "/etc/hook": b"""#!/bin/sh
export PATH=/bin
read -r up idle </proc/uptime
if [ "$1" = freeze ]; then
    [ -e /run/slow ] && sleep "$(cat /run/slow)" && read -r up idle </proc/uptime
    rm -f /run/slow
fi
echo "$1 $up" >>/run/frozen
""",
}


def ask(dom: Any, verb: str, **arguments: Any) -> Any:
    """What it returns. Raises libvirtError when it does not within ten seconds."""
    import libvirt_qemu

    question = json.dumps({"execute": verb, "arguments": arguments} if arguments else {"execute": verb})
    return json.loads(libvirt_qemu.qemuAgentCommand(dom, question, 10, 0))["return"]


def is_frozen(dom: Any) -> bool:
    return bool(ask(dom, "guest-fsfreeze-status") == "frozen")


def read(dom: Any, path: str) -> str:
    """A small file of the guest; "" when it is not there."""
    import libvirt

    try:
        file = ask(dom, "guest-file-open", path=path)
    except libvirt.libvirtError:
        return ""
    told = ask(dom, "guest-file-read", handle=file, count=1 << 16)
    ask(dom, "guest-file-close", handle=file)
    return base64.b64decode(told["buf-b64"]).decode()


def freezes(dom: Any) -> list[float]:
    """How many seconds each freeze since boot has lasted, as the guest saw it."""
    began, lasted = None, []
    for line in read(dom, FREEZES).splitlines():
        what, up = line.split()
        if what == "freeze":
            began = float(up)
        elif began is not None:
            lasted.append(float(up) - began)
            began = None
    assert began is None, "it is frozen still"
    return lasted


def forget_freezes(dom: Any) -> None:
    ask(dom, "guest-file-close", handle=ask(dom, "guest-file-open", path=FREEZES, mode="w"))

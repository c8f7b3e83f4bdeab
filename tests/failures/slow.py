"""A worker whose copy of one disk stands nearly still from the first: ``python -m tests.failures.slow DEVICE ID``.

For disks so small that they are copied before anybody outside could slow that down (see ``place.Slowly``).
"""

from __future__ import annotations

import sys
from typing import Any

import django


def main(device: str, operation: str) -> None:
    import libvirt

    django.setup()
    from compute.engines.libvirt import capture
    from compute.operations import run

    backup = capture._backup

    def slowly(dom: Any, facts: Any, targets: Any) -> None:
        backup(dom, facts, targets)
        dom.blockJobSetSpeed(device, 64 << 10, libvirt.VIR_DOMAIN_BLOCK_JOB_SPEED_BANDWIDTH_BYTES)

    capture._backup = slowly
    run(operation)


if __name__ == "__main__":
    main(*sys.argv[1:])

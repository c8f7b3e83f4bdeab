"""A worker that stops, or dies, right before a named call: ``python -m tests.failures.stuck CALL SIGNAL OPERATION``.

The first time only; what it does before and, if it goes on, after, is the product.
"""

from __future__ import annotations

import os
import signal
import sys
from typing import Any

import django


def main(call: str, number: str, operation: str) -> None:
    django.setup()
    from compute.engines.libvirt import LibvirtEngine, capture
    from compute.operations import run

    # "_backup" lies between a freeze and its thaw; "versions" is asked for when all is sealed, before the last write.
    owner: Any = capture if call == "_backup" else LibvirtEngine
    original = getattr(owner, call)

    def stuck(*args: Any, **kwargs: Any) -> Any:
        setattr(owner, call, original)
        os.kill(os.getpid(), signal.Signals[number])
        return original(*args, **kwargs)

    setattr(owner, call, stuck)
    run(operation)


if __name__ == "__main__":
    main(*sys.argv[1:])

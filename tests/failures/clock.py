"""``python -m tests.failures.clock MODULE …``: the module, an hour ahead until SIGUSR1: then its clock steps back.

Only what it reads as the time of day; what counts seconds goes on counting, as under a real step.
"""

from __future__ import annotations

import runpy
import signal
import sys
from datetime import UTC, datetime, timedelta

import time_machine

if __name__ == "__main__":
    ahead = time_machine.travel(datetime.now(UTC) + timedelta(hours=1))
    ahead.start()
    signal.signal(signal.SIGUSR1, lambda *_: ahead.stop())
    del sys.argv[0]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)

"""``python -m tests.kill``: play the matrix and print its table. It closes on ``N passed, N failed``.

Narrowed with ``--kind``, ``--phase``, ``--point``, ``--victim`` and ``--fault`` (shell patterns); ``--without`` takes a
mechanism out of the product first, to see which cells notice.
"""

import os
import sys

import django

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "tests.settings")
django.setup()

if __name__ == "__main__":
    from tests.kill.table import main

    sys.exit(main())

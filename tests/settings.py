"""console.settings over directories and a Valkey of this test process's own, whatever the caller's environment says."""

import os
import tempfile
from pathlib import Path

HOME = Path(tempfile.mkdtemp(prefix="stillframe-test-"))

for name in ("SECRET_KEY", "ALLOWED_HOSTS", "DATABASE_URL", "ENGINES_FILE"):
    os.environ.pop(name, None)
os.environ.update(
    STILLFRAME_ENV="development",
    STILLFRAME_DATA=str(HOME / "data"),
    STILLFRAME_SOCKETS=str(HOME / "s"),
    REDIS_URL=f"unix://{HOME}/s/valkey.sock",
    ENGINE="folder",
)

from console.settings import *  # noqa: E402, F403

# A file, so that workers and browsers' servers, which are other processes or threads, see the same rows.
DATABASES["default"]["TEST"] = {"NAME": str(HOME / "test.sqlite3")}  # noqa: F405
PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]

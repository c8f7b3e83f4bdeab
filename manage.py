#!/usr/bin/env python3
"""Django's command line, with a private Valkey behind the commands that need a queue."""

import os
import sys


def main() -> None:
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "console.settings")
    from django.core.management import execute_from_command_line

    command = sys.argv[1] if len(sys.argv) > 1 else ""
    if command in ("runserver", "rqworker", "keeper"):
        from django.conf import settings

        from console import valkey

        # Under `make run` the supervisor has one running.
        if settings.MODE == "development" and settings.PRIVATE_REDIS:
            valkey.ensure(settings.SOCKETS, settings.DATA)
    if command == "runserver":
        from console import translations

        translations.compile_all()
    execute_from_command_line(sys.argv)


if __name__ == "__main__":
    main()

#!/usr/bin/env python3
"""Django's command line, with a private Valkey behind the commands that need a queue."""

import os
import sys


def main() -> None:
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "console.settings")
    from django.core.management import execute_from_command_line

    if {"runserver", "rqworker", "keeper"} & set(sys.argv[1:2]):
        from django.conf import settings

        from console import valkey

        if settings.PRIVATE_REDIS:
            valkey.ensure(settings.SOCKETS, settings.DATA)
    execute_from_command_line(sys.argv)


if __name__ == "__main__":
    main()

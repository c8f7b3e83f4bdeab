from django.apps import AppConfig


class ConsoleConfig(AppConfig):
    """Accounts, commands and translations; the things themselves live in `compute` and `images`."""

    name = "console"

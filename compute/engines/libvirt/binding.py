"""The libvirt binding, loaded at its first use: the web reads the engine's class and needs none of it."""

from __future__ import annotations

from importlib import import_module
from typing import Any


def __getattr__(name: str) -> Any:
    return getattr(import_module("libvirt"), name)

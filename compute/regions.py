"""Region name → engine, the way Django loads storages: ``ENGINES = {region: {"BACKEND": path, "OPTIONS": {…}}}``."""

from __future__ import annotations

import logging
import os
from functools import cache

from django.conf import settings
from django.utils.module_loading import import_string

from compute.engines.base import Abilities, Engine, Unreachable

log = logging.getLogger(__name__)


def engine_for(region: str) -> Engine:
    """The engine of a configured region. One object per process: connections never cross a fork.

    Raises ``Unreachable`` when it cannot be made: a region whose settings are wrong is one that does not answer.
    """
    try:
        return _engine(region, os.getpid())
    except Exception as error:
        log.exception("region %s: its engine cannot be made", region)
        raise Unreachable(said=str(error)) from error


def abilities_of(region: str) -> Abilities:
    """What a region can do. Reads the class only: no connection, fit for the web."""
    backend: type[Engine] = import_string(settings.ENGINES[region]["BACKEND"])
    return backend.abilities


@cache
def _engine(region: str, pid: int) -> Engine:
    entry = settings.ENGINES[region]
    backend: type[Engine] = import_string(entry["BACKEND"])
    return backend(region, entry.get("OPTIONS", {}))

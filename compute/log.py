"""Whose log line it is: what is written while an operation is at hand carries its id."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_at_hand: ContextVar[str] = ContextVar("operation", default="-")


@contextmanager
def about(operation: str) -> Iterator[None]:
    """Lines written inside are about this operation."""
    token = _at_hand.set(operation)
    try:
        yield
    finally:
        _at_hand.reset(token)


def at_hand() -> str:
    """The id of the operation at hand, or "-"."""
    return _at_hand.get()


class OperationFilter(logging.Filter):
    """Lets every line pass and names its operation, unless ``extra={"operation": id}`` has said it."""

    def filter(self, record: logging.LogRecord) -> bool:
        if not hasattr(record, "operation"):
            record.operation = at_hand()
        return True

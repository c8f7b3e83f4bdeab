"""A refusal is an answer, not an accident: a code, its data, and no traceback (R22: status 422)."""

from __future__ import annotations

from typing import Any

from compute.reasons import Reason, say


class Refused(Exception):
    """The verb is not possible now. ``code`` names a sentence in ``compute.reasons``; ``data`` fills it."""

    def __init__(self, code: str, **data: Any) -> None:
        super().__init__(code)
        self.code = code
        self.data = data

    @property
    def reason(self) -> Reason:
        return {"code": self.code, "data": self.data}

    def __str__(self) -> str:
        return say(self.reason)


class Busy(Refused):
    """An operation holds the thing (R12)."""


class QuotaExceeded(Refused):
    """Used, needed and limit of one resource (R5)."""


class NotAllowed(Refused):
    """Seen, but not theirs to do (R22: status 403)."""


class Conflict(Refused):
    """Someone else moved it first."""

    def __init__(self, code: str = "moved-first", **data: Any) -> None:
        super().__init__(code, **data)

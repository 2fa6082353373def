"""A line in the log for each call that was refused or failed: what, how and why, and nothing of whoever called.

A flood of refusals must not fill the disk: of each level a second has so many lines, and then one with a count.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
import re

_log = logging.getLogger(__name__)

LINES = 20
"""So many a second, of refusals and of failures each."""

SECONDS = 1.0

_FAILED = {"INTERNAL", "UNKNOWN", "DATA_LOSS"}
_REASON = re.compile(r"([A-Z][A-Z_]{2,63})(?:: |$)")


class CallLog:
    """Writes the lines."""

    def __init__(self) -> None:
        self._refused = _Bounded(logging.INFO, "a call was refused")
        self._failed = _Bounded(logging.ERROR, "a call failed")

    def ended(self, method: str, status: str, details: str, seconds: float) -> None:
        """A call ended with *status*, other than well. Of its *details* the reason alone is written: what follows it
        may repeat what the caller sent."""
        reason = _REASON.match(details)
        fields = {
            "method": method,
            "status": status,
            "reason": reason[1] if reason else "",
            "milliseconds": round(seconds * 1_000, 1),
        }
        (self._failed if status in _FAILED else self._refused).write(fields)


class _Bounded:
    """Lines of one level, at most LINES in the SECONDS after the first of them."""

    def __init__(self, level: int, message: str) -> None:
        self._level = level
        self._message = message
        self._count = 0

    def write(self, fields: dict[str, object]) -> None:
        if not _log.isEnabledFor(self._level):
            return
        if not self._count:
            # Without the call's context: the count is no single call's.
            asyncio.get_running_loop().call_later(SECONDS, self._begin_anew, context=contextvars.Context())
        self._count += 1
        if self._count <= LINES:
            _log.log(self._level, self._message, extra={"fields": fields})

    def _begin_anew(self) -> None:
        unsaid, self._count = self._count - LINES, 0
        if unsaid > 0:
            _log.log(self._level, "%s, and %d more within the second", self._message, unsaid)

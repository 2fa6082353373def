"""Logs as JSON lines on standard error, each with the id of its request, none with a secret."""

from __future__ import annotations

import contextvars
import json
import logging
import re
import sys
from datetime import UTC, datetime

request_id: contextvars.ContextVar[str] = contextvars.ContextVar("request_id", default="")
"""The id of the call being served; in every log line and audit row of it."""

# Texts that must not stand in a log are never passed to one; this net is for the text of foreign exceptions.
_SECRET = re.compile(r"eyJ[A-Za-z0-9_-]{8,}[A-Za-z0-9_.-]*|id[srkc]_[0-9A-Za-z]{8,}|\$argon2id\$[^\s'\"]+")
_REDACTED = "[redacted]"


class JsonFormatter(logging.Formatter):
    """One line, one object: time, level, logger, message, request_id, and exception where there is one.

    A record's `fields`, a mapping, stand beside them.
    """

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": redact(record.getMessage()),
        }
        if request_id.get():
            line["request_id"] = request_id.get()
        line |= getattr(record, "fields", {})
        if record.exc_info:
            line["exception"] = redact(self.formatException(record.exc_info))
        return json.dumps(line, ensure_ascii=False)


def redact(text: str) -> str:
    """*text* without what looks like a token, a secret or a password hash."""
    return _SECRET.sub(_REDACTED, text)


def configure(level: str) -> None:
    """Send all logs of the process to standard error."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    for chatty, least in (("grpc", logging.INFO), ("alembic", logging.WARNING)):
        logging.getLogger(chatty).setLevel(max(least, logging.getLogger().level))

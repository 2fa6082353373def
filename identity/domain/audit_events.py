"""Events of the audit log as they are stored, sealed, listed and watched. Event ids are 1, 2, 3, in commit order."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass

OK = "ok"
REFUSED = "refused"
"""As a filter: every outcome but OK."""

SALT_BYTES = 16


@dataclass(frozen=True, slots=True)
class Personal:
    """What an event says of a person. It lies beside the sealed row, so that it can be erased."""

    origin: str
    user_agent: str
    note: str
    name_hash: str = ""  # of the name that a refused attempt gave; "" for others

    def hash(self, salt: bytes) -> bytes:
        """What the sealed row keeps of it: says nothing once *salt*, which is erased with it, is gone."""
        return hashlib.sha256(salt + canonical([self.origin, self.user_agent, self.note, self.name_hash])).digest()


@dataclass(frozen=True, slots=True)
class AuditEvent:
    """One event. *personal* is None once it was erased."""

    event_id: int
    time_ms: int
    action: str
    outcome: str
    account_id: str
    grant_id: str
    caller_account_id: str
    caller_grant_id: str
    subject: str
    request_id: str
    personal: Personal | None
    attempt_count: int  # 1, but for refused attempts, which are counted


@dataclass(frozen=True, slots=True)
class AuditFilter:
    """Which events are wanted; "" and None for any."""

    start_ms: int | None = None  # included
    end_ms: int | None = None  # excluded
    action_prefix: str = ""
    outcome: str = ""  # OK, REFUSED or a reason
    account_id: str = ""
    caller_account_id: str = ""
    grant_id: str = ""
    origin: str = ""
    request_id: str = ""


@dataclass(frozen=True, slots=True)
class AuditPage:
    """Some events, and the event id to go on from: before it or after it, as was asked; None at the end.

    A page may be short, even empty, and not the last: how much is looked through for it is bounded.
    """

    events: list[AuditEvent]
    next_id: int | None


def canonical(values: Sequence[str | int | bytes | None]) -> bytes:
    """The one way in which values become bytes to be hashed: no two lists of values have the same."""
    plain = [[value.hex()] if isinstance(value, bytes) else value for value in values]
    return json.dumps(plain, separators=(",", ":")).encode("ascii")

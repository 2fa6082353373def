"""What watches over the rest: the audit log with its seals, and the count of failed log-ins."""

from __future__ import annotations

from typing import Protocol

from ..audit_events import AuditFilter, AuditPage
from ..audit_seals import Seal, SealedRow, SealHead
from ..throttle import Attempt, Reservation
from ..values import (
    Act,
)


class AuditStore(Protocol):
    """The audit log: what was refused goes in, everything comes out."""

    async def note_refusal(
        self,
        action: str,
        reason: str,
        name_hash: str,
        act: Act,
        account_id: str | None = None,
        subject: str = "",
    ) -> None:
        """Record a refused attempt: at most one row per name (where none was given: account and caller's grant),
        subject, origin, reason and minute, which counts.

        *account_id*: at whose credential, or by whom, it was made, where that is known; *subject*: what was refused.
        """

    async def list_page(self, wanted: AuditFilter, before: int | None, limit: int) -> AuditPage:
        """At most *limit* events with ids below *before*, the newest first. next_id: give it as *before*."""

    async def read_after(self, wanted: AuditFilter, after: int, limit: int) -> AuditPage:
        """At most *limit* events with ids above *after*, the oldest first. next_id: give it as *after*; never None."""

    async def newest_id(self) -> int:
        """The highest id that an event ever had, 0 for none."""


class AuditSealStore(Protocol):
    """The seals of the audit log."""

    async def find_end(self) -> tuple[SealHead | None, Seal | None]:
        """The head and the newest seal, read at one instant."""

    async def rows_after(self, event_id: int, limit: int) -> list[SealedRow]:
        """At most *limit* rows after *event_id*, as they are sealed, in order."""

    async def add(self, seal: Seal, head: SealHead | None, new_head: SealHead) -> bool:
        """Append *seal* where *head* is still the head; whether it was."""

    async def sealed_before(self, removed_through: int, time_ms: int, event_limit: int) -> Seal | None:
        """The last of the seals next after *removed_through* that are all older than *time_ms* and hold together at
        most *event_limit* events, or one seal's; None if the next is younger.
        """

    async def remove_events(self, head: SealHead, new_head: SealHead, last: Seal) -> None:
        """Remove all events to the end of *last*, where *head* is still the head."""


class ThrottleStore(Protocol):
    """Counts failed log-ins, for every replica together; counts survive a restart."""

    async def reserve(self, attempt: Attempt) -> Reservation:
        """Count a failure in the place's bucket if the place is known, else in the name's, and in the origin's.

        Raises Throttled, and counts nowhere, where one of them is to wait.
        """

    async def succeeded(self, reservation: Reservation) -> None:
        """Uncount it, make the place known and empty its bucket. What others have counted since stays."""

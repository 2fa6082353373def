"""What the parts of the service tell of themselves while they work, for whoever measures."""

from __future__ import annotations

from typing import Protocol


class Meter(Protocol):
    """Told at once and on the event loop or a thread of a pool: it returns within microseconds and raises nothing."""

    def hashed(self, seconds: float) -> None:
        """A password was hashed; the time includes the wait for a thread."""

    def hash_refused(self) -> None:
        """A password found no free place in the queue."""

    def store_began(self, kind: str) -> None:
        """A piece of work was given to the database; *kind*: read or write."""

    def store_ended(self, kind: str, seconds: float, *, is_failed: bool) -> None:
        """It ended, after its wait and its work. Failed: the database did not answer, or has too much to do."""

    def job_succeeded(self, name: str) -> None:
        """A piece of background work ended well."""


class NoMeter:
    """Measures nothing."""

    def hashed(self, seconds: float) -> None:
        pass

    def hash_refused(self) -> None:
        pass

    def store_began(self, kind: str) -> None:
        pass

    def store_ended(self, kind: str, seconds: float, *, is_failed: bool) -> None:
        pass

    def job_succeeded(self, name: str) -> None:
        pass

"""The newest changes, so that a stream can be resumed and a snapshot need not be of this very moment."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from itertools import islice

from identity.feed import events
from identity.feed.events import Change

RESUME_ENTRIES = 100_000
_REMEMBERED = 64


class Log:
    """Changes without a gap up to version *head*; the oldest make room."""

    def __init__(self) -> None:
        self.head = 0
        self._changes: deque[Change] = deque(maxlen=RESUME_ENTRIES)
        self._serialised: dict[int, list[bytes]] = {}

    def start(self, version: int) -> None:
        """Begin anew: the next change is the one after *version*."""
        self.head = version
        self._changes.clear()
        self._serialised.clear()

    def extend(self, changes: Sequence[Change]) -> None:
        """Append changes that follow."""
        self._changes.extend(changes)
        self.head = changes[-1][0]
        self._serialised.clear()

    def holds_since(self, version: int) -> bool:
        """Whether every change after *version* is held."""
        return self.head - len(self._changes) <= version <= self.head

    def events_since(self, version: int) -> list[bytes]:
        """What a stream lacks that holds *version*. Serialised once for all that come back at the same version: after
        a restart that is the whole fleet."""
        if version not in self._serialised:
            if len(self._serialised) >= _REMEMBERED:
                self._serialised.clear()
            held_before = version - (self.head - len(self._changes))
            self._serialised[version] = events.changes(list(islice(self._changes, held_before, None)))
        return self._serialised[version]

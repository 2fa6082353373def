"""The few revocations that have a name of any length and a minimum: accounts, roles, keys."""

from __future__ import annotations

import heapq
from collections.abc import Iterator

from identity_client.trust.entries import Entry, EntryKind
from identity_client.trust.folds import Folds

_Key = tuple[EntryKind, str]


class NamedEntries:
    """Each name once: of two entries the later expiry and the higher minimum hold. One thread writes, any may read."""

    def __init__(self) -> None:
        self.folds = Folds()
        self._held: dict[_Key, Entry] = {}
        self._by_expiry: list[tuple[int, EntryKind, str]] = []
        self._through = 0

    def find(self, kind: EntryKind, name: str) -> Entry | None:
        """The entry of this name."""
        return self._held.get((kind, name))

    def add(self, entry: Entry) -> None:
        """Take up an entry, known or not."""
        if entry.expire_time <= self._through:
            return
        key = entry.kind, entry.name
        held = self._held.get(key)
        if held is not None:
            expire_time, minimum = max(held.expire_time, entry.expire_time), max(held.minimum, entry.minimum)
            entry = Entry(entry.kind, entry.name, expire_time, minimum)
            if entry == held:
                return
        record = _number(entry)  # first: what cannot be recorded must change nothing
        self._held[key] = entry
        if held is not None:
            self.folds.remove(_number(held))
        self.folds.add((record,))
        heapq.heappush(self._by_expiry, (entry.expire_time, *key))

    def expire(self, through: int) -> None:
        """Forget what expires at or before *through* (Unix seconds), which never moves back."""
        self._through = through
        self.folds.expire(through)
        while self._by_expiry and self._by_expiry[0][0] <= through:
            expire_time, kind, name = heapq.heappop(self._by_expiry)
            held = self._held.get((kind, name))
            if held is not None and held.expire_time == expire_time:  # else it was prolonged since
                del self._held[kind, name]

    def entries(self) -> Iterator[Entry]:
        """What is held now."""
        return iter(list(self._held.values()))


def _number(entry: Entry) -> int:
    return int.from_bytes(entry.record(), "big")

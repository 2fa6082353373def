"""The set of live revocations: add, look up, expire, digest.

Each entry is kept once a name: of two, the later expiry and the higher minimum hold, so the order of arrival does not
matter. The digest moves with every change, and costs nothing to read.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator

from identity_client.trust.entries import RECORD_BYTES, Entry, EntryKind

_Held = tuple[int, int]  # expire_time, minimum


class Revocations:
    """Entries that have not expired. Exact: a look-up has neither false hits nor misses."""

    def __init__(self) -> None:
        self._held: dict[EntryKind, dict[str, _Held]] = {kind: {} for kind in EntryKind}
        self._by_expiry: list[tuple[int, EntryKind, str]] = []
        self._folded = 0
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Entry]:
        for kind, names in self._held.items():
            for name, (expire_time, minimum) in names.items():
                yield Entry(kind, name, expire_time, minimum)

    def add(self, entries: Iterable[Entry]) -> None:
        """Take up *entries*, whether known or not."""
        for entry in entries:
            self._add(entry)

    def contains(self, kind: EntryKind, name: str) -> bool:
        """Whether a token, grant or key is revoked."""
        return name in self._held[kind]

    def minimum(self, kind: EntryKind, name: str) -> int:
        """The lowest good generation of an account, or policy version of a role; 0 when all are good."""
        held = self._held[kind].get(name)
        return held[1] if held else 0

    def expire(self, through: int) -> None:
        """Forget what expires at or before *through* (Unix seconds)."""
        while self._by_expiry and self._by_expiry[0][0] <= through:
            expire_time, kind, name = heapq.heappop(self._by_expiry)
            held = self._held[kind].get(name)
            if held is not None and held[0] == expire_time:  # else it was prolonged since
                self._remove(kind, name, held)

    def digest(self) -> tuple[int, str]:
        """How many entries there are, and the XOR of their records as 48 hexadecimal digits."""
        return self._count, self._folded.to_bytes(RECORD_BYTES, "big").hex()

    def _add(self, entry: Entry) -> None:
        held = self._held[entry.kind].get(entry.name)
        expire_time, minimum = entry.expire_time, entry.minimum
        if held is not None:
            expire_time, minimum = max(held[0], expire_time), max(held[1], minimum)
            if held == (expire_time, minimum):
                return
            self._remove(entry.kind, entry.name, held)
        self._held[entry.kind][entry.name] = (expire_time, minimum)
        self._fold(entry.kind, entry.name, (expire_time, minimum))
        self._count += 1
        heapq.heappush(self._by_expiry, (expire_time, entry.kind, entry.name))

    def _remove(self, kind: EntryKind, name: str, held: _Held) -> None:
        del self._held[kind][name]
        self._fold(kind, name, held)
        self._count -= 1

    def _fold(self, kind: EntryKind, name: str, held: _Held) -> None:
        self._folded ^= int.from_bytes(Entry(kind, name, *held).record(), "big")

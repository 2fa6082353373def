"""Count and XOR of records that expire, without a second look at any of them."""

from __future__ import annotations

import heapq
from collections.abc import Iterable

_EXPIRY_MASK = 2**32 - 1


class Folds:
    """How many records there are, and the XOR of all, kept by expiry so that what expires can be taken out again.

    A record is an integer whose low 32 bits are its expiry (Unix seconds). Memory grows with the number of different
    expiries, not of records: tokens live for an hour at most, so a few thousand.
    """

    __slots__ = ("_counts", "_expiries", "_folded", "count", "folded")

    def __init__(self) -> None:
        self.count = 0
        self.folded = 0
        self._counts: dict[int, int] = {}
        self._folded: dict[int, int] = {}
        self._expiries: list[int] = []  # a heap of the keys of both

    def add(self, records: Iterable[int]) -> None:
        """Take up records that are not held yet."""
        counts, folded = self._counts, self._folded
        for record in records:
            expire_time = record & _EXPIRY_MASK
            if expire_time in counts:
                counts[expire_time] += 1
                folded[expire_time] ^= record
            else:
                counts[expire_time] = 1
                folded[expire_time] = record
                heapq.heappush(self._expiries, expire_time)
            self.count += 1
            self.folded ^= record

    def remove(self, record: int) -> None:
        """Take out a record that was added and has not expired."""
        expire_time = record & _EXPIRY_MASK
        self._counts[expire_time] -= 1
        self._folded[expire_time] ^= record
        self.count -= 1
        self.folded ^= record

    def expire(self, through: int) -> None:
        """Take out all that expires at or before *through*."""
        while self._expiries and self._expiries[0] <= through:
            expire_time = heapq.heappop(self._expiries)
            self.count -= self._counts.pop(expire_time)
            self.folded ^= self._folded.pop(expire_time)

"""The set of live revocations: add, look up, expire, digest.

Each entry is kept once a name: of two, the later expiry and the higher minimum hold, so the order of arrival does not
matter. The digest moves with every change, and costs nothing to read.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice

from identity_client.trust.entries import PACKED_KINDS, RECORD_BYTES, Batch, Entry, EntryKind, id_bytes, unpacked
from identity_client.trust.folds import Folds
from identity_client.trust.named import NamedEntries
from identity_client.trust.packed import PackedIds

_EXPIRY_BITS = 32
_CONTENT_BITS = 56  # below the id in a token's or grant's record: three zero bytes and the expiry
_KIND_BITS = 184


class Revocations:
    """Entries that have not expired. Exact: a look-up has neither false hits nor misses.

    One thread adds and expires; others may look up meanwhile. They see each entry wholly or not at all.
    """

    def __init__(self) -> None:
        self._packed = {kind: PackedIds() for kind in PACKED_KINDS}
        self._named = NamedEntries()
        self._through = 0

    def __len__(self) -> int:
        return sum(packed.folds.count for packed in self._packed.values()) + self._named.folds.count

    def __iter__(self) -> Iterator[Entry]:
        for kind, packed in self._packed.items():
            yield from (unpacked(kind, record) for record in packed.records())
        yield from self._named.entries()

    def add(self, entries: Iterable[Entry]) -> None:
        """Take up *entries* (best a Batch), whether known or not; what has expired already is left out."""
        batch = Batch.of(entries)
        self._packed[EntryKind.TOKEN].add(batch.tokens)
        self._packed[EntryKind.GRANT].add(batch.grants)
        for entry in batch.others:
            self._named.add(entry)

    def contains(self, kind: EntryKind, name: str) -> bool:
        """Whether a token, grant or key is revoked. Nothing has an empty name: an opaque bearer has no token's id."""
        packed = self._packed.get(kind)
        if packed is None:
            return self._named.find(kind, name) is not None
        return packed.folds.count > 0 and bool(name) and packed.contains(id_bytes(name))

    def minimum(self, kind: EntryKind, name: str) -> int:
        """The lowest good generation of an account, or policy version of a role; 0 when all are good."""
        held = self._named.find(kind, name)
        return held.minimum if held is not None else 0

    def expire(self, through: int) -> None:
        """Forget what expires at or before *through* (Unix seconds); an earlier time than the last is ignored."""
        if through <= self._through:
            return
        self._through = through
        for packed in self._packed.values():
            packed.expire(through)
        self._named.expire(through)

    def digest(self) -> tuple[int, str]:
        """How many entries there are, and the XOR of their records as 48 hexadecimal digits."""
        folded = self._named.folds.folded
        for kind, packed in self._packed.items():
            folded ^= _widened(kind, packed.folds)
        return len(self), folded.to_bytes(RECORD_BYTES, "big").hex()

    def batches(self, size: int) -> Iterator[Batch]:
        """What is held now, at most *size* entries at a time, tokens and grants sorted; later changes do not show."""
        tokens, grants = (self._packed[kind].records() for kind in PACKED_KINDS)
        return _batches(size, tokens, grants, self._named.entries())


def _batches(size: int, tokens: Iterator[bytes], grants: Iterator[bytes], others: Iterator[Entry]) -> Iterator[Batch]:
    while records := b"".join(islice(tokens, size)):
        yield Batch(tokens=records)
    while records := b"".join(islice(grants, size)):
        yield Batch(grants=records)
    while entries := tuple(islice(others, size)):
        yield Batch(others=entries)


def _widened(kind: EntryKind, folds: Folds) -> int:
    """The XOR of 24-byte records from that of the 20-byte ones: an odd number of them leaves the kind."""
    raw_id, expire_time = divmod(folds.folded, 1 << _EXPIRY_BITS)
    return (kind << _KIND_BITS) * (folds.count % 2) ^ raw_id << _CONTENT_BITS ^ expire_time

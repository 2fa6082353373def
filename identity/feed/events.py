"""The stream's events, serialised: the same bytes go to every stream."""

from __future__ import annotations

from collections.abc import Sequence

from identity.v1 import trust_pb2
from identity_client.trust import wire
from identity_client.trust.entries import Batch, Entry

PART_ENTRIES = 2_500
"""At 20 bytes each, a part stays below the 64 KiB message limit, and takes its receiver a millisecond."""

SIGN_OF_LIFE = trust_pb2.WatchTrustResponse().SerializeToString()
"""For streams that wait for their turn: it says nothing, and keeps the receiver from giving the stream up."""

Change = tuple[int, Entry]
"""A version and what it added."""


def snapshot_start(epoch: str, version: int, entry_count: int, digest: str) -> bytes:
    """A snapshot follows."""
    start = trust_pb2.SnapshotStart(epoch=epoch, version=version, entry_count=entry_count, digest=digest)
    return trust_pb2.WatchTrustResponse(snapshot_start=start).SerializeToString()


def snapshot_part(batch: Batch) -> bytes:
    """A part of it."""
    return trust_pb2.WatchTrustResponse(snapshot_part=wire.pack(batch)).SerializeToString()


def changes(changed: Sequence[Change]) -> list[bytes]:
    """Changes without a gap, in as few events as the message limit allows."""
    return [_change_event(changed[at : at + PART_ENTRIES]) for at in range(0, len(changed), PART_ENTRIES)]


def _change_event(changed: Sequence[Change]) -> bytes:
    message = trust_pb2.RevocationChanges(
        first_version=changed[0][0], last_version=changed[-1][0], entries=wire.pack([entry for _, entry in changed])
    )
    return trust_pb2.WatchTrustResponse(changes=message).SerializeToString()

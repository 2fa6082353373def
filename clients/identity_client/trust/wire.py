"""The trust state's messages: the same packing for the service that sends and the peers that receive."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterable

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from identity.v1 import trust_pb2 as pb
from identity_client.clock import Clock
from identity_client.tokens.keys import PublicKey, base64url
from identity_client.trust.entries import Batch, Entry, EntryKind
from identity_client.trust.state import TrustState

MAXIMUM_KEYS = 16
SLIP_SECONDS = 5.0


def pack(entries: Iterable[Entry]) -> pb.RevocationEntries:
    """*entries* (best a Batch) as one message. Raises ValueError for a name that is no id where it must be one."""
    batch = Batch.of(entries)
    message = pb.RevocationEntries(token_records=batch.tokens, grant_records=batch.grants)
    for entry in batch.others:
        match entry.kind:
            case EntryKind.ACCOUNT:
                message.accounts.add(
                    account_id=entry.name, minimum_generation=entry.minimum, expire_time=_timestamp(entry)
                )
            case EntryKind.ROLE:
                message.roles.add(role=entry.name, minimum_policy_version=entry.minimum, expire_time=_timestamp(entry))
            case EntryKind.KEY:
                message.keys.add(key_id=entry.name, expire_time=_timestamp(entry))
    return message


def unpack(message: pb.RevocationEntries) -> Batch:
    """The entries of *message*. Raises ValueError for records of another length."""
    others: list[Entry] = []
    for account in message.accounts:
        others.append(
            Entry(EntryKind.ACCOUNT, account.account_id, account.expire_time.seconds, account.minimum_generation)
        )
    for role in message.roles:
        others.append(Entry(EntryKind.ROLE, role.role, role.expire_time.seconds, role.minimum_policy_version))
    for key in message.keys:
        others.append(Entry(EntryKind.KEY, key.key_id, key.expire_time.seconds))
    return Batch(message.token_records, message.grant_records, tuple(others))


def key_set_message(issuer: str, keys: Iterable[PublicKey]) -> pb.KeySet:
    """Issuer and public keys as one message."""
    messages = [pb.PublicKey(key_id=key.key_id, x=base64url(key.x), y=base64url(key.y)) for key in keys]
    return pb.KeySet(issuer=issuer, keys=messages)


def keys_from_message(message: pb.KeySet) -> tuple[str, list[PublicKey]]:
    """-> issuer, keys. Takes only what our issuer publishes: points on P-256 under their thumbprints, each once.

    Raises ValueError.
    """
    keys = [_key(key) for key in message.keys]
    if not message.issuer or not 1 <= len(keys) <= MAXIMUM_KEYS or len({key.key_id for key in keys}) != len(keys):
        raise ValueError(f"a key set has an issuer and 1-{MAXIMUM_KEYS} different keys")
    return message.issuer, keys


class Transit:
    """How long the messages of one stream may have been under way.

    data_age is true when a heartbeat is sent; a path that delays messages more and more would make old news look fresh.
    The sender made its first heartbeat after we asked for the stream, and every later one as much later as its own
    clock says. That bounds the delay without comparing our clock with its.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._asked_at = clock.monotonic()
        self._first_time: float | None = None
        self._first_delay = 0.0
        self.has_slipped = False
        """Whether the delay has grown so much that a new stream would know better."""

    def delay_seconds(self, heartbeat: pb.Heartbeat) -> float:
        """The longest that *heartbeat*, which arrives now, can have taken."""
        server_time = _seconds(heartbeat.server_time)
        waited = self._clock.monotonic() - self._asked_at
        if self._first_time is None:
            self._first_time, self._first_delay = server_time, waited
        delay = max(0.0, waited - (server_time - self._first_time))
        self.has_slipped = delay > self._first_delay + SLIP_SECONDS
        return delay


def apply_event(state: TrustState, message: pb.WatchTrustResponse, transit: Transit) -> None:
    """Feed one event of a stream to *state*. Raises TrustGap, TrustDiverged, ValueError (it makes no sense)."""
    match message.WhichOneof("event"):
        case "keys":
            state.set_keys(*keys_from_message(message.keys))
        case "snapshot_start":
            start = message.snapshot_start
            state.begin_snapshot(start.epoch, start.version, start.entry_count, start.digest)
        case "snapshot_part":
            state.add_snapshot(unpack(message.snapshot_part))
        case "changes":
            changes = message.changes
            state.apply(changes.first_version, changes.last_version, unpack(changes.entries))
        case "heartbeat":
            _apply_heartbeat(state, message.heartbeat, transit)
        case _:
            return  # an event of a later version of the contract


def _apply_heartbeat(state: TrustState, heartbeat: pb.Heartbeat, transit: Transit) -> None:
    state.heartbeat(
        epoch=heartbeat.epoch,
        version=heartbeat.version,
        server_time=_seconds(heartbeat.server_time),
        expired_through=heartbeat.expired_through.seconds,
        entry_count=heartbeat.entry_count,
        digest=heartbeat.digest,
        data_age_seconds=_seconds(heartbeat.data_age) + transit.delay_seconds(heartbeat),
    )


def _key(message: pb.PublicKey) -> PublicKey:
    try:
        x, y = (base64.b64decode(text + "=", altchars=b"-_", validate=True) for text in (message.x, message.y))
    except binascii.Error as error:
        raise ValueError("a coordinate is base64url") from error
    key = PublicKey.from_coordinates(x, y)
    if key.key_id != message.key_id:
        raise ValueError("a key's name is its RFC 7638 thumbprint")
    return key


def _timestamp(entry: Entry) -> Timestamp:
    return Timestamp(seconds=entry.expire_time)


def _seconds(time: Timestamp | Duration) -> float:
    return time.seconds + time.nanos / 1e9

"""The trust state's messages: packed, unpacked, and refused where they make no sense."""

from __future__ import annotations

import hashlib

import pytest

from identity.v1 import trust_pb2 as pb
from identity_client.tokens.keys import PublicKey, base64url, thumbprint
from identity_client.trust import wire
from identity_client.trust.entries import Entry, EntryKind, id_text
from identity_client.trust.state import TrustState
from tests.clients.issuer import ISSUER, FixedClock, Issuer

SOME_ID = id_text(b"0123456789abcdef")
ENTRIES = [
    Entry(EntryKind.TOKEN, SOME_ID, 2**32 - 1),
    Entry(EntryKind.GRANT, SOME_ID, 1),
    Entry(EntryKind.ACCOUNT, "an account", 1_900_000_000, 2**40),
    Entry(EntryKind.ROLE, "clerk", 1_900_000_000, 3),
    Entry(EntryKind.KEY, "k" * 43, 1_900_000_000),
]


@pytest.fixture
def issuer() -> Issuer:
    return Issuer(FixedClock())


def test_entries_of_every_kind_come_back_as_they_went() -> None:
    packed = wire.pack(ENTRIES).SerializeToString()
    assert list(wire.unpack(pb.RevocationEntries.FromString(packed))) == ENTRIES


def test_a_revoked_token_takes_20_bytes() -> None:
    many = [Entry(EntryKind.TOKEN, id_text(n.to_bytes(16, "big")), 1_900_000_000) for n in range(1_000)]
    assert len(wire.pack(many).SerializeToString()) < 20 * 1_000 + 8


def test_a_record_is_what_the_contract_says() -> None:
    token = ENTRIES[0].record()
    assert token == b"\x01" + b"0123456789abcdef" + b"\0\0\0" + b"\xff\xff\xff\xff"
    account = ENTRIES[2].record()
    content = hashlib.blake2b(b"an account\0" + str(2**40).encode(), digest_size=19).digest()
    assert account == b"\x03" + content + (1_900_000_000).to_bytes(4, "big")


@pytest.mark.parametrize("field", ["token_records", "grant_records"])
def test_records_of_another_length_are_refused(field: str) -> None:
    with pytest.raises(ValueError, match="20 bytes"):
        list(wire.unpack(pb.RevocationEntries(**{field: bytes(21)})))  # type: ignore[arg-type]


def test_keys_come_back_as_they_went(issuer: Issuer) -> None:
    message = wire.key_set_message(ISSUER, [issuer.public_key])
    assert wire.keys_from_message(message) == (ISSUER, [issuer.public_key])


def test_a_thumbprint_is_that_of_rfc_7638(issuer: Issuer) -> None:
    key = issuer.public_key
    members = f'{{"crv":"P-256","kty":"EC","x":"{base64url(key.x)}","y":"{base64url(key.y)}"}}'
    assert thumbprint(key.x, key.y) == base64url(hashlib.sha256(members.encode()).digest()) == key.key_id


def _spoilt(message: pb.KeySet, what: str) -> pb.KeySet:
    key = message.keys[0]
    match what:
        case "no issuer":
            message.issuer = ""
        case "no keys":
            del message.keys[:]
        case "twice":
            message.keys.append(key)
        case "too many":
            message.keys.extend(wire.key_set_message("", [Issuer(FixedClock()).public_key]).keys[0] for _ in range(16))
        case "another name":
            key.key_id = "A" * 43
        case "off the curve":
            key.y = base64url(bytes(31) + b"\1")
        case "short":
            key.x = base64url(bytes(31))
        case "no base64url":
            key.x = "!" * 43
    return message


@pytest.mark.parametrize(
    "what", ["no issuer", "no keys", "twice", "too many", "another name", "off the curve", "short", "no base64url"]
)
def test_only_what_our_issuer_publishes_is_taken_for_a_key_set(issuer: Issuer, what: str) -> None:
    message = _spoilt(wire.key_set_message(ISSUER, [issuer.public_key]), what)
    with pytest.raises(ValueError, match=r"key|coordinate|point|curve"):
        wire.keys_from_message(message)


def test_a_bad_key_set_keeps_the_keys_that_are_held(issuer: Issuer) -> None:
    state = TrustState(FixedClock())
    state.set_keys(ISSUER, [issuer.public_key])
    with pytest.raises(ValueError, match="key set"):
        wire.apply_event(state, pb.WatchTrustResponse(keys=pb.KeySet(issuer=ISSUER)), wire.Transit(FixedClock()))
    assert state.keys == (issuer.public_key,)


def test_an_event_of_a_later_contract_is_ignored(issuer: Issuer) -> None:
    state = TrustState(FixedClock())
    before = state.revision
    wire.apply_event(state, pb.WatchTrustResponse.FromString(b"\xfa\x07\x02hi"), wire.Transit(FixedClock()))
    assert state.revision == before


def beat(server_time: int) -> pb.Heartbeat:
    heartbeat = pb.Heartbeat()
    heartbeat.server_time.FromSeconds(server_time)
    return heartbeat


def test_the_delay_of_a_stream_is_bounded_without_comparing_clocks() -> None:
    clock = FixedClock()
    transit = wire.Transit(clock)
    clock.advance(0.5)
    assert transit.delay_seconds(beat(77)) == 0.5  # it cannot have been sent before we asked
    clock.advance(1)
    assert transit.delay_seconds(beat(78)) == 0.5
    clock.advance(3)
    assert transit.delay_seconds(beat(79)) == 2.5  # it arrives two seconds later than it should
    assert not transit.has_slipped
    clock.advance(5)
    transit.delay_seconds(beat(80))
    assert transit.has_slipped


def test_a_sender_whose_clock_steps_forward_makes_nothing_fresher_than_it_is() -> None:
    clock = FixedClock()
    transit = wire.Transit(clock)
    transit.delay_seconds(beat(100))
    clock.advance(1)
    assert transit.delay_seconds(beat(10_000)) == 0


def test_keys_on_another_curve_do_not_exist() -> None:
    with pytest.raises(ValueError, match="32 bytes"):
        PublicKey.from_coordinates(bytes(48), bytes(48))

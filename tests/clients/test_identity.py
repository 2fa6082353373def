"""A peer connected to an identity service: what is pushed is obeyed, and nothing is asked on the request path."""

from __future__ import annotations

import asyncio
import logging
import stat
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from identity.v1 import trust_pb2
from identity_client.access.judge import Judge
from identity_client.aio.environment import ConfigurationError, Connection
from identity_client.aio.guard import Guard
from identity_client.aio.identity import Identity, StartError
from identity_client.aio.stream import delay_seconds
from identity_client.errors import Unauthenticated
from identity_client.tokens.verifier import Verifier
from identity_client.trust.entries import Entry, EntryKind
from tests.clients.fake_identity import CLIENT_ID, CLIENT_SECRET, FakeIdentity
from tests.clients.issuer import FixedClock, Issuer, bearer, new_id
from tests.clients.probe import RULES, Peer, until


def connect(fake: FakeIdentity, clock: FixedClock, **changes: object) -> Identity:
    settings = {"address": fake.address, "client_id": CLIENT_ID, "client_secret": CLIENT_SECRET} | changes
    return Identity(Connection(**settings), clock=clock, start_timeout_seconds=10)  # type: ignore[arg-type]


def guard(identity: Identity, clock: FixedClock) -> Guard:
    """The guard that `identity.guard` gives, with the probe's table in place of generated modules."""
    verifier = Verifier(audiences=frozenset({"orders", "internal"}), trust=identity.trust, clock=clock)
    judge = Judge(rules=RULES, verifier=verifier, trust=identity.trust)
    return Guard(judge, audience="orders", confirm=identity.confirm, on_unknown_key=identity.note_unknown_key)


@pytest.fixture
async def identity(fake: FakeIdentity, clock: FixedClock) -> AsyncIterator[Identity]:
    async with connect(fake, clock) as connected:
        yield connected


@pytest.fixture
async def peer(identity: Identity, clock: FixedClock) -> AsyncIterator[Peer]:
    async with Peer(guard(identity, clock)) as running:
        yield running


def entry(kind: EntryKind, name: str, clock: FixedClock, minimum: int = 0) -> Entry:
    return Entry(kind, name, int(clock.now()) + 1_200, minimum)


async def caught_up(identity: Identity, fake: FakeIdentity) -> None:
    await until(lambda: (identity.trust.epoch, identity.trust.version) == (fake.state.epoch, fake.state.version))


# -- what is pushed ------------------------------------------------------------------------------------------------


@pytest.mark.requirement("R2")
@pytest.mark.parametrize("kind", [EntryKind.TOKEN, EntryKind.GRANT, EntryKind.KEY])
async def test_a_revocation_is_obeyed_on_the_next_call(
    peer: Peer, identity: Identity, fake: FakeIdentity, clock: FixedClock, kind: EntryKind
) -> None:
    claims = fake.issuer.claims()
    metadata = bearer(fake.issuer.sign(claims))
    await peer.call("UnaryUnary", metadata)
    name = {EntryKind.TOKEN: claims.token_id, EntryKind.GRANT: claims.grant_id, EntryKind.KEY: claims.key_id}[kind]
    fake.revoke(entry(kind, name, clock))
    await caught_up(identity, fake)
    assert (await peer.refusal("UnaryUnary", metadata)).reason == "TOKEN_REVOKED"


@pytest.mark.requirement("R3")
async def test_a_role_taken_away_is_in_force_on_the_next_call_and_a_role_given_with_the_next_token(
    peer: Peer, identity: Identity, fake: FakeIdentity, clock: FixedClock
) -> None:
    account_id = new_id()
    old = bearer(fake.issuer.mint(account_id=account_id, roles=("clerk",)))
    await peer.call("UnaryUnary", old)
    fake.revoke(entry(EntryKind.ACCOUNT, account_id, clock, minimum=2))
    await caught_up(identity, fake)
    assert (await peer.refusal("UnaryUnary", old)).reason == "TOKEN_OUTDATED"
    without = bearer(fake.issuer.mint(account_id=account_id, generation=2, roles=()))
    assert (await peer.refusal("UnaryUnary", without)).reason == "PERMISSION_MISSING"

    fake.revoke(entry(EntryKind.ACCOUNT, account_id, clock, minimum=3))
    await caught_up(identity, fake)
    assert (await peer.refusal("UnaryUnary", without)).reason == "TOKEN_OUTDATED"
    await peer.call("UnaryUnary", bearer(fake.issuer.mint(account_id=account_id, generation=3)))


async def test_a_new_key_is_accepted_as_soon_as_it_is_pushed(
    peer: Peer, identity: Identity, fake: FakeIdentity, clock: FixedClock
) -> None:
    successor = Issuer(clock)
    fake.keys.append(successor.public_key)
    fake.publish_keys()
    await until(lambda: identity.trust.find_key(successor.public_key.key_id) is not None)
    await peer.call("UnaryUnary", bearer(successor.mint()))
    assert fake.calls["GetKeys"] == 0


# -- nothing on the request path -----------------------------------------------------------------------------------


@pytest.mark.requirement("R1")
async def test_1000_guarded_calls_make_no_rpc_open_no_socket_and_touch_no_database(
    peer: Peer, fake: FakeIdentity
) -> None:
    metadata = [bearer(fake.issuer.mint()) for _ in range(100)]
    await peer.call("UnaryUnary", metadata[0])  # opens the test's own connection to the peer
    rpcs, sockets = fake.calls.total(), open_sockets()
    with Recorded({"socket.connect", "socket.getaddrinfo", "sqlite3.connect", "subprocess.Popen"}) as events:
        for number in range(1_000):
            await peer.call("UnaryUnary", metadata[number % 100])
    assert peer.probe.runs == 1_001
    assert (fake.calls.total() - rpcs, open_sockets() - sockets, events) == (0, set(), [])


@pytest.mark.requirement("R1")
async def test_calls_are_judged_while_the_identity_service_is_down(peer: Peer, fake: FakeIdentity) -> None:
    await fake.stop()
    for _ in range(20):
        await peer.call("UnaryUnary", bearer(fake.issuer.mint()))
    assert (await peer.refusal("UnaryUnary", bearer(fake.issuer.mint(roles=())))).reason == "PERMISSION_MISSING"


def open_sockets() -> set[int]:
    """The inodes of this process's sockets, those of the C core included."""
    inodes = set()
    for path in Path("/dev/fd").iterdir():
        try:
            status = path.stat()
        except OSError:
            continue  # the descriptor of the listing itself
        if stat.S_ISSOCK(status.st_mode):
            inodes.add(status.st_ino)
    return inodes


class Recorded:
    """Keeps the named audit events of this interpreter. A hook cannot be removed, so it is merely switched off."""

    def __init__(self, names: set[str]) -> None:
        self._names = names
        self._events: list[str] = []
        self._is_on = False
        sys.addaudithook(self._hear)

    def __enter__(self) -> list[str]:
        self._is_on = True
        return self._events

    def __exit__(self, *_: object) -> None:
        self._is_on = False

    def _hear(self, event: str, _arguments: object) -> None:
        if self._is_on and event in self._names:
            self._events.append(event)


# -- the stream's troubles -----------------------------------------------------------------------------------------


async def test_a_cut_stream_is_resumed_from_the_held_version(
    identity: Identity, fake: FakeIdentity, clock: FixedClock
) -> None:
    fake.revoke(entry(EntryKind.TOKEN, new_id(), clock))
    await caught_up(identity, fake)
    fake.cut()
    await until(lambda: len(fake.resumes) == 2)
    assert fake.resumes == [("", 0), ("epoch-1", 8)]


@pytest.mark.requirement("R2")
async def test_after_a_gap_the_whole_state_is_fetched_anew(
    peer: Peer, identity: Identity, fake: FakeIdentity, clock: FixedClock
) -> None:
    claims = fake.issuer.claims()
    fake.lose(entry(EntryKind.GRANT, claims.grant_id, clock))
    fake.revoke(entry(EntryKind.TOKEN, new_id(), clock))
    await caught_up(identity, fake)
    assert fake.resumes == [("", 0), ("", 0)]
    assert (await peer.refusal("UnaryUnary", bearer(fake.issuer.sign(claims)))).reason == "TOKEN_REVOKED"


async def test_a_loss_that_no_later_change_reveals_is_revealed_by_the_heartbeat(
    identity: Identity, fake: FakeIdentity, clock: FixedClock
) -> None:
    fake.lose(entry(EntryKind.TOKEN, new_id(), clock))
    await caught_up(identity, fake)
    assert fake.resumes == [("", 0), ("", 0)]


async def test_a_digest_that_differs_asks_for_a_snapshot_at_most_once_a_minute(
    identity: Identity, fake: FakeIdentity, clock: FixedClock
) -> None:
    fake.heartbeat_digest = "0" * 47 + "1"
    await until(lambda: len(fake.resumes) == 2)
    heartbeats = fake.heartbeats
    await until(lambda: fake.heartbeats > heartbeats + 5)
    assert fake.resumes == [("", 0), ("", 0)]
    clock.advance(60)
    await until(lambda: len(fake.resumes) == 3)
    assert fake.resumes[2] == ("", 0)


async def test_a_stream_without_a_sign_of_life_is_given_up(
    fake: FakeIdentity, clock: FixedClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("identity_client.aio.stream.SILENCE_SECONDS", 0.3)
    async with connect(fake, clock):
        fake.fall_silent()
        await until(lambda: len(fake.resumes) == 2)
    assert fake.resumes[1] == ("epoch-1", 7)


async def test_the_stream_is_renewed_with_a_new_token_before_its_own_expires(
    identity: Identity, fake: FakeIdentity, clock: FixedClock
) -> None:
    clock.advance(0.8 * fake.token_lifetime_seconds)
    await until(lambda: len(fake.resumes) == 2)
    assert (fake.calls["Authenticate"], fake.resumes[1]) == (2, ("epoch-1", 7))


async def test_a_refused_stream_gets_a_new_token_first(identity: Identity, fake: FakeIdentity) -> None:
    fake.refuses_watchers = True
    fake.cut()
    await until(lambda: len(fake.resumes) == 2)
    fake.refuses_watchers = False
    await until(lambda: len(fake.resumes) == 3)
    assert fake.calls["Authenticate"] == 2


def test_the_first_repeat_is_immediate_and_later_ones_back_off_with_full_jitter() -> None:
    assert (delay_seconds(0), delay_seconds(1)) == (0, 0)
    for failures, longest in [(2, 0.1), (3, 0.2), (5, 0.8), (8, 1.0), (1_000, 1.0)]:
        delays = [delay_seconds(failures) for _ in range(300)]
        assert 0 <= min(delays) < 0.2 * longest
        assert 0.8 * longest < max(delays) <= longest


# -- too old, too early --------------------------------------------------------------------------------------------


async def test_beyond_the_staleness_allowed_nothing_is_admitted_until_the_state_is_fresh_again(
    peer: Peer, identity: Identity, fake: FakeIdentity, clock: FixedClock
) -> None:
    revoked, other = fake.issuer.claims(lifetime_seconds=3_000), fake.issuer.claims(lifetime_seconds=3_000)
    metadata = bearer(fake.issuer.sign(revoked))
    await fake.stop()
    clock.advance(30)
    await peer.call("UnaryUnary", metadata)
    for _ in range(3):
        clock.advance(0.5)
        error = await peer.refusal("UnaryUnary", metadata)
        assert (error.status, error.reason) == ("UNAVAILABLE", "TRUST_STALE")

    fake.lose(entry(EntryKind.GRANT, revoked.grant_id, clock))
    await fake.start()
    await until(lambda: identity.trust.staleness() < 1)
    assert (await peer.refusal("UnaryUnary", metadata)).reason == "TOKEN_REVOKED"
    await peer.call("UnaryUnary", bearer(fake.issuer.sign(other)))


async def test_before_the_first_snapshot_no_call_is_admitted(fake: FakeIdentity, clock: FixedClock) -> None:
    fake.sends_snapshots = False
    identity = connect(fake, clock)
    async with Peer(guard(identity, clock)) as peer:
        entering = asyncio.ensure_future(identity.__aenter__())
        await until(lambda: identity.trust.find_key(fake.issuer.public_key.key_id) is not None)
        error = await peer.refusal("UnaryUnary", bearer(fake.issuer.mint()))
        assert (error.reason, entering.done(), identity.is_ready) == ("TRUST_STALE", False, False)
        fake.sends_snapshots = True
        fake.cut()
        await entering
        await peer.call("UnaryUnary", bearer(fake.issuer.mint()))
        await identity.__aexit__(None, None, None)


async def test_a_start_without_a_snapshot_fails_with_the_address_and_the_reason(clock: FixedClock) -> None:
    nowhere = Connection(address="127.0.0.1:1", client_id=CLIENT_ID, client_secret=CLIENT_SECRET)
    with pytest.raises(StartError, match=r"no trust state from 127\.0\.0\.1:1 within 0\.3 s: .+"):
        async with Identity(nowhere, clock=clock, start_timeout_seconds=0.3):
            pass


async def test_a_start_with_a_wrong_secret_fails_at_once(fake: FakeIdentity, clock: FixedClock) -> None:
    with pytest.raises(Unauthenticated):
        async with connect(fake, clock, client_secret="idc_wrong"):
            pass


# -- unknown keys, confirmation ------------------------------------------------------------------------------------


async def test_an_unknown_key_is_looked_up_once_in_5_seconds_and_its_token_then_admitted(
    peer: Peer, identity: Identity, fake: FakeIdentity, clock: FixedClock
) -> None:
    successor = Issuer(clock)
    fake.keys.append(successor.public_key)
    for _ in range(50):
        stranger = Issuer(clock)
        assert (await peer.refusal("UnaryUnary", bearer(stranger.mint()))).reason == "UNKNOWN_KEY"
    await until(lambda: identity.trust.find_key(successor.public_key.key_id) is not None)
    assert fake.calls["GetKeys"] == 1
    await peer.call("UnaryUnary", bearer(successor.mint()))
    clock.advance(5)
    await peer.refusal("UnaryUnary", bearer(Issuer(clock).mint()))
    await until(lambda: fake.calls["GetKeys"] == 2)


async def test_a_failed_look_up_keeps_the_keys_held(
    peer: Peer, fake: FakeIdentity, caplog: pytest.LogCaptureFixture
) -> None:
    await fake.stop()
    await peer.refusal("UnaryUnary", bearer(Issuer(fake.clock).mint()))
    await until(lambda: "those held are kept" in caplog.text)
    await peer.call("UnaryUnary", bearer(fake.issuer.mint()))


@pytest.mark.parametrize(
    ("standing", "reason"),
    [
        (trust_pb2.TOKEN_STANDING_REVOKED, "TOKEN_REVOKED"),
        (trust_pb2.TOKEN_STANDING_OUTDATED, "TOKEN_OUTDATED"),
        (trust_pb2.TOKEN_STANDING_UNSPECIFIED, "DEPENDENCY_DOWN"),
    ],
)
async def test_a_confirmed_method_asks_the_service_on_every_call(
    peer: Peer, fake: FakeIdentity, standing: trust_pb2.TokenStanding.ValueType, reason: str
) -> None:
    metadata = bearer(fake.issuer.mint())
    await peer.call("Confirmed", metadata)
    fake.standing = standing
    assert (await peer.refusal("Confirmed", metadata)).reason == reason
    assert fake.calls["CheckRevocation"] == 2


async def test_a_confirmed_method_is_unavailable_while_the_service_is_down(peer: Peer, fake: FakeIdentity) -> None:
    await fake.stop()
    error = await peer.refusal("Confirmed", bearer(fake.issuer.mint()))
    assert (error.status, error.reason) == ("UNAVAILABLE", "DEPENDENCY_DOWN")


# -- settings and secrets ------------------------------------------------------------------------------------------


def test_every_missing_variable_is_named_at_once() -> None:
    with pytest.raises(ConfigurationError) as caught:
        Connection.from_env({"IDENTITY_CA_FILE": "/nonexistent/ca.pem"})
    assert caught.value.problems == [
        "IDENTITY_ADDRESS is not set",
        "IDENTITY_CLIENT_ID is not set",
        "IDENTITY_CLIENT_SECRET_FILE is not set",
        "IDENTITY_CA_FILE: /nonexistent/ca.pem cannot be read: No such file or directory",
    ]


@pytest.mark.parametrize(
    "address",
    ["localhost", "http://localhost:50551", "https://id.example", "::1", "[::1]", "a:50551/", "a:b", ":50551"],
)
def test_an_address_without_a_port_or_with_a_scheme_is_told_its_form(address: str) -> None:
    with pytest.raises(ConfigurationError, match=r"IDENTITY_ADDRESS: .* HOST:PORT") as caught:
        Connection(f"localhost:50551,{address}")
    assert len(caught.value.problems) == 1


@pytest.mark.requirement("R48")
def test_plain_text_is_for_loopback_unless_told_explicitly(tmp_path: Path) -> None:
    secret_file = tmp_path / "secret"
    secret_file.write_text(f"{CLIENT_SECRET}\n")
    environ = {"IDENTITY_CLIENT_ID": CLIENT_ID, "IDENTITY_CLIENT_SECRET_FILE": str(secret_file)}
    for address in ("identity.internal:50551", "10.0.0.7:50551", "127.0.0.1.evil.test:1", "[2001:db8::1]:50551"):
        with pytest.raises(ConfigurationError, match="IDENTITY_CA_FILE"):
            Connection.from_env(environ | {"IDENTITY_ADDRESS": address})
        Connection.from_env(environ | {"IDENTITY_ADDRESS": address, "IDENTITY_INSECURE": "1"})
    for address in ("127.0.0.1:50551", "localhost:50551", "[::1]:50551", "unix:/run/identity.sock"):
        connection = Connection.from_env(environ | {"IDENTITY_ADDRESS": address})
        assert connection.client_secret == CLIENT_SECRET


@pytest.mark.requirement("R48")
async def test_neither_secret_nor_token_reaches_a_log_or_a_repr(
    fake: FakeIdentity, clock: FixedClock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    async with connect(fake, clock) as identity, Peer(guard(identity, clock)) as peer:
        raw_token = fake.issuer.mint()
        await peer.call("Confirmed", bearer(raw_token))
        await peer.refusal("UnaryUnary", bearer(raw_token + "x"))
        fake.cut()
        await until(lambda: len(fake.resumes) == 2)
        own_token = await identity._tokens.get()
        shown = caplog.text + "".join(map(repr, (identity, identity._connection, identity._tokens, own_token)))
    for secret in (CLIENT_SECRET, raw_token, own_token.raw_token):
        assert secret not in shown
        assert secret.rpartition(".")[2] not in shown

"""Both faces of the library against one identity service: what is pushed, asked and remembered is the same."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import textwrap
import threading
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest

import identity_client
from identity_client import aio
from identity_client.errors import DependencyDown, Unauthenticated
from identity_client.principal import BearerKind
from identity_client.sync.identity import Identity as ThreadedIdentity
from identity_client.tokens.claims import NO_END
from identity_client.tokens.opaque import Kind
from identity_client.trust.entries import Entry, EntryKind
from tests.clients.fake_identity import CLIENT_ID, CLIENT_SECRET, FakeIdentity
from tests.clients.issuer import FixedClock, Issuer, bearer, opaque_text
from tests.clients.shapes import TABLE, ShapePeer, until

GOOD: dict[str, Any] = {"scopes": ("read",)}


def connection(fake: FakeIdentity, **changes: str) -> aio.Connection:
    settings = {"address": fake.address, "client_id": CLIENT_ID, "client_secret": CLIENT_SECRET} | changes
    return aio.Connection(**settings)  # type: ignore[arg-type]


@pytest.fixture(params=["aio", "threaded"])
async def identity(
    request: pytest.FixtureRequest, fake: FakeIdentity, clock: FixedClock
) -> AsyncIterator[aio.Identity | ThreadedIdentity]:
    if request.param == "aio":
        async with aio.Identity(connection(fake), clock=clock, start_timeout_seconds=10) as connected:
            yield connected
        return
    threaded = ThreadedIdentity(connection(fake), clock=clock, start_timeout_seconds=10)
    await asyncio.to_thread(threaded.__enter__)
    yield threaded
    await asyncio.to_thread(threaded.__exit__, None, None, None)


@pytest.fixture
async def peer(identity: aio.Identity | ThreadedIdentity) -> AsyncIterator[ShapePeer]:
    async with ShapePeer(identity.guard("orders", rules=TABLE)) as running:
        yield running


async def caught_up(identity: aio.Identity | ThreadedIdentity, fake: FakeIdentity) -> None:
    await until(lambda: identity.trust.version == fake.state.version)


@pytest.mark.requirement("R70")
@pytest.mark.requirement("R2")
async def test_a_peer_judges_alone_and_obeys_what_is_pushed(
    peer: ShapePeer, identity: aio.Identity | ThreadedIdentity, fake: FakeIdentity, clock: FixedClock
) -> None:
    claims = fake.issuer.claims(**GOOD)
    metadata = bearer(fake.issuer.sign(claims))
    rpcs = fake.calls.total()
    for _ in range(20):
        await peer.call("UnaryUnary", metadata)
    assert fake.calls.total() == rpcs
    fake.revoke(Entry(EntryKind.GRANT, claims.grant_id, int(clock.now()) + 1_200))
    await caught_up(identity, fake)
    assert (await peer.refusal("UnaryUnary", metadata)).reason == "TOKEN_REVOKED"


@pytest.mark.parametrize("kind", [Kind.SESSION, Kind.API_KEY])
async def test_an_opaque_bearer_is_introspected_once_and_its_handler_decides_as_for_a_token(
    peer: ShapePeer, fake: FakeIdentity, clock: FixedClock, kind: Kind
) -> None:
    details = {"account_id": "an-account", "authentication_time": 1_899_999_000, "authentication_methods": ("pwd",)}
    raw_token = fake.open_grant(kind, **GOOD, **details)
    for _ in range(10):
        await peer.call("UnaryUnary", bearer(raw_token))
    by_text = peer.handlers.principal
    await peer.call("UnaryUnary", bearer(fake.issuer.mint(**GOOD, **details)))
    by_token = peer.handlers.principal
    assert by_text is not None and by_token is not None
    assert by_text.kind is (BearerKind.SESSION if kind is Kind.SESSION else BearerKind.API_KEY)
    for name in (
        *("account_id", "subject", "client_id", "audience", "scopes", "roles", "generation", "policy_version"),
        *("authentication_time", "authentication_methods", "expire_time", "certificate_thumbprint"),
    ):
        assert getattr(by_text, name) == getattr(by_token, name)
    assert fake.calls["Introspect"] == 1
    assert raw_token not in repr(by_text)


async def test_an_api_key_without_an_end_is_good_until_it_is_revoked(
    peer: ShapePeer, fake: FakeIdentity, clock: FixedClock
) -> None:
    raw_token = fake.open_grant(Kind.API_KEY, **GOOD, expire_time=NO_END)
    await peer.call("UnaryUnary", bearer(raw_token))
    call = await peer.begin("LongUnaryStream", bearer(raw_token))
    assert not call.done()
    call.cancel()


async def test_an_opaque_bearer_is_dead_once_its_grant_is_revoked_and_looked_up_anew_once_its_account_changes(
    peer: ShapePeer, identity: aio.Identity | ThreadedIdentity, fake: FakeIdentity, clock: FixedClock
) -> None:
    raw_token = fake.open_grant(Kind.SESSION, **GOOD)
    await peer.call("UnaryUnary", bearer(raw_token))
    grant = fake.grants[raw_token]
    fake.revoke(Entry(EntryKind.ACCOUNT, grant.account_id, int(clock.now()) + 1_200, minimum=2))
    await caught_up(identity, fake)
    grant.generation, grant.roles[:] = 2, ["cook"]
    assert (await peer.refusal("UnaryUnary", bearer(raw_token))).reason == "PERMISSION_MISSING"
    fake.revoke(Entry(EntryKind.GRANT, grant.grant_id, int(clock.now()) + 1_200))
    await caught_up(identity, fake)
    assert (await peer.refusal("UnaryUnary", bearer(raw_token))).reason == "TOKEN_REVOKED"
    assert fake.calls["Introspect"] == 2


async def test_a_text_that_the_service_does_not_know_is_refused_and_asked_about_once_a_second(
    peer: ShapePeer, fake: FakeIdentity
) -> None:
    raw_token = opaque_text(Kind.API_KEY)
    for _ in range(10):
        error = await peer.refusal("UnaryUnary", bearer(raw_token))
        assert (error.status, error.reason) == ("UNAUTHENTICATED", "TOKEN_REVOKED")
    assert fake.calls["Introspect"] == 1


@pytest.mark.requirement("R28")
async def test_a_confirmed_method_asks_on_every_call_whatever_the_bearer(peer: ShapePeer, fake: FakeIdentity) -> None:
    raw_token = fake.open_grant(Kind.SESSION)
    for _ in range(3):
        await peer.call("Confirmed", bearer(raw_token))
        await peer.call("Confirmed", bearer(fake.issuer.mint()))
    assert (fake.calls["Introspect"], fake.calls["CheckRevocation"]) == (3, 3)
    fake.grants.clear()
    assert (await peer.refusal("Confirmed", bearer(raw_token))).reason == "TOKEN_REVOKED"


async def test_while_the_service_is_down_an_opaque_bearer_is_good_for_10_seconds_and_then_unavailable(
    peer: ShapePeer, fake: FakeIdentity, clock: FixedClock
) -> None:
    raw_token = fake.open_grant(Kind.SESSION, **GOOD)
    await peer.call("UnaryUnary", bearer(raw_token))
    await fake.stop()
    clock.advance(9)
    await peer.call("UnaryUnary", bearer(raw_token))
    clock.advance(1)
    for method in ("UnaryUnary", "Confirmed"):
        error = await peer.refusal(method, bearer(raw_token))
        assert (error.status, error.reason) == ("UNAVAILABLE", "DEPENDENCY_DOWN")


async def test_a_service_that_refuses_us_is_not_the_fault_of_our_caller(
    peer: ShapePeer, fake: FakeIdentity, caplog: pytest.LogCaptureFixture
) -> None:
    fake.refuses_introspection = True
    error = await peer.refusal("UnaryUnary", bearer(fake.open_grant(Kind.SESSION)))
    assert (error.status, error.reason) == ("UNAVAILABLE", "DEPENDENCY_DOWN")
    assert "refused to judge a token for us: PERMISSION_MISSING" in caplog.text


async def test_an_unknown_key_is_fetched_and_its_token_then_admitted(
    peer: ShapePeer, identity: aio.Identity | ThreadedIdentity, fake: FakeIdentity, clock: FixedClock
) -> None:
    successor = Issuer(clock)
    fake.keys.append(successor.public_key)
    assert (await peer.refusal("UnaryUnary", bearer(successor.mint(**GOOD)))).reason == "UNKNOWN_KEY"
    await until(lambda: identity.trust.find_key(successor.public_key.key_id) is not None)
    await peer.call("UnaryUnary", bearer(successor.mint(**GOOD)))


@pytest.mark.requirement("R71")
async def test_back_from_an_outage_calls_are_judged_again(
    peer: ShapePeer, identity: aio.Identity | ThreadedIdentity, fake: FakeIdentity, clock: FixedClock
) -> None:
    metadata = bearer(fake.issuer.mint(**GOOD))
    await fake.stop()
    clock.advance(31)
    assert (await peer.refusal("UnaryUnary", metadata)).status == "UNAVAILABLE"
    await fake.start()
    await until(lambda: identity.trust.staleness() < 1)
    await peer.call("UnaryUnary", metadata)


# -- the threaded face alone ---------------------------------------------------------------------------------------


async def test_the_light_face_is_the_threaded_one() -> None:
    assert identity_client.Identity is ThreadedIdentity
    assert set(identity_client.__all__) <= set(aio.__all__) | {"IdentityError"}  # aio has building blocks besides


async def test_entering_with_a_wrong_secret_fails_at_once_and_leaves_no_thread(
    fake: FakeIdentity, clock: FixedClock
) -> None:
    identity = ThreadedIdentity(connection(fake, client_secret="idc_wrong"), clock=clock)
    with pytest.raises(Unauthenticated):
        await asyncio.to_thread(identity.__enter__)
    assert "identity" not in {thread.name for thread in threading.enumerate()}


async def test_leaving_ends_the_thread_and_what_must_be_asked_is_then_unavailable(
    fake: FakeIdentity, clock: FixedClock
) -> None:
    identity = ThreadedIdentity(connection(fake), clock=clock)
    await asyncio.to_thread(identity.__enter__)
    assert identity.is_ready
    await asyncio.to_thread(identity.__exit__, None, None, None)
    assert "identity" not in {thread.name for thread in threading.enumerate()}
    with pytest.raises(DependencyDown):
        identity.introspect(opaque_text(Kind.SESSION), False)
    identity.note_unknown_key()


async def test_the_threaded_face_tells_when_it_is_ready_and_when_no_longer(
    fake: FakeIdentity, clock: FixedClock
) -> None:
    told: list[bool] = []
    identity = ThreadedIdentity(connection(fake), clock=clock, on_ready=told.append)
    await asyncio.to_thread(identity.__enter__)
    assert told == [True]
    await asyncio.to_thread(identity.__exit__, None, None, None)
    assert told == [True, False]


async def test_a_peer_that_serves_in_three_lines(fake: FakeIdentity, clock: FixedClock) -> None:
    def serve_and_stop() -> int:
        with ThreadedIdentity(connection(fake), clock=clock) as identity:
            server = grpc.server(ThreadPoolExecutor(2), interceptors=[identity.guard("orders", rules=TABLE)])
            port = server.add_insecure_port("127.0.0.1:0")
            server.start()
            server.stop(None).wait()
            return port

    assert await asyncio.to_thread(serve_and_stop) > 0


# -- forks ---------------------------------------------------------------------------------------------------------

FORK = """
import os, sys
from identity_client import Connection, ForkedError, Identity, Rule, aio
from identity_client.access.setup import make_judge
from identity_client.clock import SystemClock
from identity_client.aio.guard import Guard
from identity_client.sync.guard import Guard as ThreadedGuard
from identity_client.trust.state import TrustState

connection = Connection("127.0.0.1:1", "orders", "idc_secret")
threaded, asynchronous = Identity(connection), aio.Identity(connection)
rules = {"/a.B/C": Rule()}
clock = SystemClock()
judge = make_judge("orders", (), trust=TrustState(clock), clock=clock, rules=rules)
guard = ThreadedGuard(judge, audience="orders")
guard_aio = Guard(judge, audience="orders")

class Details:
    method = "/a.B/C"
    invocation_metadata = ()

async def handler_of(_):
    return "a handler"

def first_uses():
    yield lambda: threaded.__enter__()
    yield lambda: threaded.guard("orders", rules=rules)
    yield lambda: asynchronous.guard("orders", rules=rules)
    yield lambda: asynchronous.__aenter__().send(None)
    yield lambda: guard.intercept_service(lambda _: "a handler", Details)
    yield lambda: guard_aio.intercept_service(handler_of, Details).send(None)

if os.fork() == 0:
    refused = 0
    for use in first_uses():
        try:
            use()
        except ForkedError as error:
            assert "post_fork" in str(error)
            refused += 1
    late = aio.Identity(connection).guard("orders", rules=rules)
    os._exit(0 if refused == 6 and late is not None else 1)
sys.exit(os.waitstatus_to_exitcode(os.wait()[1]))
"""


@pytest.mark.requirement("R70")
def test_what_was_made_before_a_fork_says_so_at_its_first_use_and_what_is_made_after_it_works() -> None:
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(FORK)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr

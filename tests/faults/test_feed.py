"""The feed under cuts: every peer ends equal to SQL, nothing revoked is accepted, and stale copies are not trusted."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

import pytest

from identity.feed import turns as feed_turns
from identity.v1 import token_pb2
from identity_client import aio
from identity_client.access.judge import Judge
from identity_client.access.options import Options, Terms
from identity_client.access.rules import Rule, Rules
from identity_client.clock import SystemClock
from identity_client.errors import IdentityError, TokenOutdated, TokenRevoked, TrustStale
from identity_client.tokens.verifier import Verifier
from identity_client.trust.metrics import TrustMetrics
from tests.faults.mangler import Mangler
from tests.faults.proxy import Proxy
from tests.rpc.api import Api

PEERS = 4
REVOCATIONS = 200
BOUND_SECONDS = 0.25
SEED = 41

METHOD = "/orders.v1.OrderService/GetOrder"


@dataclass
class Peer:
    """A service with a connection of its own, judging calls as its guard would."""

    identity: aio.Identity
    proxy: Proxy
    judge: Judge

    def accepts(self, token: str) -> bool:
        """Whether a call with *token* would reach the handler. TrustStale propagates."""
        try:
            self.judge.judge(METHOD, (("authorization", f"Bearer {token}"),))
        except (TokenRevoked, TokenOutdated):
            return False
        return True


@asynccontextmanager
async def running_peer(
    api: Api,
    name: str,
    max_staleness_seconds: float,
    addresses: tuple[str, ...] = (),
    metrics: TrustMetrics | None = None,
) -> AsyncIterator[Peer]:
    """A peer that reaches the service at *addresses*, or else through its proxy."""
    service = await api.create_service(name, "peer")
    proxy = Proxy(api.address)
    await proxy.start()
    connection = aio.Connection(",".join(addresses) or proxy.address, name, service.client_secret)
    async with aio.Identity(connection, metrics=metrics) as identity:
        verifier = Verifier(audiences=frozenset({name, "internal"}), trust=identity.trust, clock=SystemClock())
        judge = Judge(
            rules=Rules.from_table({METHOD: Rule()}),
            verifier=verifier,
            trust=identity.trust,
            options=Options(Terms(max_staleness_seconds)),
        )
        yield Peer(identity, proxy, judge)
    await proxy.stop()


async def sql_truth(api: Api) -> tuple[int, set[tuple[object, ...]]]:
    """The feed's version and its live entries, read from the database."""
    assert api.server.house is not None
    _, version, batches = await api.server.house.stores.revocations.live_entries()
    return version, {(entry.kind, entry.name, entry.minimum, entry.expire_time) for batch in batches for entry in batch}


def held_by(peer: Peer) -> set[tuple[object, ...]]:
    trust = peer.identity.trust
    return {(entry.kind, entry.name, entry.minimum, entry.expire_time) for entry in trust.entries()}


async def caught_up(peer: Peer, version: int) -> None:
    """Wait until the peer holds *version*."""
    async with asyncio.timeout(20):
        while peer.identity.trust.version < version:
            await asyncio.sleep(0.01)


@pytest.mark.requirement("R2")
@pytest.mark.timeout(180)
async def test_every_peer_ends_equal_to_sql_though_connections_are_cut(api: Api) -> None:
    print(f"seed {SEED}")
    chance = random.Random(SEED)
    await api.create_user("carol")
    tokens = [(await api.login("carol")).access_token for _ in range(REVOCATIONS)]
    async with AsyncExitStack() as stack:
        peers = [await stack.enter_async_context(running_peer(api, f"peer{n}", 30)) for n in range(PEERS)]
        assert all(peer.accepts(token) for peer in peers for token in tokens)
        for token in tokens:
            if chance.random() < 0.1:
                chance.choice(peers).proxy.cut()
            await api.tokens.Revoke(token_pb2.RevokeRequest(token=token))
        version, truth = await sql_truth(api)
        assert len(truth) == REVOCATIONS
        for peer in peers:
            await caught_up(peer, version)
            assert held_by(peer) == truth
            assert not any(peer.accepts(token) for token in tokens)
        digests = {peer.identity.trust.digest() for peer in peers}
        assert len(digests) == 1


@pytest.mark.requirement("R2")
@pytest.mark.timeout(180)
async def test_every_peer_ends_equal_to_sql_though_events_are_lost_repeated_and_swapped(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each peer has two ways to the service, both of which mangle; what it has once refused it goes on refusing."""
    print(f"seed {SEED}")
    monkeypatch.setattr("identity_client.aio.stream._DIVERGED_SNAPSHOT_SECONDS", 0.0)
    monkeypatch.setattr("identity.feed.events.PART_ENTRIES", 20)
    chance = random.Random(SEED)
    await api.create_user("carol")
    tokens = [(await api.login("carol")).access_token for _ in range(REVOCATIONS)]
    async with AsyncExitStack() as stack:
        ways = [await stack.enter_async_context(Mangler(api.address, chance)) for _ in range(2)]
        addresses = tuple(way.address for way in ways)
        peers = [
            await stack.enter_async_context(running_peer(api, f"peer{n}", 30, addresses[:: (-1) ** n]))
            for n in range(PEERS)
        ]
        refused: set[tuple[aio.Identity, str]] = set()
        for revoked, token in enumerate(tokens):
            await api.tokens.Revoke(token_pb2.RevokeRequest(token=token))
            for peer in peers:
                for old in tokens[:revoked:17]:
                    is_accepted = peer.accepts(old)
                    assert not (is_accepted and (peer.identity, old) in refused)
                    if not is_accepted:
                        refused.add((peer.identity, old))
        for way in ways:
            way.calm()
        version, truth = await sql_truth(api)
        for peer in peers:
            await caught_up(peer, version)
            assert held_by(peer) == truth
            assert not any(peer.accepts(token) for token in tokens)
        assert sum(way.mangled for way in ways) > 20


@pytest.mark.requirement("R2")
async def test_with_the_stream_up_nothing_is_accepted_after_the_bound(api: Api) -> None:
    await api.create_user("carol")
    tokens = [(await api.login("carol")).access_token for _ in range(50)]
    async with AsyncExitStack() as stack:
        peers = [await stack.enter_async_context(running_peer(api, f"peer{n}", 30)) for n in range(PEERS)]
        for token in tokens:
            await api.tokens.Revoke(token_pb2.RevokeRequest(token=token))
            acknowledged = time.monotonic()
            while any(peer.accepts(token) for peer in peers):
                assert time.monotonic() - acknowledged < BOUND_SECONDS
                await asyncio.sleep(0)


async def test_a_peer_that_is_cut_off_stops_trusting_its_copy_and_never_accepts_what_was_revoked(
    api: Api,
) -> None:
    await api.create_user("carol")
    token = (await api.login("carol")).access_token
    async with running_peer(api, "orders", max_staleness_seconds=1.5) as peer:
        assert peer.accepts(token)
        peer.proxy.go_down()
        await api.tokens.Revoke(token_pb2.RevokeRequest(token=token))
        verdicts = await judge_until_stale(peer, token)
        assert verdicts[-1] == "TRUST_STALE"
        assert await judge_for(peer, token, 1.0) == {"TRUST_STALE"}
        peer.proxy.come_back()
        version, _ = await sql_truth(api)
        await caught_up(peer, version)
        assert "accepted" not in await judge_for(peer, token, 0.5)


async def judge_until_stale(peer: Peer, token: str) -> list[str]:
    verdicts: list[str] = []
    async with asyncio.timeout(10):
        while not verdicts or verdicts[-1] != "TRUST_STALE":
            verdicts.append(verdict(peer, token))
            await asyncio.sleep(0.01)
    return verdicts


async def judge_for(peer: Peer, token: str, seconds: float) -> set[str]:
    end = time.monotonic() + seconds
    verdicts = set()
    while time.monotonic() < end:
        verdicts.add(verdict(peer, token))
        await asyncio.sleep(0.01)
    return verdicts


def verdict(peer: Peer, token: str) -> str:
    try:
        return "accepted" if peer.accepts(token) else "refused"
    except TrustStale as stale:
        return stale.reason
    except IdentityError as other:
        return other.reason


class Ends(TrustMetrics):
    """Keeps why streams ended."""

    def __init__(self) -> None:
        self.reasons: list[str] = []

    def stream_ended(self, reason: str) -> None:
        self.reasons.append(reason)


@pytest.fixture
def quick_beats(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("identity.feed.streams.HEARTBEAT_SECONDS", 0.05)


@pytest.mark.usefixtures("quick_beats")
async def test_a_peer_waits_for_its_turn_longer_than_it_would_bear_silence(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("identity_client.aio.stream.SILENCE_SECONDS", 0.5)
    assert api.server.house is not None
    hub, ends = api.server.house.hub, Ends()
    service = await api.create_service("orders", "peer")
    identity = aio.Identity(aio.Connection(api.address, "orders", service.client_secret), metrics=ends)
    async with AsyncExitStack() as turns:
        for number in range(feed_turns.TURNS):
            await turns.enter_async_context(hub.streams._turns.turn(feed_turns.Peer(f"grant {number}", "elsewhere")))
        entering = asyncio.ensure_future(identity.__aenter__())
        await asyncio.sleep(1.5)  # three times the silence it would bear
        assert not entering.done()
    await entering
    assert ends.reasons == []
    await identity.__aexit__(None, None, None)

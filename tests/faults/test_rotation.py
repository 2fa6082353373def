"""Keys rotate under load: no good token is refused by a peer that is up to date, no bad one is accepted.

Two replicas over one database rotate at the same moments, with lifetimes of seconds in place of days and hours. One of
the three peers is cut off again and again: while it is too far behind to judge, it need not.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta

import pytest

from identity.domain import signing_keys as rules
from identity.domain.values import KeyState, Seconds
from identity.house import LOCAL_ACT, House
from identity.server import Server
from identity.storage.sql import signing_keys as store
from identity.v1 import signing_key_pb2 as pb
from identity_client import aio
from identity_client.clock import SystemClock
from identity_client.errors import TokenError, TokenExpired, TokenRevoked, UnknownKey
from identity_client.tokens import compact
from identity_client.tokens.verifier import Verifier
from tests.clients.issuer import FixedClock, Issuer
from tests.faults.proxy import Proxy
from tests.rpc.api import Api, MakeSettings, prepare

pytestmark = pytest.mark.requirement("R26")

ROTATIONS = max(4, 10 * int(os.environ.get("IDENTITY_TEST_ROUNDS", "0")))
LIFETIME_SECONDS, LEEWAY_SECONDS = 10, 1
PUBLISHED_SECONDS, MAXIMUM_STALENESS_SECONDS = 3, 1.0
"""As with the real figures, a peer is too far behind to judge long before a key signs that it has not seen."""


@dataclass
class Peer:
    """A peer's verdicts; only those count that it gives while it is up to date."""

    name: str
    identity: aio.Identity
    wrong: list[str] = field(default_factory=list)
    judged: int = 0

    def __post_init__(self) -> None:
        self._verifier = Verifier(
            audiences=frozenset({"internal"}),
            trust=self.identity.trust,
            clock=SystemClock(),
            leeway_seconds=LEEWAY_SECONDS,
        )

    def refusal(self, token: str) -> TokenError | None:
        try:
            self._verifier.verify(token)
        except TokenError as error:
            return error
        return None

    @property
    def is_fresh(self) -> bool:
        return self.identity.trust.staleness() <= MAXIMUM_STALENESS_SECONDS

    def judge_good(self, token: str) -> None:
        """A token that was issued and not taken back. It may have expired meanwhile."""
        if self.is_fresh:
            self.judged += 1
            error = self.refusal(token)
            if error is not None and not isinstance(error, TokenExpired):
                self.wrong.append(f"{self.name} refused a good token: {error.reason}")

    def judge_bad(self, token: str) -> None:
        self.judged += 1
        if self.refusal(token) is None:
            self.wrong.append(f"{self.name} accepted a bad token")


@dataclass
class Town:
    """Two replicas, three peers, and a service that logs in at either replica."""

    replicas: list[Api]
    peers: list[Peer]
    proxy: Proxy
    secret: str
    stop: asyncio.Event = field(default_factory=asyncio.Event)
    key_ids: set[str] = field(default_factory=set)

    def house(self, number: int) -> House:
        house = self.replicas[number].server.house
        assert house is not None
        return house

    async def load(self, number: int) -> None:
        """Log in and be judged, with the tokens of the last seconds, until it is over."""
        held: list[str] = []
        forged = Issuer(FixedClock(time.time()))  # of a key that nobody published
        while not self.stop.is_set():
            api = self.replicas[number % len(self.replicas)]
            token = (await api.login_service("shop", self.secret, "internal")).access_token
            self.key_ids.add(compact.split(token).key_id)
            held = [token, *held[:20]]
            for peer in self.peers:
                for each in held:
                    peer.judge_good(each)
                peer.judge_bad(forged.sign(forged.claims(audience="internal")))
                peer.judge_bad(token[:-8] + "AAAAAAAA")
            await asyncio.sleep(0.02)

    async def cut_one_off(self) -> None:
        """Cut the last peer off, for longer than it may judge, and let it come back, until it is over."""
        while not self.stop.is_set():
            self.proxy.go_down()
            await asyncio.sleep(2 * MAXIMUM_STALENESS_SECONDS)
            self.proxy.come_back()
            await asyncio.sleep(2.0)

    def wrong(self) -> list[str]:
        return [verdict for peer in self.peers for verdict in peer.wrong]


@pytest.fixture
async def town(make_settings: MakeSettings, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Town]:
    kept = LIFETIME_SECONDS + LEEWAY_SECONDS + 2
    monkeypatch.setattr(rules, "PUBLISHED_SECONDS", PUBLISHED_SECONDS)
    monkeypatch.setattr(rules, "KEPT_SECONDS", kept)
    monkeypatch.setattr(store, "KEPT_SECONDS", kept)
    settings = make_settings(access_token_lifetime_seconds=LIFETIME_SECONDS, leeway_seconds=LEEWAY_SECONDS)
    async with AsyncExitStack() as stack:
        replicas = [await stack.enter_async_context(serving(Server(settings))) for _ in range(2)]
        for api in replicas:
            assert api.server.house is not None
            api.server.house.signing_keys._lifetime = timedelta(microseconds=1)
        assert replicas[0].server.house is not None
        await prepare(replicas[0].server.house)
        secret = (await replicas[0].create_service("shop", "peer")).client_secret
        proxy = Proxy(replicas[1].address)
        addresses = [replicas[0].address, replicas[1].address, await proxy.start()]
        stack.push_async_callback(proxy.stop)
        peers = []
        for number, address in enumerate(addresses):
            identity = aio.Identity(aio.Connection(address, "shop", secret))
            peers.append(Peer(f"peer {number}", await stack.enter_async_context(identity)))
        yield Town(replicas, peers, proxy, secret)


@asynccontextmanager
async def serving(server: Server) -> AsyncIterator[Api]:
    api = Api(server, await server.start())
    try:
        yield api
    finally:
        await api.channel.close()
        await server.stop()


async def under_load(town: Town, act: Callable[[], Awaitable[None]], *more: Awaitable[None]) -> None:
    """Run *act* while callers come and go."""
    async with asyncio.TaskGroup() as group:
        for number in range(2):
            group.create_task(town.load(number))
        for other in more:
            group.create_task(_awaited(other))
        try:
            await act()
        finally:
            town.stop.set()


async def _awaited(awaitable: Awaitable[None]) -> None:
    await awaitable


async def active_key_id(town: Town) -> str:
    keys = await town.house(0).signing_keys.list_all()
    [active] = [key.key_id for key in keys if key.state is KeyState.ACTIVE]
    return active


@pytest.mark.timeout(60 + 6 * ROTATIONS)
async def test_rotations_under_load_refuse_no_good_token_and_accept_no_bad_one(town: Town) -> None:
    seen: list[str] = [await active_key_id(town)]

    async def rotate() -> None:
        while len(seen) <= ROTATIONS:
            await asyncio.gather(*(town.house(number).signing_keys.tend() for number in range(2)))
            active = await active_key_id(town)
            if active != seen[-1]:
                seen.append(active)
            await asyncio.sleep(0.2)

    await under_load(town, rotate, town.cut_one_off())
    assert town.wrong() == []
    assert len(set(seen)) == ROTATIONS + 1  # no key came back
    assert set(seen[1:-1]) <= town.key_ids  # each of them signed
    assert all(peer.judged > 20 * ROTATIONS for peer in town.peers)
    published = {key.key_id for key in town.house(0).public_keys}
    assert len(published) <= 2 + (LIFETIME_SECONDS + LEEWAY_SECONDS + 4) // 2
    print(f"{ROTATIONS} rotations, {sum(peer.judged for peer in town.peers)} verdicts, none of them wrong")


@pytest.mark.parametrize("is_prepared", [True, False])
async def test_an_emergency_under_load_ends_every_token_of_the_key_and_no_other(town: Town, is_prepared: bool) -> None:
    api, fresh = town.replicas[1], town.peers[:2]
    if is_prepared:
        prepared = await town.house(0).signing_keys.prepare(LOCAL_ACT)
    leaked = await active_key_id(town)
    old = [(await each.login_service("shop", town.secret, "internal")).access_token for each in town.replicas]
    assert all(peer.refusal(token) is None for peer in fresh for token in old)
    request = pb.RevokeSigningKeyRequest(key_id=leaked, reason="leaked")
    response = await api.signing_keys.RevokeSigningKey(request, metadata=await api.admin())
    if is_prepared:
        assert response.active_key_id == prepared.key_id
    async with asyncio.timeout(10):
        while any(peer.refusal(token) is None for peer in fresh for token in old):
            await asyncio.sleep(0)

    async def go_on() -> None:
        for _ in range(50):
            for peer in fresh:
                for token in old:
                    assert isinstance(peer.refusal(token), UnknownKey | TokenRevoked)
            await asyncio.sleep(0.02)

    await under_load(town, go_on)
    assert town.wrong() == []
    assert town.key_ids == {response.active_key_id}


async def test_of_replicas_that_prepare_and_activate_at_the_same_moment_all_agree(town: Town) -> None:
    """Both have read the old state before either writes."""
    one, other = (town.house(number).signing_keys for number in range(2))
    for _ in range(3):
        await asyncio.gather(one.tend(), other.tend())
    keys = await one.list_all()
    assert sorted(key.state for key in keys) == [KeyState.ACTIVE, KeyState.PREPARED]
    first = await active_key_id(town)
    step = rules.next_step(keys, Seconds(2**40), timedelta(microseconds=1))
    assert isinstance(step, rules.Activate)
    both = [keeper.activate(step.key_id, LOCAL_ACT, force=True) for keeper in (one, other)]
    assert {key.key_id for key in await asyncio.gather(*both)} == {step.key_id}
    states = {key.key_id: key.state for key in await other.list_all()}
    assert states == {first: KeyState.RETIRED, step.key_id: KeyState.ACTIVE}

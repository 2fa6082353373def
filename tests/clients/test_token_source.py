"""The token that is always at hand: renewed ahead, one renewal at a time, kept while the service is down."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from identity_client.aio.token_source import AccessToken, TokenSource
from identity_client.errors import BadCredentials, DependencyDown, IdentityError
from tests.clients.issuer import FixedClock

LIFETIME = 600


class Service:
    """Issues numbered tokens; can be told to fail, or to wait."""

    def __init__(self, clock: FixedClock) -> None:
        self.clock = clock
        self.logins = 0
        self.error: IdentityError | None = None
        self.gate = asyncio.Event()
        self.gate.set()

    async def obtain(self) -> AccessToken:
        self.logins += 1
        await self.gate.wait()
        if self.error is not None:
            raise self.error
        return AccessToken(f"token {self.logins}", self.clock.now() + LIFETIME)


@pytest.fixture
def service(clock: FixedClock) -> Service:
    return Service(clock)


@pytest.fixture
def source(service: Service, clock: FixedClock) -> TokenSource:
    return TokenSource(service.obtain, name="test", clock=clock)


async def settled(condition: Callable[[], bool]) -> None:
    """Let tasks run until *condition* holds."""
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0)


async def together(attempts: list[Awaitable[AccessToken]]) -> set[str]:
    return {token.raw_token for token in await asyncio.gather(*attempts)}


@pytest.mark.requirement("R73")
async def test_five_hundred_callers_share_one_log_in(service: Service, source: TokenSource) -> None:
    assert await together([source.get() for _ in range(500)]) == {"token 1"}
    assert service.logins == 1


@pytest.mark.requirement("R73")
async def test_a_token_is_renewed_ahead_while_nobody_waits(
    service: Service, source: TokenSource, clock: FixedClock
) -> None:
    await source.get()
    clock.advance(0.69 * LIFETIME)
    assert (await source.get()).raw_token == "token 1"
    assert service.logins == 1
    clock.advance(0.12 * LIFETIME)
    service.gate.clear()
    assert await together([source.get() for _ in range(500)]) == {"token 1"}
    await settled(lambda: service.logins == 2)
    service.gate.set()
    await settled(lambda: source.held is not None)
    assert (await source.get()).raw_token == "token 2"
    assert service.logins == 2


@pytest.mark.requirement("R73")
async def test_across_an_expiry_all_wait_for_one_renewal(
    service: Service, source: TokenSource, clock: FixedClock
) -> None:
    await source.get()
    clock.advance(LIFETIME)
    assert await together([source.get() for _ in range(500)]) == {"token 2"}
    assert service.logins == 2


@pytest.mark.requirement("R73")
async def test_while_the_service_is_down_the_token_in_hand_is_used_to_its_end(
    service: Service, source: TokenSource, clock: FixedClock
) -> None:
    await source.get()
    service.error = DependencyDown(retry_after_seconds=10)
    clock.advance(0.9 * LIFETIME)
    assert (await source.get()).raw_token == "token 1"
    await settled(lambda: service.logins == 2)
    clock.advance(9)
    assert (await source.get()).raw_token == "token 1"
    await asyncio.sleep(0)
    assert service.logins == 2, "RetryInfo was not waited for"
    clock.advance(2)
    assert (await source.get()).raw_token == "token 1"
    await settled(lambda: service.logins == 3)
    clock.advance(LIFETIME)
    with pytest.raises(DependencyDown):
        await source.get()
    service.error = None
    assert (await source.get()).raw_token.startswith("token ")


async def test_what_outlives_a_call_gets_the_new_token_and_the_old_one_only_in_need(
    service: Service, source: TokenSource, clock: FixedClock
) -> None:
    await source.get()
    clock.advance(0.81 * LIFETIME)
    assert (await source.fresh()).raw_token == "token 2"
    service.error = DependencyDown()
    clock.advance(0.81 * LIFETIME)
    assert (await source.fresh()).raw_token == "token 2"
    clock.advance(LIFETIME)
    with pytest.raises(DependencyDown):
        await source.fresh()


async def test_a_refused_token_is_replaced_once_for_all_who_held_it(service: Service, source: TokenSource) -> None:
    first = await source.get()
    for _ in range(3):
        source.discard(first)
    second = await source.get()
    source.discard(first)  # a late one
    assert await source.get() is second
    assert service.logins == 2


async def test_a_caller_who_leaves_does_not_fail_the_others(service: Service, source: TokenSource) -> None:
    service.gate.clear()
    leaving, staying = asyncio.ensure_future(source.get()), asyncio.ensure_future(source.get())
    await settled(lambda: service.logins == 1)
    leaving.cancel()
    service.gate.set()
    assert (await staying).raw_token == "token 1"


async def test_a_refused_log_in_reaches_the_caller(service: Service, source: TokenSource) -> None:
    service.error = BadCredentials()
    with pytest.raises(BadCredentials):
        await source.get()


async def test_a_fleet_does_not_renew_in_step(clock: FixedClock) -> None:
    services = [Service(clock) for _ in range(200)]
    sources = [TokenSource(service.obtain, name="test", clock=clock) for service in services]
    await asyncio.gather(*(source.get() for source in sources))
    clock.advance(0.75 * LIFETIME)
    due = sum(source.held is None for source in sources)
    assert 40 < due < 160

"""Two replicas move the signing keys at the same moment: one key is active at every moment, and no peer misses one.

Each round lets both prepare, activate, retire and revoke at once, in an order by chance. Two watchers read meanwhile,
as replicas and peers do: one the keys, one the feed.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

from identity.domain.signing_keys import KEPT_SECONDS
from identity.domain.values import KeyState, Seconds, SigningKeyRecord
from identity.storage.database import Stores, open_stores
from identity_client.errors import SigningKeyAlreadyPrepared, SigningKeyMisplaced, SigningKeyNotFound
from tests.clients.issuer import FixedClock, new_id
from tests.contract.builders import ACT, add_key

pytestmark = pytest.mark.requirement("R26")

ROUNDS = 40
REFUSALS = (SigningKeyAlreadyPrepared, SigningKeyMisplaced, SigningKeyNotFound)
"""What whoever comes second may be told."""


@pytest.fixture
async def replicas(stores: Stores, url: str, clock: FixedClock) -> AsyncIterator[list[Stores]]:
    """The same database, opened twice."""
    other = await open_stores(url, clock)
    yield [stores, other]
    await other.close()


def record(clock: FixedClock) -> SigningKeyRecord:
    return SigningKeyRecord(new_id(), KeyState.PREPARED, bytes(32), bytes(32), b"sealed", Seconds(int(clock.now())))


async def one_active(stores: Stores) -> list[SigningKeyRecord]:
    keys = await stores.signing_keys.list_keys()
    states = Counter(key.state for key in keys)
    assert states[KeyState.ACTIVE] == 1
    assert states[KeyState.PREPARED] <= 1
    return keys


async def watch_keys(stores: Stores, is_over: asyncio.Event) -> None:
    while not is_over.is_set():
        await one_active(stores)
        await asyncio.sleep(0)


async def watch_feed(stores: Stores, is_over: asyncio.Event) -> None:
    """As a replica follows it: what it has read once is never added to from behind."""
    seen = 0
    while not is_over.is_set():
        for version, _ in await stores.revocations.entries_since(seen, 1_000):
            assert version == seen + 1
            seen = version
        await asyncio.sleep(0)


def moves(replica: Stores, clock: FixedClock, active: str, prepared: str) -> list[Callable[[], Awaitable[object]]]:
    keys = replica.signing_keys
    return [
        lambda: keys.prepare(record(clock), ACT),
        lambda: keys.activate(prepared, ACT, force=True),
        lambda: keys.revoke(active, record(clock), "", ACT),
        lambda: keys.revoke(prepared, record(clock), "", ACT),
        lambda: keys.retire(prepared, ACT),
        keys.remove_old,
    ]


async def play_round(replicas: list[Stores], clock: FixedClock, chance: random.Random) -> set[str]:
    """-> the keys that somebody was told are revoked."""
    keys = await one_active(replicas[0])
    if not any(key.state is KeyState.PREPARED for key in keys):
        keys.append(await replicas[0].signing_keys.prepare(record(clock), ACT))
    names = {key.state: key.key_id for key in keys}
    all_moves = [
        move for replica in replicas for move in moves(replica, clock, names[KeyState.ACTIVE], names[KeyState.PREPARED])
    ]
    chosen = chance.sample(all_moves, k=chance.randint(2, 8))
    outcomes = await asyncio.gather(*(move() for move in chosen), return_exceptions=True)
    for outcome in outcomes:
        assert not isinstance(outcome, BaseException) or isinstance(outcome, REFUSALS), repr(outcome)
    return {outcome[0].key_id for outcome in outcomes if isinstance(outcome, tuple)}


@pytest.mark.parametrize("seed", [1, 2])
async def test_whatever_two_replicas_do_at_once_one_key_is_active_and_each_revoked_one_is_told(
    replicas: list[Stores], clock: FixedClock, seed: int
) -> None:
    chance, is_over, revoked = random.Random(seed), asyncio.Event(), set[str]()
    await add_key(replicas[0], "first")
    async with asyncio.TaskGroup() as group:
        for watcher in (watch_keys, watch_feed):
            group.create_task(watcher(replicas[1], is_over))
        try:
            for _ in range(ROUNDS):
                revoked |= await play_round(replicas, clock, chance)
                clock.advance(KEPT_SECONDS // 4)
        finally:
            is_over.set()
    await one_active(replicas[0])
    entries = await replicas[0].revocations.entries_since(0, 1_000)
    assert [version for version, _ in entries] == list(range(1, len(entries) + 1))
    assert Counter(entry.name for _, entry in entries) == Counter(revoked)
    assert len(revoked) > ROUNDS // 4


async def test_of_two_that_revoke_the_active_key_both_are_told_of_its_one_successor(
    replicas: list[Stores], clock: FixedClock
) -> None:
    active = (await add_key(replicas[0], "first")).key_id
    for _ in range(ROUNDS):
        told = await asyncio.gather(
            *(each.signing_keys.revoke(active, record(clock), "", ACT) for each in replicas for _ in range(2))
        )
        [active] = {successor for _, successor, _ in told}
        assert sum(version is not None for _, _, version in told) == 1
        clock.advance(KEPT_SECONDS)


async def test_a_key_that_is_prepared_while_a_fence_is_drawn_is_told_as_revoked_or_stays(
    replicas: list[Stores], clock: FixedClock
) -> None:
    one, other = replicas
    await add_key(one, "first")
    for _ in range(ROUNDS // 2):
        fence = asyncio.create_task(one.fence.fence(record(clock), ACT, with_credentials=False))
        prepares = (other.signing_keys.prepare(record(clock), ACT) for _ in range(2))
        for outcome in await asyncio.gather(*prepares, return_exceptions=True):
            assert isinstance(outcome, SigningKeyRecord | SigningKeyAlreadyPrepared)
        await fence
        keys = await one_active(one)
        told = {entry.name for _, entry in await one.revocations.entries_since(0, 10_000)}
        assert {key.key_id for key in keys if key.state is KeyState.REVOKED} <= told
        clock.advance(1)

"""What a ThrottleStore promises: nothing gets past a limit, in parallel and over several processes' stores included."""

from __future__ import annotations

import asyncio
import collections
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass

import pytest

from identity.domain.ports import ThrottleStore
from identity.domain.throttle import Attempt, Counter, Limit, Reservation
from identity.storage.database import Stores, open_stores
from identity.storage.redis import throttle as redis_throttle
from identity.storage.redis.client import open_client
from identity.storage.redis.throttle import RedisThrottleStore
from identity.storage.sql import throttle as sql_throttle
from identity.storage.sql.throttle import KNOWN_SECONDS, ROW_LIMIT, SqlThrottleStore
from identity_client.errors import Throttled
from tests.clients.issuer import FixedClock
from tests.contract.builders import count_rows
from tests.redis_server import RedisServer

NAME = Limit(free=10, interval_ms=900_000)
ORIGIN = Limit(free=100, interval_ms=36_000)

pytestmark = pytest.mark.requirement("R51")


@dataclass
class Counters:
    """A store to be tested, and two ways to look at it from outside."""

    throttle: ThrottleStore
    open_another: Callable[[], AbstractAsyncContextManager[ThrottleStore]]
    count_buckets: Callable[[], int]


@asynccontextmanager
async def in_sql(stores: Stores, url: str, clock: FixedClock) -> AsyncIterator[Counters]:
    @asynccontextmanager
    async def open_another() -> AsyncIterator[ThrottleStore]:
        opened = await open_stores(url, clock)
        yield opened.throttle
        await opened.close()

    yield Counters(stores.throttle, open_another, lambda: count_rows(url, "throttle_buckets"))


@asynccontextmanager
async def in_redis(stores: Stores, server: RedisServer, clock: FixedClock) -> AsyncIterator[Counters]:
    @asynccontextmanager
    async def open_another() -> AsyncIterator[ThrottleStore]:
        store = open_redis_throttle(server, stores, clock)
        yield store
        await store.close()

    def count_buckets() -> int:
        keys = [key for kind in "nop" for key in server.client.keys(f"identity:throttle:{kind}:*")]
        assert sorted(keys) == sorted(server.client.zrange("identity:throttle:index", 0, -1))
        assert all(0 < server.client.ttl(key) < 86_400 for key in keys)
        return len(keys)

    async with open_another() as throttle:
        yield Counters(throttle, open_another, count_buckets)


@pytest.fixture(scope="module")
def redis_server() -> Iterator[RedisServer]:
    server = RedisServer()
    yield server
    server.stop()


@pytest.fixture
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have Redis decide on a loaded machine, too."""
    monkeypatch.setattr(redis_throttle, "ANSWER_SECONDS", 30.0)


@pytest.fixture(params=["sql", "redis"])
async def counters(
    request: pytest.FixtureRequest, stores: Stores, url: str, clock: FixedClock, patience: None
) -> AsyncIterator[Counters]:
    """Every promise is kept by either."""
    if request.param == "sql":
        kept = in_sql(stores, url, clock)
    else:
        server: RedisServer = request.getfixturevalue("redis_server")
        server.client.flushall()
        kept = in_redis(stores, server, clock)
    async with kept as counters:
        yield counters


@pytest.fixture
def throttle(counters: Counters) -> ThrottleStore:
    return counters.throttle


def open_redis_throttle(
    server: RedisServer, stores: Stores, clock: FixedClock, row_limit: int = ROW_LIMIT
) -> RedisThrottleStore:
    """Another process's, over the same Redis and the same database."""
    return RedisThrottleStore(
        open_client(server.url, redis_throttle.ANSWER_SECONDS), "identity:", stores.throttle, clock, row_limit
    )


def attempt(name: str = "carol", origin: str = "home") -> Attempt:
    """Keys of the real form: one byte for what is counted, then a digest."""
    return Attempt(
        name=Counter(b"n" + name.encode().ljust(16, b"."), NAME),
        origin=Counter(b"o" + origin.encode().ljust(16, b"."), ORIGIN),
        place=Counter(b"p" + f"{name}@{origin}".encode().ljust(16, b"."), NAME),
    )


async def guesses(store: ThrottleStore, many: int, what: Attempt | None = None) -> list[Reservation]:
    """So many failed attempts, one after the other; -> those that were let through."""
    admitted = []
    for _ in range(many):
        try:
            admitted.append(await store.reserve(what or attempt()))
        except Throttled:
            continue
    return admitted


async def test_what_is_free_is_let_through_and_the_rest_is_told_when_to_come_back(
    throttle: ThrottleStore, clock: FixedClock
) -> None:
    assert len(await guesses(throttle, 20)) == 10
    with pytest.raises(Throttled) as refused:
        await throttle.reserve(attempt())
    assert refused.value.retry_after_seconds == 15
    clock.advance(15)
    assert len(await guesses(throttle, 20)) == 1


async def test_of_200_guesses_at_once_over_two_stores_exactly_the_free_ones_are_let_through(
    counters: Counters,
) -> None:
    async with counters.open_another() as other:
        calls = [store.reserve(attempt()) for store in (counters.throttle, other) for _ in range(100)]
        outcomes = await asyncio.gather(*calls, return_exceptions=True)
    assert sum(isinstance(outcome, Reservation) for outcome in outcomes) == 10
    assert sum(isinstance(outcome, Throttled) for outcome in outcomes) == 190


async def test_an_origin_is_stopped_however_many_names_it_tries_and_other_origins_are_not(
    throttle: ThrottleStore,
) -> None:
    admitted = [len(await guesses(throttle, 1, attempt(f"name-{number}"))) for number in range(150)]
    assert sum(admitted) == 100
    assert len(await guesses(throttle, 1, attempt("name-149", "elsewhere"))) == 1


async def test_a_refused_attempt_counts_nowhere(throttle: ThrottleStore) -> None:
    await guesses(throttle, 10)
    await guesses(throttle, 500)
    others = [len(await guesses(throttle, 1, attempt(f"name-{number}"))) for number in range(100)]
    assert sum(others) == 90


async def test_an_attempt_is_one_transaction_but_while_somebody_guesses_what_is_refused_takes_no_write_lock(
    stores: Stores, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sql_throttle, "LOOKED_AT", 5)
    access, taken = stores.throttle._access, Counted()
    monkeypatch.setattr(access, "read", taken.counting("read", access.read))
    monkeypatch.setattr(access, "write", taken.counting("write", access.write))
    store = SqlThrottleStore(access)
    assert len(await guesses(store, 10)) == 10
    assert taken == {"read": 5, "write": 10}
    await guesses(store, 500)
    assert taken == {"read": 504, "write": 11}
    for number in range(20):
        await guesses(store, 1, attempt(f"name-{number}"))
    assert taken == {"read": 509, "write": 31}


class Counted(collections.Counter[str]):
    """How often each was called."""

    def counting(self, name: str, function: Callable[..., Awaitable[object]]) -> Callable[..., Awaitable[object]]:
        async def call(*arguments: object, **named: object) -> object:
            self[name] += 1
            return await function(*arguments, **named)

        return call


async def test_counts_survive_a_restart(counters: Counters) -> None:
    async with counters.open_another() as ended:
        await guesses(ended, 10)
    async with counters.open_another() as again:
        assert await guesses(again, 20) == []


async def test_what_succeeded_was_not_counted_and_leaves_no_row(throttle: ThrottleStore, counters: Counters) -> None:
    for _ in range(300):
        await throttle.succeeded(await throttle.reserve(attempt()))
    assert counters.count_buckets() == 0
    assert len(await guesses(throttle, 20)) == 10


async def test_a_late_success_does_not_open_what_others_have_filled(throttle: ThrottleStore) -> None:
    [early] = await guesses(throttle, 1)
    assert len(await guesses(throttle, 20)) == 9
    await throttle.succeeded(early)
    assert await guesses(throttle, 20, attempt(origin="elsewhere")) == []


async def test_a_success_of_what_is_forgotten_leaves_no_row(
    throttle: ThrottleStore, stores: Stores, clock: FixedClock, counters: Counters
) -> None:
    [early] = await guesses(throttle, 1)
    clock.advance(10 * 86_400)
    await stores.sweeper.sweep("", 100)
    await throttle.succeeded(early)
    assert counters.count_buckets() == 0


async def test_where_the_owner_logged_in_lately_guesses_from_elsewhere_do_not_count(
    throttle: ThrottleStore, clock: FixedClock
) -> None:
    [at_home] = await guesses(throttle, 1)
    await throttle.succeeded(at_home)
    assert len(await guesses(throttle, 20, attempt(origin="elsewhere"))) == 10
    assert len(await guesses(throttle, 20)) == 10
    clock.advance(KNOWN_SECONDS - 1)
    assert len(await guesses(throttle, 20, attempt(origin="elsewhere"))) == 10
    clock.advance(1)
    assert await guesses(throttle, 20) == []


async def test_a_success_forgets_the_failures_of_its_own_place_alone(throttle: ThrottleStore) -> None:
    [first] = await guesses(throttle, 1)
    await throttle.succeeded(first)
    assert len(await guesses(throttle, 9)) == 9
    [right] = await guesses(throttle, 1)
    await guesses(throttle, 20, attempt(origin="elsewhere"))
    await throttle.succeeded(right)
    assert len(await guesses(throttle, 20)) == 10
    assert await guesses(throttle, 20, attempt(origin="elsewhere")) == []


@pytest.mark.parametrize("jump", [-86_400 * 365, -3_600, 3_600, 86_400 * 365])
async def test_a_clock_that_is_set_neither_locks_for_good_nor_opens_for_good(
    throttle: ThrottleStore, clock: FixedClock, jump: int
) -> None:
    await guesses(throttle, 20)
    clock.wall += jump
    assert len(await guesses(throttle, 200)) <= 10
    for _ in range(10):
        clock.advance(900)
        assert 1 <= len(await guesses(throttle, 20)) <= 2


async def test_drained_buckets_and_forgotten_places_are_swept(stores: Stores, clock: FixedClock, url: str) -> None:
    for number in range(50):
        [reservation] = await guesses(stores.throttle, 1, attempt(f"name-{number}"))
        if number % 2:
            await stores.throttle.succeeded(reservation)
    assert (count_rows(url, "throttle_buckets"), count_rows(url, "known_places")) == (26, 25)
    await stores.sweeper.sweep("", 100)
    assert (count_rows(url, "throttle_buckets"), count_rows(url, "known_places")) == (26, 25)
    clock.advance(KNOWN_SECONDS)
    await stores.sweeper.sweep("", 100)
    assert (count_rows(url, "throttle_buckets"), count_rows(url, "known_places")) == (0, 0)


async def test_the_table_shrinks_while_it_is_used(
    throttle: ThrottleStore, clock: FixedClock, counters: Counters
) -> None:
    for number in range(40):
        await guesses(throttle, 1, attempt(f"name-{number}", f"origin-{number}"))
    clock.advance(3_600)
    for number in range(40):
        await guesses(throttle, 1, attempt(f"later-{number}", f"site-{number}"))
    assert counters.count_buckets() == 80


async def test_invented_names_and_origins_beyond_the_row_limit_share_buckets_and_still_meet_their_limit(
    stores: Stores, clock: FixedClock, url: str
) -> None:
    await share_buckets(
        SqlThrottleStore(stores.throttle._access, row_limit=20), clock, lambda: count_rows(url, "throttle_buckets")
    )


async def test_in_redis_they_share_buckets_as_well_and_so_they_do_in_what_sql_learns(
    stores: Stores, clock: FixedClock, redis_server: RedisServer, url: str, patience: None
) -> None:
    redis_server.client.flushall()
    small = open_redis_throttle(redis_server, stores, clock, row_limit=20)
    await share_buckets(small, clock, lambda: redis_server.client.zcard("identity:throttle:index"))
    await small.close()
    assert count_rows(url, "throttle_buckets") == redis_server.client.zcard("identity:throttle:index")


async def share_buckets(small: ThrottleStore, clock: FixedClock, count: Callable[[], int]) -> None:
    [right] = await guesses(small, 1)
    await small.succeeded(right)
    for number in range(10):
        await guesses(small, 1, attempt(f"name-{number}", f"site-{number}"))
    clock.advance(10)
    admitted = [len(await guesses(small, 1, attempt(f"xx-{number}", f"yy-{number}"))) for number in range(60)]
    assert sum(admitted) == 10
    assert count() == 22
    assert len(await guesses(small, 1)) == 1
    assert len(await guesses(small, 20, attempt("name-0", "site-0"))) == 9


# -- Redis counts, and SQL stands behind it ------------------------------------------------------------------------


@pytest.fixture
async def shared(
    stores: Stores, clock: FixedClock, redis_server: RedisServer, patience: None
) -> AsyncIterator[RedisThrottleStore]:
    redis_server.client.flushall()
    store = open_redis_throttle(redis_server, stores, clock)
    yield store
    await store.close()


async def test_both_count_alike(
    shared: RedisThrottleStore, stores: Stores, clock: FixedClock, redis_server: RedisServer
) -> None:
    chance = random.Random(51)
    held: list[tuple[Reservation, Reservation]] = []
    for turn in range(500):
        clock.wall += chance.choice((0, 0.001, 0.5, 1, 2, 4, 8, 16, 31, 61, -5, 600) if turn % 100 else (-7_200, 7_200))
        what = limited(attempt(f"name-{chance.randrange(2)}", f"site-{chance.randrange(2)}"))
        outcomes = await asyncio.gather(
            shared.reserve(what), stores.throttle.reserve(other_key(what)), return_exceptions=True
        )
        assert told(outcomes[0]) == told(outcomes[1])
        if isinstance(outcomes[0], Reservation) and isinstance(outcomes[1], Reservation):
            held.append((outcomes[0], outcomes[1]))
        if held and chance.random() < 0.1:
            one, another = held.pop(chance.randrange(len(held)))
            await shared.succeeded(one)
            await stores.throttle.succeeded(another)


def limited(what: Attempt) -> Attempt:
    """With limits that are met soon."""
    name, origin = Limit(free=3, interval_ms=60_000), Limit(free=5, interval_ms=6_000)
    return Attempt(Counter(what.name.key, name), Counter(what.origin.key, origin), Counter(what.place.key, name))


def other_key(what: Attempt) -> Attempt:
    """The same attempt in buckets of its own."""
    return Attempt(*(Counter(each.key + b"!", each.limit) for each in (what.name, what.origin, what.place)))


def told(outcome: Reservation | BaseException) -> object:
    if isinstance(outcome, Throttled):
        return outcome.retry_after_seconds
    assert isinstance(outcome, Reservation)
    return [next_ms for _, next_ms in outcome.counted]


async def test_a_log_in_that_succeeds_at_once_is_not_noted_in_sql_and_one_that_fails_is(
    shared: RedisThrottleStore, url: str
) -> None:
    await guesses(shared, 3)
    [right] = await guesses(shared, 1, attempt("dave", "office"))
    await shared.note_failures()
    assert count_rows(url, "throttle_buckets") == 0
    await shared.succeeded(right)
    await shared.note_failures()
    assert count_rows(url, "throttle_buckets") == 2


async def test_one_that_succeeds_after_it_was_noted_is_uncounted_in_both(
    shared: RedisThrottleStore, url: str, redis_server: RedisServer
) -> None:
    [slow] = await guesses(shared, 1)
    for _ in range(2):
        await shared.note_failures()
    assert count_rows(url, "throttle_buckets") == 2
    await shared.succeeded(slow)
    assert count_rows(url, "throttle_buckets") == 0
    assert redis_server.client.keys("identity:throttle:*") == []


async def test_a_success_takes_the_failures_of_its_place_out_of_what_is_yet_to_be_noted(
    shared: RedisThrottleStore, redis_server: RedisServer
) -> None:
    [first] = await guesses(shared, 1)
    await shared.succeeded(first)
    assert len(await guesses(shared, 9)) == 9
    [right] = await guesses(shared, 1)
    await shared.succeeded(right)
    for _ in range(2):
        await shared.note_failures()
    redis_server.client.flushall()
    assert len(await guesses(shared, 20)) == 10


async def test_what_was_noted_is_no_fresh_start_after_a_flush(
    shared: RedisThrottleStore, redis_server: RedisServer
) -> None:
    await guesses(shared, 7)
    for _ in range(2):
        await shared.note_failures()
    redis_server.client.flushall()
    assert len(await guesses(shared, 20)) == 3


async def test_a_flush_forgets_no_more_than_was_not_noted(
    shared: RedisThrottleStore, redis_server: RedisServer
) -> None:
    assert len(await guesses(shared, 20)) == 10
    redis_server.client.flushall()
    assert len(await guesses(shared, 20)) == 10  # twice the allowance, and that is all
    for _ in range(2):
        await shared.note_failures()
    for _ in range(3):
        redis_server.client.flushall()
        assert await guesses(shared, 20) == []


async def refuse_memory(server: RedisServer) -> None:
    server.client.config_set("maxmemory", 1)


async def make_replica(server: RedisServer) -> None:
    server.client.replicaof("127.0.0.1", 1)


async def hang(server: RedisServer) -> None:
    server.pause()


async def kill(server: RedisServer) -> None:
    server.kill()


@pytest.mark.requirement("R9")
@pytest.mark.parametrize("harm", [refuse_memory, make_replica, hang, kill])
async def test_a_redis_that_is_lost_in_the_middle_gives_a_guesser_nothing(
    stores: Stores, clock: FixedClock, harm: Callable[[RedisServer], Awaitable[None]]
) -> None:
    server = RedisServer()
    store = open_redis_throttle(server, stores, clock)
    try:
        assert len(await guesses(store, 6)) == 6
        await harm(server)
        assert len(await guesses(store, 20)) == 4
        [elsewhere] = await guesses(store, 1, attempt("dave", "office"))
        await store.succeeded(elsewhere)
        await store.close()
    finally:
        server.resume()
        server.stop()

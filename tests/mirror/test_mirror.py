"""The mirror itself: what its sentinel says is true, whatever happens to Redis and to SQL in between."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import math
import time
from typing import Any, cast

import pytest
from redis.exceptions import RedisError

from identity.config import ConfigurationError
from identity.domain.ports import RevocationStore
from identity.server import Server
from identity.storage.redis import mirror as following
from identity.storage.redis import rebuild, writing
from identity.storage.redis.mirror import Mirror
from identity_client.redis import RedisRevocations
from identity_client.trust.entries import Entry, EntryKind
from identity_client.trust.source import SourceDown
from tests.clients.issuer import new_id
from tests.clients.shapes import until
from tests.mirror.conftest import Mirrored
from tests.mirror.feed import (
    ACCOUNT,
    FeedStore,
    a_minimum,
    caught_up,
    expiring,
    has_built,
    held_tokens,
    sentinel,
    tokens,
    version,
)
from tests.redis_server import RedisServer
from tests.rpc.api import Api, MakeSettings
from tests.rpc.test_http_listener import metrics_of


@pytest.mark.requirement("R27")
async def test_every_kind_is_there_until_its_entry_expires(
    redis_server: RedisServer, store: FeedStore, mirror: Mirror
) -> None:
    expire_time = expiring()
    kinds = {EntryKind.TOKEN: "jti", EntryKind.GRANT: "sid", EntryKind.ACCOUNT: "gen", EntryKind.ROLE: "pol"}
    names = {kind: new_id() for kind in EntryKind}
    store.add(*(Entry(kind, names[kind], expire_time, 7) for kind in (EntryKind.TOKEN, EntryKind.ACCOUNT)))
    await mirror.start()  # these by a rebuild
    await caught_up(redis_server, store)
    store.add(*(Entry(kind, names[kind], expire_time, 7) for kind in (EntryKind.GRANT, EntryKind.ROLE, EntryKind.KEY)))
    mirror.ring()  # and these by a step
    await caught_up(redis_server, store)
    for kind in EntryKind:
        key = f"identity:{kinds.get(kind, 'kid')}:{names[kind]}"
        assert redis_server.client.get(key) == ("7" if kind in (EntryKind.ACCOUNT, EntryKind.ROLE) else "1")
        assert abs(redis_server.client.ttl(key) - 600) <= 5
    assert sentinel(redis_server)["count"] == 5
    await until(lambda: redis_server.client.get("identity:fresh") == "1")
    assert redis_server.client.ttl("identity:fresh") > 20


async def test_of_two_minimums_the_higher_and_of_two_expiries_the_later_holds(
    redis_server: RedisServer, store: FeedStore, mirror: Mirror
) -> None:
    name, later = new_id(), expiring() + 1_000
    store.add(Entry(EntryKind.ACCOUNT, name, later, 5))
    await mirror.start()
    await caught_up(redis_server, store)
    store.add(Entry(EntryKind.ACCOUNT, name, expiring(), 6))
    mirror.ring()
    await caught_up(redis_server, store)
    assert redis_server.client.get(f"identity:gen:{name}") == "6"
    assert redis_server.client.ttl(f"identity:gen:{name}") > 1_500


async def test_a_flush_in_the_middle_of_a_step_is_noticed(
    redis_server: RedisServer, store: FeedStore, mirror: Mirror
) -> None:
    store.add(*tokens(10))
    await mirror.start()
    await caught_up(redis_server, store)
    flushes = iter([redis_server.client.flushall])
    store.meanwhile = lambda: next(flushes, lambda: None)()
    store.add(*tokens(1))
    mirror.ring()
    await caught_up(redis_server, store)
    assert held_tokens(redis_server) == {entry.name for _, entry in store.changes}


@pytest.mark.parametrize("part", [0, 1, 2])
async def test_a_flush_in_the_middle_of_a_rebuild_is_noticed(
    redis_server: RedisServer, store: FeedStore, mirror: Mirror, part: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rebuild, "PART", 10)
    store.add(*tokens(30))
    put, calls = mirror._builder._put_part, itertools.count()

    async def flush_and_put(*which: Any) -> None:
        if next(calls) == part:  # the claim is there, and so are the parts before
            redis_server.client.flushall()
        await put(*which)

    monkeypatch.setattr(mirror._builder, "_put_part", flush_and_put)
    await mirror.start()
    await caught_up(redis_server, store)
    assert held_tokens(redis_server) == {entry.name for _, entry in store.changes}


async def test_a_flush_at_the_very_end_of_a_rebuild_is_noticed(redis_server: RedisServer, store: FeedStore) -> None:
    flushes = iter([redis_server.client.flushall])

    def count_and_flush() -> int:  # asked for when all is checked and the sentinel is about to be written
        next(flushes, lambda: None)()
        return 0

    store.add(*tokens(5))
    mirror = Mirror(redis_server.url, "identity:", cast(RevocationStore, store), count_and_flush)
    await mirror.start()
    await caught_up(redis_server, store)
    assert held_tokens(redis_server) == {entry.name for _, entry in store.changes}
    await mirror.stop()


async def test_a_copy_of_redis_that_lacks_the_last_writes_is_brought_up_to_date(
    redis_server: RedisServer, store: FeedStore, mirror: Mirror
) -> None:
    store.add(*tokens(5))
    await mirror.start()
    await caught_up(redis_server, store)
    before = redis_server.client.get("identity:trust")
    store.add(*tokens(5))
    mirror.ring()
    await caught_up(redis_server, store)
    lost = [entry.name for _, entry in store.changes[5:]]
    with redis_server.client.pipeline() as pipe:  # as a replica that takes over would be
        pipe.delete(*(f"identity:jti:{name}" for name in lost)).set("identity:trust", before).execute()
    await caught_up(redis_server, store)
    assert held_tokens(redis_server) == {entry.name for _, entry in store.changes}


async def test_another_epoch_leaves_nothing_of_the_last_one(
    redis_server: RedisServer, store: FeedStore, mirror: Mirror
) -> None:
    account = new_id()
    store.add(Entry(EntryKind.ACCOUNT, account, expiring(), 9))
    await mirror.start()
    await caught_up(redis_server, store)
    store.epoch, store.changes = "epoch-2", []
    store.add(*tokens(1))
    await caught_up(redis_server, store)
    assert redis_server.client.get(f"identity:gen:{account}") is None
    assert len(held_tokens(redis_server)) == 1


async def test_a_long_queue_does_not_look_fresh_before_its_end(
    redis_server: RedisServer, store: FeedStore, mirror: Mirror, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writing, "PART", 10)
    store.add(*tokens(1))
    await mirror.start()
    await caught_up(redis_server, store)
    seen: list[tuple[int, int]] = []
    store.meanwhile = lambda: seen.append((version(redis_server), int(sentinel(redis_server)["time_ms"])))
    store.add(*tokens(35))
    mirror.ring()
    await caught_up(redis_server, store)
    times = {time_ms for at, time_ms in seen if at < 36}
    assert len({at for at, _ in seen if at < 36}) > 2
    assert len(times) <= 2  # that of the last beat before, whenever it was


@pytest.mark.parametrize("policy", ["volatile-lru", "volatile-ttl", "allkeys-lru"])
async def test_a_redis_that_drops_keys_is_refused_at_the_start(make_settings: MakeSettings, policy: str) -> None:
    redis_server = RedisServer(policy)
    server = Server(make_settings(redis_url=redis_server.url))
    try:
        with pytest.raises(ConfigurationError, match=f"maxmemory-policy is {policy}"):
            await server.start()
    finally:
        await server.stop()
        redis_server.stop()


async def test_a_policy_that_is_changed_later_takes_the_sentinel_away_until_it_is_mended(
    redis_server: RedisServer, store: FeedStore, mirror: Mirror, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(following, "_POLICY_SECONDS", 0.0)
    store.add(*tokens(1))
    await mirror.start()
    await caught_up(redis_server, store)
    redis_server.client.config_set("maxmemory-policy", "volatile-lru")
    await until(lambda: not redis_server.client.exists("identity:trust", "identity:fresh"))
    redis_server.client.config_set("maxmemory-policy", "noeviction")
    await caught_up(redis_server, store)


@pytest.mark.requirement("R9")
async def test_the_service_starts_without_redis_and_fills_it_when_it_comes(
    make_settings: MakeSettings, redis_server: RedisServer
) -> None:
    redis_server.kill()
    server = Server(make_settings(redis_url=redis_server.url))
    address = await server.start()
    try:
        redis_server.start()
        await until(lambda: version(redis_server) >= 0)
    finally:
        await Api(server, address).channel.close()
        await server.stop()


@pytest.mark.requirement("R9")
async def test_no_call_waits_for_a_redis_that_hangs(fragile: Mirrored, redis_server: RedisServer) -> None:
    await fragile.api.create_user("carol", "clerk")
    redis_server.pause()
    try:
        start = time.monotonic()
        await fragile.api.login("carol")
        await fragile.api.create_user("dave", "clerk")
        print(f"three log-ins and a new account in {(time.monotonic() - start) * 1000:.0f} ms")
    finally:
        redis_server.resume()
    await fragile.has_caught_up()


@pytest.mark.requirement("R9")
async def test_the_page_of_metrics_says_whether_redis_is_left_alone(
    fragile: Mirrored, redis_server: RedisServer
) -> None:
    async def is_left_alone() -> bool:
        page = await metrics_of(fragile.api.server.http_address)
        return page["identity_redis_breaker_open", "throttle"] == 1

    await fragile.api.create_user("carol", "clerk")
    assert not await is_left_alone()
    redis_server.pause()
    try:
        await fragile.api.login("carol")  # which has waited for it
        assert await is_left_alone()
    finally:
        redis_server.resume()
    async with asyncio.timeout(10):
        while await is_left_alone():
            await asyncio.sleep(0.02)
    await fragile.has_caught_up()


async def test_it_stops_even_if_its_cancellation_is_swallowed(
    redis_server: RedisServer, mirror: Mirror, monkeypatch: pytest.MonkeyPatch
) -> None:
    is_waiting = asyncio.Event()

    async def swallow() -> None:
        is_waiting.set()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.Event().wait()

    monkeypatch.setattr(mirror, "_follow", swallow)
    await mirror.start()
    await is_waiting.wait()
    async with asyncio.timeout(30):
        await mirror.stop()


async def test_a_value_that_nobody_of_us_wrote_is_replaced(
    redis_server: RedisServer, store: FeedStore, mirror: Mirror
) -> None:
    store.add(a_minimum(9))
    await has_built(mirror, redis_server, store)
    redis_server.client.set(f"identity:gen:{ACCOUNT}", "what is no number", ex=600)
    store.add(a_minimum(10))
    with pytest.raises(RedisError):
        await mirror._follow()
    await has_built(mirror, redis_server, store)
    assert redis_server.client.get(f"identity:gen:{ACCOUNT}") == "10"


async def test_many_questions_at_once_are_not_taken_for_a_redis_that_is_down(
    redis_server: RedisServer, store: FeedStore, mirror: Mirror
) -> None:
    await has_built(mirror, redis_server, store)
    reader = RedisRevocations(redis_server.url, timeout_seconds=0.1, maximum_connections=1)
    async with reader._slots:  # as long as another question is under way
        asked = await asyncio.gather(*(reader.ask([]) for _ in range(10)), return_exceptions=True)
    assert all(isinstance(answer, SourceDown) for answer in asked)
    state, _ = await reader.ask([])
    await reader.close()
    assert state.age_seconds < math.inf

"""Several mirrors write into one Redis: one builds at a time, and none undoes what another has written."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from redis.exceptions import WatchError

from identity.storage.redis import rebuild
from identity.storage.redis.mirror import Mirror
from tests.mirror.feed import ACCOUNT, FeedStore, a_minimum, caught_up, has_built, held_tokens, tokens, version
from tests.redis_server import RedisServer


async def test_a_builder_that_was_overtaken_lowers_no_minimum(
    redis_server: RedisServer, store: FeedStore, mirror: Mirror, another: Mirror, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.add(a_minimum(5))
    put, waits, goes_on = mirror._builder._put_part, asyncio.Event(), asyncio.Event()

    async def wait_and_put(*part: Any) -> None:
        waits.set()
        await goes_on.wait()
        await put(*part)

    monkeypatch.setattr(mirror._builder, "_put_part", wait_and_put)
    building = asyncio.create_task(mirror._follow())
    await waits.wait()
    await another._follow()
    assert version(redis_server) == -1  # it does not build what somebody else is building
    redis_server.client.delete("identity:builder")  # until that one's claim has ended
    await has_built(another, redis_server, store)
    store.add(a_minimum(6))
    await has_built(another, redis_server, store)
    goes_on.set()
    with pytest.raises(WatchError):
        await building
    assert redis_server.client.get(f"identity:gen:{ACCOUNT}") == "6"


async def test_what_a_builder_that_died_has_begun_another_finishes_once_its_claim_has_ended(
    redis_server: RedisServer, store: FeedStore, mirror: Mirror, another: Mirror, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rebuild, "BUILD_SECONDS", 1)
    monkeypatch.setattr(rebuild, "PART", 10)
    store.add(*tokens(30))
    put, parts = mirror._builder._put_part, iter(range(1, 1_000))

    async def die_in_the_middle(*part: Any) -> None:
        if next(parts) == 2:
            raise ConnectionError
        await put(*part)

    monkeypatch.setattr(mirror._builder, "_put_part", die_in_the_middle)
    with pytest.raises(ConnectionError):
        await mirror._follow()
    assert len(held_tokens(redis_server)) == 10
    await another.start()  # and the first one does nothing any more
    await caught_up(redis_server, store)
    assert held_tokens(redis_server) == {entry.name for _, entry in store.changes}


async def test_a_builder_that_was_overtaken_removes_nothing(
    redis_server: RedisServer, store: FeedStore, mirror: Mirror, another: Mirror, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.add(a_minimum(9))
    await has_built(mirror, redis_server, store)
    store.epoch = "epoch-2"
    look, waits, goes_on = mirror._builder._held_keys, asyncio.Event(), asyncio.Event()

    async def look_and_wait() -> AsyncIterator[list[str]]:
        async for keys in look():
            waits.set()
            await goes_on.wait()
            yield keys

    monkeypatch.setattr(mirror._builder, "_held_keys", look_and_wait)
    building = asyncio.create_task(mirror._follow())
    await waits.wait()
    redis_server.client.delete("identity:builder")
    await has_built(another, redis_server, store)
    goes_on.set()
    with pytest.raises(WatchError):
        await building
    assert redis_server.client.get(f"identity:gen:{ACCOUNT}") == "9"


async def test_what_a_failed_purge_left_is_removed_by_the_next(
    redis_server: RedisServer, store: FeedStore, mirror: Mirror, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.add(a_minimum(9))
    await has_built(mirror, redis_server, store)
    store.epoch, store.changes = "epoch-2", []

    async def fail() -> AsyncIterator[list[str]]:
        raise ConnectionError
        yield []

    with monkeypatch.context() as patch:
        patch.setattr(mirror._builder, "_held_keys", fail)
        with pytest.raises(ConnectionError):
            await mirror._follow()
    redis_server.client.set("identity:of:another", 1)  # a service whose prefix begins with ours
    await has_built(mirror, redis_server, store)
    assert redis_server.client.keys("identity:gen:*") == []
    assert redis_server.client.exists("identity:of:another")

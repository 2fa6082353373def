"""A clock of Redis that is or was ahead: what it made Redis drop is never vouched for."""

from __future__ import annotations

import contextlib
import json
import math
import re
import time
from typing import Any

import pytest
import redis
from redis.exceptions import NoPermissionError, RedisError

from identity.storage.redis import mirror as following
from identity.storage.redis import rebuild
from identity.storage.redis.client import Instant, instant, time_ms
from identity.storage.redis.mirror import Mirror
from identity_client.redis import RedisRevocations
from identity_client.redis.schema import FRESH_SECONDS, TRUST_SECONDS
from identity_client.trust.entries import Entry
from tests.mirror.feed import ACCOUNT, FeedStore, a_minimum, caught_up, has_built, held_tokens, sentinel, tokens
from tests.redis_server import RedisServer

HOUR_MS = 3_600_000


async def follow(mirror: Mirror) -> None:
    """One beat; again where a connection of before was lost, or none was made in time."""
    for _ in range(10):
        with contextlib.suppress(redis.ConnectionError, redis.TimeoutError):
            return await mirror._follow()
    raise AssertionError("no connection lasts")


async def age_seconds(redis_server: RedisServer) -> float:
    """How old the news are to a peer that asks; infinite where it may not take an absent entry for news."""
    reader = RedisRevocations(redis_server.url, timeout_seconds=10)
    state, _ = await reader.ask([])
    await reader.close()
    return state.age_seconds


def say(redis_server: RedisServer, **changes: object) -> None:
    """Have the sentinel say something else."""
    redis_server.client.set("identity:trust", json.dumps(sentinel(redis_server) | changes))


def drop(redis_server: RedisServer, store: FeedStore) -> None:
    """Take away every entry, as Redis does where its clock says that they have expired."""
    assert redis_server.client.delete(*(f"identity:jti:{entry.name}" for _, entry in store.changes))


def restart(redis_server: RedisServer, ahead_ms: int = 0) -> None:
    """Save, start and load, by a clock that is *ahead_ms* ahead and is set right at once.

    Loading drops what has expired by then: so it is with expiries that are set back by as much in the file.
    """
    redis_server.client.save()
    redis_server.kill()
    now, dump = int(time.time() * 1_000), redis_server.folder / "dump.rdb"

    def set_back(found: re.Match[bytes]) -> bytes:
        expiry = int.from_bytes(found[1], "little")
        is_expiry = now < expiry < now + HOUR_MS
        return b"\xfc" + (expiry - ahead_ms).to_bytes(8, "little") if is_expiry else found[0]

    content = re.sub(b"\xfc(.{8})", set_back, dump.read_bytes(), flags=re.DOTALL)
    dump.write_bytes(content[:-8] + bytes(8))  # without a checksum
    redis_server.start()
    dump.unlink()


@pytest.mark.requirement("R27")
async def test_a_redis_that_loads_its_file_by_a_clock_that_is_ahead_vouches_for_nothing(
    redis_server: RedisServer, store: FeedStore, mirror: Mirror
) -> None:
    store.add(*tokens(3))
    await follow(mirror)
    restart(redis_server, 3 * HOUR_MS)
    assert held_tokens(redis_server) == set()
    assert await age_seconds(redis_server) == math.inf  # nor before the mirror's next beat
    assert not redis_server.client.exists("identity:fresh")
    await follow(mirror)
    assert await age_seconds(redis_server) < 1
    assert held_tokens(redis_server) == {entry.name for _, entry in store.changes}


async def test_the_sentinel_expires_sooner_than_an_entry_that_a_living_token_needs(
    redis_server: RedisServer, store: FeedStore, mirror: Mirror
) -> None:
    store.add(*tokens(3))
    await follow(mirror)
    assert TRUST_SECONDS - 10 < redis_server.client.ttl("identity:trust") <= TRUST_SECONDS
    assert TRUST_SECONDS + following._SKEW_SECONDS <= 600
    restart(redis_server, (TRUST_SECONDS + 1) * 1_000)
    assert len(held_tokens(redis_server)) == 3
    assert await age_seconds(redis_server) == math.inf


@pytest.mark.requirement("R27")
async def test_after_a_restart_of_redis_everything_is_written_again(
    redis_server: RedisServer, store: FeedStore, mirror: Mirror
) -> None:
    store.add(*tokens(3))
    await follow(mirror)
    restart(redis_server)
    drop(redis_server, store)  # one that keeps a log of its writes forgets them one by one, the sentinel last perhaps
    await follow(mirror)
    assert held_tokens(redis_server) == {entry.name for _, entry in store.changes}


async def test_after_a_restart_only_one_of_several_mirrors_builds(
    redis_server: RedisServer, store: FeedStore, mirror: Mirror, another: Mirror, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.add(*tokens(3))
    await follow(mirror)
    restart(redis_server)
    builds = count_builds(monkeypatch, mirror, another)
    for _ in range(3):
        await follow(mirror)
        await follow(another)
    assert len(builds) == 1


async def test_a_restart_in_the_middle_of_a_rebuild_is_noticed(
    redis_server: RedisServer, store: FeedStore, mirror: Mirror, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.add(*tokens(3))
    put = mirror._builder._put_part

    async def put_and_restart(count: int, part: list[Entry], *which: Any) -> None:
        await put(count, part, *which)
        monkeypatch.setattr(mirror._builder, "_put_part", put)
        restart(redis_server)  # it keeps the claim
        drop(redis_server, store)
        await mirror._redis.connection_pool.disconnect()  # those of before would tell of it

    monkeypatch.setattr(mirror._builder, "_put_part", put_and_restart)
    await mirror.start()
    await caught_up(redis_server, store)
    assert held_tokens(redis_server) == {entry.name for _, entry in store.changes}


@pytest.mark.requirement("R27")
async def test_without_a_beat_for_long_everything_is_written_again(
    redis_server: RedisServer, store: FeedStore, mirror: Mirror
) -> None:
    store.add(*tokens(3))
    await follow(mirror)
    drop(redis_server, store)  # while nobody has watched its clock
    say(redis_server, beat_ms=sentinel(redis_server)["beat_ms"] - FRESH_SECONDS * 1_000 - 1)
    await follow(mirror)
    assert held_tokens(redis_server) == {entry.name for _, entry in store.changes}


async def test_a_build_that_takes_longer_than_a_beat_may_is_not_begun_again(
    redis_server: RedisServer, store: FeedStore, mirror: Mirror, another: Mirror, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def long_ago(client: Any) -> int:
        return await time_ms(client) - 2 * FRESH_SECONDS * 1_000

    monkeypatch.setattr(rebuild, "time_ms", long_ago)  # when the feed was read
    store.add(*tokens(3))
    builds = count_builds(monkeypatch, mirror, another)
    for follower in (mirror, another, mirror):
        await follow(follower)
    assert len(builds) == 1
    assert await age_seconds(redis_server) < 1


def count_builds(monkeypatch: pytest.MonkeyPatch, *mirrors: Mirror) -> list[Mirror]:
    """-> a list that grows by one with each build of theirs; a third fails."""
    builds: list[Mirror] = []

    def counting(mirror: Mirror) -> Any:
        build = mirror._builder.build

        async def build_and_count(start: Instant) -> None:
            builds.append(mirror)
            assert len(builds) < 3
            await build(start)

        return build_and_count

    for mirror in mirrors:
        monkeypatch.setattr(mirror._builder, "build", counting(mirror))
    return builds


async def test_a_sentinel_that_does_not_tell_its_run_is_replaced(
    redis_server: RedisServer, store: FeedStore, mirror: Mirror
) -> None:
    store.add(*tokens(3))
    await follow(mirror)
    held = sentinel(redis_server)
    redis_server.client.set("identity:trust", json.dumps({key: held[key] for key in list(held)[:4]}))
    assert list(sentinel(redis_server)) == ["epoch", "version", "count", "time_ms"]
    assert await age_seconds(redis_server) < 10  # peers read it
    drop(redis_server, store)
    await follow(mirror)
    assert held_tokens(redis_server) == {entry.name for _, entry in store.changes}


async def test_a_redis_that_does_not_tell_its_run_is_not_vouched_for(
    redis_server: RedisServer, store: FeedStore, mirror: Mirror
) -> None:
    policy = {"maxmemory_policy": "noeviction"}
    mirror._redis.set_response_callback("INFO", lambda *_, **__: policy)  # as behind a proxy
    with pytest.raises(RedisError, match="tells no run_id"):
        await follow(mirror)
    assert await age_seconds(redis_server) == math.inf
    mirror._redis.set_response_callback("INFO", lambda *_, **__: policy | {"run_id": "a"})
    await has_built(mirror, redis_server, store)


async def test_a_redis_that_refuses_info_is_not_vouched_for(
    redis_server: RedisServer, store: FeedStore, mirror: Mirror
) -> None:
    acl = ("ACL", "SETUSER", "default")
    redis_server.client.execute_command(*acl, "-info")
    with pytest.raises(NoPermissionError):
        await follow(mirror)
    assert await age_seconds(redis_server) == math.inf
    redis_server.client.execute_command(*acl, "+info")
    await has_built(mirror, redis_server, store)


async def test_after_a_clock_that_was_ahead_everything_is_written_again(
    redis_server: RedisServer, store: FeedStore, mirror: Mirror
) -> None:
    store.add(a_minimum(9))
    await has_built(mirror, redis_server, store)
    # What a step ahead and back leaves behind: the entry has expired, the sentinel is of a time to come.
    redis_server.client.delete(f"identity:gen:{ACCOUNT}")
    ahead_ms = sentinel(redis_server)["time_ms"] + HOUR_MS
    say(redis_server, time_ms=ahead_ms, beat_ms=ahead_ms)
    assert await age_seconds(redis_server) == math.inf
    await has_built(mirror, redis_server, store)
    assert redis_server.client.get(f"identity:gen:{ACCOUNT}") == "9"


@pytest.mark.requirement("R27")
@pytest.mark.parametrize("step", [-301, 301, 86_400])
async def test_a_redis_whose_clock_has_stepped_away_is_not_vouched_for(
    redis_server: RedisServer, store: FeedStore, mirror: Mirror, step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.add(*tokens(3))
    await has_built(mirror, redis_server, store)
    await follow(mirror)
    assert redis_server.client.exists("identity:fresh")

    async def stepped(client: Any) -> Instant:
        now = await instant(client)
        return Instant(now.run_id, now.time_ms + step * 1_000)

    monkeypatch.setattr(following, "instant", stepped)
    with pytest.raises(RedisError, match="the clock of Redis is"):
        await follow(mirror)
    assert not redis_server.client.exists("identity:fresh", "identity:trust")
    monkeypatch.setattr(following, "instant", instant)
    await has_built(mirror, redis_server, store)

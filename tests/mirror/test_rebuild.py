"""The mirror built anew, page by page and part by part, while calls go on."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from identity.storage.redis import rebuild
from identity.storage.redis.mirror import Mirror
from identity.storage.redis.rebuild import Pace
from identity_client.trust.entries import Entry
from tests.mirror.feed import ACCOUNT, FeedStore, a_minimum, has_built, held_tokens, tokens
from tests.redis_server import RedisServer


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages of 20, parts of 10."""
    monkeypatch.setattr(rebuild, "PAGE", 20)
    monkeypatch.setattr(rebuild, "PART", 10)


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("count", [0, 1, 19, 20, 21, 65])
async def test_entries_of_every_page_are_there(
    redis_server: RedisServer, store: FeedStore, mirror: Mirror, count: int
) -> None:
    store.add(*tokens(count))
    await has_built(mirror, redis_server, store)
    assert held_tokens(redis_server) == {entry.name for _, entry in store.changes}


@pytest.mark.usefixtures("small")
async def test_versions_that_were_swept_hide_none(redis_server: RedisServer, store: FeedStore, mirror: Mirror) -> None:
    store.add(*tokens(70))
    store.swept = {*range(6, 31), 70}
    await has_built(mirror, redis_server, store)
    assert held_tokens(redis_server) == {entry.name for version, entry in store.changes if version not in store.swept}


@pytest.mark.usefixtures("small")
async def test_the_highest_minimum_of_all_pages_holds(
    redis_server: RedisServer, store: FeedStore, mirror: Mirror
) -> None:
    store.add(a_minimum(7), *tokens(25), a_minimum(5), *tokens(25), a_minimum(6))
    await has_built(mirror, redis_server, store)
    assert redis_server.client.get(f"identity:gen:{ACCOUNT}") == "7"


@pytest.mark.usefixtures("small")
async def test_what_is_no_longer_in_the_feed_is_removed_from_every_page(
    redis_server: RedisServer, store: FeedStore, mirror: Mirror
) -> None:
    store.add(*tokens(150))
    await has_built(mirror, redis_server, store)
    store.epoch, store.changes = "epoch-2", []
    store.add(*tokens(5))
    await has_built(mirror, redis_server, store)
    assert held_tokens(redis_server) == {entry.name for _, entry in store.changes}


@pytest.mark.usefixtures("small")
async def test_calls_are_served_between_any_two_parts(
    redis_server: RedisServer, store: FeedStore, mirror: Mirror, monkeypatch: pytest.MonkeyPatch
) -> None:
    put, served, seen = mirror._builder._put_part, 0, []

    async def put_and_look(count: int, part: list[Entry], removed: Sequence[str] = ()) -> None:
        seen.append((served, len(part)))
        await put(count, part, removed)

    async def serve() -> None:
        nonlocal served
        while True:
            await asyncio.sleep(0)
            served += 1

    monkeypatch.setattr(mirror._builder, "_put_part", put_and_look)
    store.add(*tokens(50))
    serving = asyncio.create_task(serve())
    await has_built(mirror, redis_server, store)
    serving.cancel()
    turns, sizes = zip(*seen, strict=True)
    assert sizes == (10,) * 5
    assert len(set(turns)) == 5


def test_parts_keep_their_pace_and_a_few_late_ones_are_made_up_for() -> None:
    pace = Pace(1.0, now=100.0)
    assert [pace.delay(now) for now in (100.25, 101.5, 103.75, 103.75)] == [0.75, 0.5, 0.0, 0.25]
    delays = [pace.delay(500.0) for _ in range(12)]
    assert delays == [0.0] * 10 + [1.0, 2.0]  # of the hundreds that it is late


async def test_a_name_of_any_kind_has_its_value_and_its_end(
    redis_server: RedisServer, store: FeedStore, mirror: Mirror
) -> None:
    [token], account = tokens(1), a_minimum(12)
    store.add(token, account)
    await has_built(mirror, redis_server, store)
    for key, value in ((f"jti:{token.name}", "1"), (f"gen:{account.name}", "12")):
        assert redis_server.client.get(f"identity:{key}") == value
        assert 0 < redis_server.client.ttl(f"identity:{key}") <= 600

"""The mirror itself: what its sentinel says is true, whatever happens to Redis and to SQL in between."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import logging
import math
import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any, cast

import pytest
from redis.exceptions import RedisError, ResponseError, WatchError

from identity.config import ConfigurationError, Settings, load
from identity.domain.ports import RevocationStore
from identity.server import Server
from identity.storage.redis import mirror as following
from identity.storage.redis import rebuild, writing
from identity.storage.redis.client import time_ms
from identity.storage.redis.mirror import Mirror
from identity_client.redis import RedisRevocations
from identity_client.trust.entries import Batch, Entry, EntryKind
from identity_client.trust.source import SourceDown
from tests.clients.issuer import new_id
from tests.clients.shapes import until
from tests.mirror.conftest import Mirrored
from tests.redis_server import RedisServer
from tests.rpc.api import Api, MakeSettings
from tests.rpc.test_http_listener import metrics_of

ACCOUNT = new_id()
SECRET = "a-password-that-no-log-may-show"


def expiring() -> int:
    return int(time.time()) + 600


class FeedStore:
    """The feed, without SQL. *meanwhile* is called where a read has begun."""

    def __init__(self) -> None:
        self.epoch = "epoch-1"
        self.changes: list[tuple[int, Entry]] = []
        self.meanwhile: Callable[[], None] = lambda: None

    def add(self, *entries: Entry) -> None:
        for entry in entries:
            self.changes.append((len(self.changes) + 1, entry))

    async def head(self) -> tuple[str, int]:
        return self.epoch, len(self.changes)

    async def entries_since(self, version: int, limit: int) -> list[tuple[int, Entry]]:
        found = self.changes[version:][:limit]
        self.meanwhile()
        return found

    async def live_entries(self) -> tuple[str, int, list[Batch]]:
        return self.epoch, len(self.changes), [Batch.of(entry for _, entry in self.changes)]


@pytest.fixture
def store() -> FeedStore:
    return FeedStore()


@pytest.fixture
async def mirror(redis_server: RedisServer, store: FeedStore) -> AsyncIterator[Mirror]:
    """Follows *store* into *redis_server* from when the test starts it."""
    made = Mirror(redis_server.url, "identity:", cast(RevocationStore, store), lambda: len(store.changes))
    yield made
    await made.stop()


def sentinel(redis_server: RedisServer) -> dict[str, Any]:
    text = redis_server.client.get("identity:trust")
    return dict(json.loads(text)) if text else {}


def version(redis_server: RedisServer) -> int:
    """As far as the sentinel vouches; -1 without one."""
    return int(sentinel(redis_server).get("version", -1))


async def caught_up(redis_server: RedisServer, store: FeedStore) -> None:
    def is_up() -> bool:
        held = sentinel(redis_server)
        return (held.get("epoch"), held.get("version")) == (store.epoch, len(store.changes))

    await until(is_up)


def tokens(count: int) -> list[Entry]:
    return [Entry(EntryKind.TOKEN, new_id(), expiring()) for _ in range(count)]


def held_tokens(redis_server: RedisServer) -> set[str]:
    return {key.removeprefix("identity:jti:") for key in redis_server.client.scan_iter("identity:jti:*", count=1000)}


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
    monkeypatch.setattr(writing, "PART", 10)
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
        for _ in range(3):
            await fragile.api.login("carol")
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


# -- several mirrors, and clocks -----------------------------------------------------------------------------------


def a_minimum(minimum: int) -> Entry:
    return Entry(EntryKind.ACCOUNT, ACCOUNT, expiring(), minimum)


async def has_built(mirror: Mirror, redis_server: RedisServer, store: FeedStore) -> None:
    await mirror._follow()
    assert version(redis_server) == len(store.changes)


@pytest.fixture
async def another(redis_server: RedisServer, store: FeedStore) -> AsyncIterator[Mirror]:
    """That of a second process."""
    made = Mirror(redis_server.url, "identity:", cast(RevocationStore, store), lambda: len(store.changes))
    yield made
    await made.stop()


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
    monkeypatch.setattr(writing, "PART", 10)
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


async def test_after_a_clock_that_was_ahead_everything_is_written_again(
    redis_server: RedisServer, store: FeedStore, mirror: Mirror
) -> None:
    store.add(a_minimum(9))
    await has_built(mirror, redis_server, store)
    # What a step ahead and back leaves behind: the entry has expired, the sentinel is of a time to come.
    redis_server.client.delete(f"identity:gen:{ACCOUNT}")
    ahead = sentinel(redis_server) | {"time_ms": sentinel(redis_server)["time_ms"] + 3_600_000}
    redis_server.client.set("identity:trust", json.dumps(ahead))
    reader = RedisRevocations(redis_server.url)
    state, _ = await reader.ask([])
    await reader.close()
    assert state.age_seconds == math.inf
    await has_built(mirror, redis_server, store)
    assert redis_server.client.get(f"identity:gen:{ACCOUNT}") == "9"


@pytest.mark.requirement("R27")
@pytest.mark.parametrize("step", [-301, 301, 86_400])
async def test_a_redis_whose_clock_has_stepped_away_is_not_vouched_for(
    redis_server: RedisServer, store: FeedStore, mirror: Mirror, step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.add(*tokens(3))
    await has_built(mirror, redis_server, store)
    await mirror._follow()
    assert redis_server.client.exists("identity:fresh")

    async def stepped(client: Any) -> int:
        return await time_ms(client) + step * 1_000

    monkeypatch.setattr(following, "time_ms", stepped)
    with pytest.raises(RedisError, match="the clock of Redis is"):
        await mirror._follow()
    assert not redis_server.client.exists("identity:fresh", "identity:trust")
    monkeypatch.setattr(following, "time_ms", time_ms)
    await has_built(mirror, redis_server, store)


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
    redis_server.pause()
    asked = await asyncio.gather(*(reader.ask([]) for _ in range(10)), return_exceptions=True)
    redis_server.resume()
    assert all(isinstance(answer, SourceDown) for answer in asked)
    state, _ = await reader.ask([])  # one had failed, not ten
    await reader.close()
    assert state.age_seconds < math.inf


# -- settings ------------------------------------------------------------------------------------------------------


async def test_the_password_of_redis_is_shown_nowhere(
    store: FeedStore, caplog: pytest.LogCaptureFixture, redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def echo(_: Mirror) -> None:
        raise ResponseError(f"unknown command 'AUTH', with args beginning with: '{SECRET}'")

    caplog.set_level(logging.DEBUG)
    redis_server.client.config_set("requirepass", "another")
    for url in (f"redis://:{SECRET}@127.0.0.1:1/0", f"unix://:{SECRET}@{redis_server.socket}"):
        caplog.clear()
        mirror = Mirror(url, "identity:", cast(RevocationStore, store), lambda: 0)
        await mirror.start()
        await until(lambda: "grows old" in caplog.text)
        await mirror.stop()
        assert SECRET not in repr(Settings(redis_url=url)) + repr(mirror) + caplog.text
        monkeypatch.setattr(Mirror, "_check_policy", echo)  # as some servers do


@pytest.fixture
def problems(make_settings: MakeSettings) -> Iterator[Callable[..., list[str]]]:
    yield lambda **changes: make_settings(hash_memory_kib=19_456, hash_iterations=2, **changes).problems()


def test_an_address_that_is_none_is_refused_without_repeating_it(problems: Callable[..., list[str]]) -> None:
    with pytest.raises(ConfigurationError, match="not understood"):
        Mirror(f"redis://:{SECRET}@localhost?unknown=1", "identity:", cast(RevocationStore, FeedStore()), lambda: 0)
    [problem] = problems(redis_url=f"http://:{SECRET}@redis")
    assert problem.startswith("redis_url must be redis://")
    assert problems(redis_url="redis://:x@localhost:6379/0") == problems(redis_url="unix:///run/redis.sock") == []


def test_a_prefix_that_would_be_a_pattern_is_refused(problems: Callable[..., list[str]]) -> None:
    assert problems(redis_prefix="identity*:")[0].startswith("redis_prefix must be")


def test_the_variable_sets_it(make_settings: MakeSettings) -> None:
    key_file = make_settings().master_key_file
    variables = {"ISSUER": "https://id.example", "DATABASE": "sqlite:////x", "MASTER_KEY_FILE": key_file}
    environ = {f"IDENTITY_{name}": value for name, value in variables.items()}
    assert load(None, environ | {"IDENTITY_REDIS_URL": "unix:///run/redis"}).redis_url == "unix:///run/redis"


def test_plain_text_to_another_machine_is_worth_a_warning(make_settings: MakeSettings) -> None:
    assert "rediss://" in "".join(make_settings(redis_url=f"redis://:{SECRET}@redis.internal:6379").warnings())
    assert SECRET not in "".join(make_settings(redis_url=f"redis://:{SECRET}@redis.internal:6379").warnings())
    assert make_settings(redis_url="redis://127.0.0.1:6379").warnings() == []

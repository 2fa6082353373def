"""A real service that mirrors its revocations into a real Redis."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import redis

from identity.server import Server
from identity.storage.redis.mirror import Mirror
from identity_client.redis import RedisRevocations
from tests.clients.issuer import new_id
from tests.clients.shapes import until
from tests.mirror.feed import FeedStore, mirror_of
from tests.peers.orders import feed_version
from tests.redis_server import ADDRESS, RedisServer
from tests.rpc.api import Api, MakeSettings, prepare


@pytest.fixture
def redis_server() -> Iterator[RedisServer]:
    """One to kill, stop and empty."""
    server = RedisServer()
    yield server
    server.stop()


@dataclass
class Mirrored:
    """A service, and what it writes."""

    api: Api
    url: str
    prefix: str
    client: Any

    def revocations(self) -> RedisRevocations:
        """A reader for one peer."""
        return RedisRevocations(self.url, prefix=self.prefix)

    def sentinel(self) -> dict[str, Any]:
        """What vouches for the rest; empty without it."""
        try:
            text = self.client.get(f"{self.prefix}trust")
        except redis.ConnectionError:
            return {}
        return dict(json.loads(text)) if text else {}

    async def has_caught_up(self) -> None:
        """Wait until everything that is committed stands in Redis."""
        version = await feed_version(self.api)
        await until(lambda: self.sentinel().get("version", -1) >= version)


async def serving(make_settings: MakeSettings, url: str, prefix: str) -> AsyncIterator[Mirrored]:
    server = Server(make_settings(redis_url=url, redis_prefix=prefix))
    api = Api(server, await server.start())
    assert server.house is not None
    await prepare(server.house)
    with redis.Redis.from_url(url, decode_responses=True) as client:
        yield Mirrored(api, url, prefix, client)
        for key in client.scan_iter(f"{prefix}*"):
            client.delete(key)
    await api.channel.close()
    await server.stop()


@pytest.fixture
async def mirrored(make_settings: MakeSettings) -> AsyncIterator[Mirrored]:
    """Over the Redis of the environment, or one of its own, which stays as it is."""
    own = None if ADDRESS else RedisServer()
    async for mirrored in serving(make_settings, own.url if own else ADDRESS, f"{new_id()}:"):
        yield mirrored
    if own is not None:
        own.stop()


@pytest.fixture
async def fragile(make_settings: MakeSettings, redis_server: RedisServer) -> AsyncIterator[Mirrored]:
    """Over `redis_server`, which the test may harm, and has to bring back."""
    async for mirrored in serving(make_settings, redis_server.url, "identity:"):
        yield mirrored


@pytest.fixture
def store() -> FeedStore:
    return FeedStore()


@pytest.fixture
async def mirror(redis_server: RedisServer, store: FeedStore) -> AsyncIterator[Mirror]:
    """Follows *store* into *redis_server* from when the test starts it."""
    made = mirror_of(store, redis_server)
    yield made
    await made.stop()


@pytest.fixture
async def another(redis_server: RedisServer, store: FeedStore) -> AsyncIterator[Mirror]:
    """That of a second process."""
    made = mirror_of(store, redis_server)
    yield made
    await made.stop()

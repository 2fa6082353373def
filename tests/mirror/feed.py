"""A feed without SQL, the mirror that follows it, and what stands in Redis then."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any, cast

from identity.domain.ports import RevocationStore
from identity.storage.redis.mirror import Mirror
from identity_client.trust.entries import Entry, EntryKind
from tests.clients.issuer import new_id
from tests.clients.shapes import until
from tests.redis_server import RedisServer

ACCOUNT = new_id()


def expiring() -> int:
    return int(time.time()) + 600


class FeedStore:
    """The feed, without SQL. The versions in *swept* are gone; *meanwhile* is called where a read has begun."""

    def __init__(self) -> None:
        self.epoch = "epoch-1"
        self.changes: list[tuple[int, Entry]] = []
        self.swept: set[int] = set()
        self.meanwhile: Callable[[], None] = lambda: None

    def add(self, *entries: Entry) -> None:
        for entry in entries:
            self.changes.append((len(self.changes) + 1, entry))

    async def head(self) -> tuple[str, int]:
        return self.epoch, len(self.changes)

    async def entries_since(self, version: int, limit: int) -> list[tuple[int, Entry]]:
        found = [change for change in self.changes[version:] if change[0] not in self.swept][:limit]
        self.meanwhile()
        return found


def mirror_of(store: FeedStore, redis_server: RedisServer) -> Mirror:
    """One that follows *store* into *redis_server*, once it is started."""
    return Mirror(redis_server.url, "identity:", cast(RevocationStore, store), lambda: len(store.changes))


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


def a_minimum(minimum: int) -> Entry:
    return Entry(EntryKind.ACCOUNT, ACCOUNT, expiring(), minimum)


async def has_built(mirror: Mirror, redis_server: RedisServer, store: FeedStore) -> None:
    await mirror._follow()
    assert version(redis_server) == len(store.changes)

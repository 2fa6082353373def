"""Redis as somebody else than the service sees it: nothing is changed."""

from __future__ import annotations

from dataclasses import dataclass

from identity.storage.redis.client import open_client, time_ms
from identity_client.redis.schema import Schema, Sentinel

_REPLY_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class RedisFacts:
    """*sentinel*: None without one. *time_ms*: by the clock of Redis. *role*: `master`, or what takes no writes."""

    policy: str
    role: str
    sentinel: Sentinel | None
    time_ms: int
    is_being_built: bool


async def look(url: str, prefix: str) -> RedisFacts:
    """Raises RedisError, OSError, ConfigurationError (the address is not understood)."""
    schema, client = Schema(prefix), open_client(url, _REPLY_SECONDS)
    try:
        text, builder = await client.mget(schema.trust, schema.builder)
        return RedisFacts(
            policy=(await client.info("memory")).get("maxmemory_policy", "unknown"),
            role=(await client.info("replication")).get("role", "unknown"),
            sentinel=Sentinel.parse(text),
            time_ms=await time_ms(client),
            is_being_built=builder is not None,
        )
    finally:
        await client.aclose()

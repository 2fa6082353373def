"""Revocations in Redis: the keys that the service writes and peers read, and the reader for peers.

`RedisRevocations` is loaded when first used: it needs the extra `redis`, the schema does not.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from identity_client.redis.revocations import RedisRevocations

__all__ = ["RedisRevocations"]


def __getattr__(name: str) -> Any:
    if name != "RedisRevocations":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        from identity_client.redis.revocations import RedisRevocations
    except ModuleNotFoundError as error:
        if error.name != "redis":
            raise
        raise ModuleNotFoundError("RedisRevocations needs the extra: pip install 'grpc-identity[redis]'") from error

    return RedisRevocations

"""A server as a process of its own, with cheap hashes and a clock that stands still; it counts what it hashes.

`python -m tests.attacks.counting_server DIRECTORY [REDIS-URL [SECONDS]]` prints its address, serves until its standard
input ends, and then prints how many passwords it compared with a hash. SECONDS: how long it waits for Redis.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from identity.config import Settings
from identity.domain import passwords
from identity.server import Server
from identity.storage.redis import throttle
from tests.clients.issuer import FixedClock

COMPARED: list[None] = []


def settings(directory: Path, redis_url: str = "") -> Settings:
    """Those of production but for the cost of a hash. The folder has a master.key."""
    return Settings(
        listen="127.0.0.1:0",
        http_listen="",
        database=f"sqlite:///{directory / 'identity.db'}",
        master_key_file=str(directory / "master.key"),
        hash_memory_kib=64,
        hash_iterations=1,
        hash_workers=2,
        hash_queue=1_000,
        redis_url=redis_url,
    )


async def _serve(directory: Path, redis_url: str = "") -> None:
    server = Server(settings(directory, redis_url), FixedClock())
    print(await server.start(), flush=True)
    await asyncio.to_thread(sys.stdin.read)
    await server.stop()
    print(len(COMPARED), flush=True)


def _count() -> None:
    compare = passwords._matches

    def counting(password: bytes, password_hash: str) -> bool:
        COMPARED.append(None)
        return compare(password, password_hash)

    passwords._matches = counting


if __name__ == "__main__":
    _count()
    if sys.argv[3:]:
        throttle.ANSWER_SECONDS = float(sys.argv[3])
    asyncio.run(_serve(Path(sys.argv[1]), *sys.argv[2:3]))

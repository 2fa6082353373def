"""A session of PostgreSQL that holds rows for a moment, so that commits overtake each other."""

from __future__ import annotations

import asyncio
import random

import asyncpg

LONGEST_SECONDS = 0.05
_HELD_ROWS = 3

_HOLD = """
SELECT grant_id FROM grants WHERE kind = 'session' AND end_time IS NULL AND grant_id > $1
ORDER BY grant_id LIMIT $2 FOR UPDATE SKIP LOCKED
"""


async def block(url: str, chance: random.Random, is_over: asyncio.Event) -> int:
    """Hold a few live sessions, again and again, for at most LONGEST_SECONDS, until the end; -> how many."""
    connection, held = await asyncpg.connect(url), 0
    try:
        while not is_over.is_set():
            start = "".join(chance.choices("0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz", k=4))
            async with connection.transaction():
                held += len(await connection.fetch(_HOLD, start, _HELD_ROWS))
                await asyncio.sleep(chance.uniform(0, LONGEST_SECONDS))
    finally:
        await connection.close()
    return held

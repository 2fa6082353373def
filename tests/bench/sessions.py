"""What a session costs among a thousand and among a million: introspection of a session token, and refresh.

The use-cases over their real stores, in one process without a wire; the two databases take turns, round by round. Each
call picks a session at random, so that the large database answers from pages that are not at hand. What is measured is
the processor time of all threads, system calls included: what else the machine does is left out.
"""

from __future__ import annotations

import asyncio
import os
import random
import sqlite3
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

from identity.config import Settings
from identity.domain.introspect import Asker
from identity.domain.refresh_tokens import RefreshTokens
from identity.domain.secrets import hash_secret
from identity.domain.values import Act
from identity.house import LOCAL_ACT, House, open_house
from identity.storage.sealing import MasterKey
from identity_client.tokens import opaque
from identity_client.trust.entries import id_text
from tests.bench.harness import Figure
from tests.clients.issuer import FixedClock

SMALL = 1_000
IN_FLIGHT = 32
SESSIONS_PER_ACCOUNT = 10
SECRET, SALT = b"s" * opaque.SECRET_BYTES, b"t" * 16

ACT = Act(request_id="bench", origin="127.0.0.1")
ASKER = Asker("orders")


def run(quick: bool) -> Iterable[Figure]:
    large, rounds, calls = (20_000, 3, 64) if quick else (1_000_000, 15, 640)
    with tempfile.TemporaryDirectory() as folder:
        taken = asyncio.run(measure(Path(folder), large, rounds, calls))
    limit = None if quick else 1.2
    for name in ("introspect", "refresh"):
        few, many = taken[name]
        yield Figure(f"{name} among {SMALL:,} sessions", "us", [seconds / calls * 1e6 for seconds in few])
        yield Figure(f"{name} among {large:,} sessions", "us", [seconds / calls * 1e6 for seconds in many])
        ratios = [large_one / small_one for small_one, large_one in zip(few, many, strict=True)]
        yield Figure(f"{name}: {large:,} over {SMALL:,}", "x", ratios, reach=limit)


@dataclass
class Place:
    """One service over its database, and the sessions in it."""

    house: House
    refresh_tokens: RefreshTokens
    opaque_ids: list[str]
    refresh_ids: list[str]
    chance: random.Random = field(default_factory=lambda: random.Random(17))
    newest: dict[str, str] = field(default_factory=dict)

    async def introspect(self, _: int) -> None:
        text = opaque.encode_secret(opaque.Kind.SESSION, self.chance.choice(self.opaque_ids), SECRET)
        assert await self.house.introspector.introspect(text, ASKER)

    async def refresh(self, number: int) -> None:
        session_id = self.refresh_ids[number]
        text = self.newest.get(session_id) or self.refresh_tokens.text(session_id, 0, SALT)
        self.newest[session_id] = (await self.house.refresher.refresh(text, ACT)).refresh_text or ""

    def shuffle(self) -> None:
        """Other sessions are renewed in the next round, each by one caller."""
        self.chance.shuffle(self.refresh_ids)


async def measure(folder: Path, large: int, rounds: int, calls: int) -> dict[str, tuple[list[float], list[float]]]:
    """Seconds of each round of *calls*, at the small place and at the large one."""
    places = [await open_place(folder / str(count), count) for count in (SMALL, large)]
    taken: dict[str, tuple[list[float], list[float]]] = {"introspect": ([], []), "refresh": ([], [])}
    for _ in range(rounds):
        for name, times in taken.items():
            for place, seconds in zip(places, times, strict=True):
                place.shuffle()
                seconds.append(await in_flight(getattr(place, name), min(calls, len(place.refresh_ids)), calls))
    for place in places:
        await place.house.close()
    return taken


async def in_flight(call: Callable[[int], Awaitable[None]], distinct: int, calls: int) -> float:
    """Processor seconds of *calls*, IN_FLIGHT at a time, over *distinct* sessions."""
    start = time.process_time()
    for first in range(0, calls, IN_FLIGHT):
        await asyncio.gather(*(call(number % distinct) for number in range(first, min(first + IN_FLIGHT, calls))))
    return time.process_time() - start


async def open_place(folder: Path, count: int) -> Place:
    """A service with *count* sessions, half of them opaque."""
    folder.mkdir()
    key_file, database = folder / "master.key", folder / "identity.db"
    master = MasterKey.generate(key_file)
    settings = Settings(database=f"sqlite:///{database}", master_key_file=str(key_file), hash_memory_kib=19_456)
    clock = FixedClock(wall=1_900_000_020.0)
    house = await open_house(settings, clock)
    await house.accounts.create_service("orders", ("peer",), LOCAL_ACT)
    await house.roles.create("clerk", ("orders.read",), "", LOCAL_ACT)
    ids = [id_text(os.urandom(16)) for _ in range(count)]
    fill(database, ids, int(clock.now()))
    return Place(house, RefreshTokens(master.derive("refresh")), ids[::2], ids[1::2])


def fill(database: Path, ids: list[str], now: int) -> None:
    """Insert accounts and their sessions: even places are opaque, odd ones have a refresh token."""
    accounts = [id_text(os.urandom(16)) for _ in range(0, len(ids), SESSIONS_PER_ACCOUNT)]
    account_columns = "account_id, kind, username, normalised_username, roles, generation, credential_version"
    session_columns = (
        "grant_id, account_id, kind, create_time, latest_expire_time, expire_time, audiences, requested_scopes,"
        " last_used_time, secret_hash, authentication_time, count, salt, grace_until, idle_lifetime,"
        " absolute_expire_time, ip_address, user_agent"
    )
    with closing(sqlite3.connect(database)) as connection, connection:
        connection.executemany(
            f"INSERT INTO accounts ({account_columns}, create_time, update_time)"
            " VALUES (?, 'user', ?, ?, 'clerk', 1, 1, 0, 0)",
            ((account_id, account_id, account_id.lower() + account_id) for account_id in accounts),
        )
        connection.executemany(
            f"INSERT INTO grants ({session_columns}) VALUES ({', '.join('?' * 18)})",
            session_rows(ids, accounts, now),
        )


def session_rows(ids: list[str], accounts: list[str], now: int) -> Iterator[tuple[object, ...]]:
    secret_hash, end = hash_secret(SECRET), now + 1_000_000
    for number, grant_id in enumerate(ids):
        secret, salt = (secret_hash, None) if number % 2 == 0 else (None, SALT)
        times = (now, now + 600, end, "internal", "", now)
        account_id = accounts[number // SESSIONS_PER_ACCOUNT]
        yield (grant_id, account_id, "session", *times, secret, now, 0, salt, 0, 500_000, end, "192.0.2.7", "bench")

"""What a session costs among a thousand and among a million: introspection of a session token, and refresh.

The use-cases over their real stores, in one process without a wire; the two databases take turns, round by round. Each
call picks a session at random, so that the large database answers from pages that are not at hand. What is measured is
the processor time of all threads, system calls included: what else the machine does is left out.
"""

from __future__ import annotations

import asyncio
import os
import random
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import ExitStack
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
from tests.bench import database
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
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        urls = []
        for count in (SMALL, large):
            (folder / str(count)).mkdir()
            urls.append(stack.enter_context(database.empty(folder / str(count))))
        taken = asyncio.run(measure(folder, urls, large, rounds, calls))
        settings = database.durability(urls[0])
        size = (database.megabytes(urls[1]) - database.megabytes(urls[0])) * 1e6 / (large - SMALL)
        yield Figure("a session and its share of an account, on the disk", "bytes", [size], settings=settings)
    limit = None if quick else 1.2
    for name in ("introspect", "refresh"):
        few, many = taken[name]
        for count, times in ((SMALL, few), (large, many)):
            microseconds = [seconds / calls * 1e6 for seconds in times]
            yield Figure(f"{name} among {count:,} sessions", "us", microseconds, settings=settings)
        ratios = [large_one / small_one for small_one, large_one in zip(few, many, strict=True)]
        yield Figure(f"{name}: {large:,} over {SMALL:,}", "x", ratios, reach=limit, settings=settings)


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


async def measure(
    folder: Path, urls: list[str], large: int, rounds: int, calls: int
) -> dict[str, tuple[list[float], list[float]]]:
    """Seconds of each round of *calls*, at the small place and at the large one."""
    places = [
        await open_place(folder / str(count), url, count) for url, count in zip(urls, (SMALL, large), strict=True)
    ]
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


async def open_place(folder: Path, url: str, count: int) -> Place:
    """A service with *count* sessions, half of them opaque."""
    key_file = folder / "master.key"
    master = MasterKey.generate(key_file)
    settings = Settings(database=url, master_key_file=str(key_file), hash_memory_kib=19_456)
    clock = FixedClock(wall=1_900_000_020.0)
    house = await open_house(settings, clock)
    await house.accounts.create_service("orders", ("peer",), LOCAL_ACT)
    await house.roles.create("clerk", ("orders.read",), "", LOCAL_ACT)
    ids = [id_text(os.urandom(16)) for _ in range(count)]
    await asyncio.to_thread(fill, url, ids, int(clock.now()))
    return Place(house, RefreshTokens(master.derive("refresh")), ids[::2], ids[1::2])


ACCOUNT_COLUMNS = (
    *("account_id", "kind", "username", "normalised_username", "roles", "generation", "credential_version"),
    *("create_time", "update_time"),
)
SESSION_COLUMNS = (
    *("grant_id", "account_id", "kind", "create_time", "latest_expire_time", "expire_time", "audiences"),
    *("requested_scopes", "last_used_time", "secret_hash", "authentication_time", "count", "salt", "grace_until"),
    *("idle_lifetime", "absolute_expire_time", "ip_address", "user_agent"),
)


def fill(url: str, ids: list[str], now: int) -> None:
    """Insert accounts and their sessions: even places are opaque, odd ones have a refresh token."""
    accounts = [id_text(os.urandom(16)) for _ in range(0, len(ids), SESSIONS_PER_ACCOUNT)]
    account_rows = (
        (account_id, "user", account_id, account_id.lower() + account_id, "clerk", 1, 1, 0, 0)
        for account_id in accounts
    )
    database.insert(url, "accounts", ACCOUNT_COLUMNS, account_rows)
    database.insert(url, "grants", SESSION_COLUMNS, session_rows(ids, accounts, now))


def session_rows(ids: list[str], accounts: list[str], now: int) -> Iterator[tuple[object, ...]]:
    secret_hash, end = hash_secret(SECRET), now + 1_000_000
    for number, grant_id in enumerate(ids):
        secret, salt = (secret_hash, None) if number % 2 == 0 else (None, SALT)
        times = (now, now + 600, end, "internal", "", now)
        account_id = accounts[number // SESSIONS_PER_ACCOUNT]
        yield (grant_id, account_id, "session", *times, secret, now, 0, salt, 0, 500_000, end, "192.0.2.7", "bench")

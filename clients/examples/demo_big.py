"""The story of demo.py on the big setting: two replicas over PostgreSQL and Redis, and what they outlive.

Users and admins talk to replica A, orders follows replica B, the services behind it follow A. PostgreSQL, Redis and
all services are started from here, as the tests start them: without root and without containers, on loopback, and
nothing is left. To be run from a checkout: `make demo-big`.
"""

from __future__ import annotations

import asyncio
import json
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
from demo import Stage, outcome, refused_soon, say, set_stage, start_peers, tell
from orders.client import OrdersClient

from identity.config import load
from identity.dev import DevFiles, seed
from identity.house import open_house
from identity_client.clock import SystemClock
from tests.postgres_server import PostgresServer
from tests.redis_server import RedisServer
from tests.replicas import Program, Service, free_address, replica, settings_over

CALLS = 100
"""How many calls of each kind a fault has to last, and the time after it."""


@dataclass
class Parts:
    """What may be killed."""

    redis: RedisServer
    replicas: list[Service]


@dataclass
class Tally:
    """Outcomes of calls that are made back to back."""

    outcomes: Counter[str] = field(default_factory=Counter)
    _grown: asyncio.Event = field(default_factory=asyncio.Event)

    def __str__(self) -> str:
        return ", ".join(f"{count} {result}" for result, count in sorted(self.outcomes.items()))

    def note(self, result: str) -> None:
        """One more."""
        self.outcomes[result] += 1
        self._grown.set()

    async def grows(self) -> None:
        """Return once CALLS more were made."""
        for _ in range(CALLS):
            self._grown.clear()
            await self._grown.wait()


async def main() -> None:
    """Set the big stage, tell the story, and take away one part after the other."""
    async with AsyncExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        parts = await start_parts(stack, directory)
        known = json.loads(DevFiles(directory).secrets.read_text())
        a, b = (each.address for each in parts.replicas)
        orders_address = await start_peers(
            stack, directory, {"stock": f"{a},{b}", "billing": f"{a},{b}", "orders": f"{b},{a}"}
        )
        stage = await set_stage(stack, a, orders_address, known)
        await tell(stage)
        await tell_of_redis(stage, parts)
        await tell_of_replicas(stage, parts)


async def start_parts(stack: AsyncExitStack, directory: Path) -> Parts:
    """PostgreSQL, Redis, and two replicas over both, with the accounts of `identity dev`."""
    postgres, redis = PostgresServer(), RedisServer()
    stack.callback(postgres.stop)
    stack.callback(redis.stop)
    settings = settings_over(f"{postgres.address}/postgres", directory, REDIS_URL=redis.url)
    program = Program()
    await program.run("identity.cli", "migrate", **settings)
    replicas = [replica(program, free_address(), settings) for _ in "AB"]
    await create_accounts(directory, settings)
    for each in replicas:
        await each.start()
        stack.push_async_callback(each.stop)
    return Parts(redis, replicas)


async def create_accounts(directory: Path, settings: dict[str, str]) -> None:
    """The admin, alice, and the services; their secrets are files in *directory*."""
    house = await open_house(load(None, settings), SystemClock())
    try:
        await seed(DevFiles(directory), house, "")
    finally:
        await house.close()


@asynccontextmanager
async def meanwhile(call: Callable[[], Awaitable[Any]]) -> AsyncIterator[Tally]:
    """Call back to back."""
    tally, is_over = Tally(), asyncio.Event()

    async def repeat() -> None:
        while not is_over.is_set():
            tally.note(await outcome(call()))

    async with asyncio.TaskGroup() as group:
        group.create_task(repeat())
        try:
            yield tally
        finally:
            is_over.set()


def expect(what: str, result: object, is_good: bool) -> None:
    """One line of the story, which ends here unless it went as it must."""
    say(what, str(result))
    if not is_good:
        raise SystemExit(f"this should not have happened: {what}: {result}")


def expect_no_failure(what: str, tally: Tally) -> None:
    """Every call of *tally* was answered as if nothing had happened."""
    expect(what, tally, set(tally.outcomes) == {"ok"})


async def expect_revocation(stage: Stage) -> None:
    """A token is revoked at replica A, and orders refuses it, whichever replica it follows."""
    alice = stage.client("user")
    await alice.log_in()
    held = alice.held.access_token
    expect("  a new token is accepted", result := await outcome(alice.get_order("3")), result == "ok")
    await stage.revoke(held)
    start = time.monotonic()
    result = await refused_soon(lambda: alice.get_order("3"))
    took = (time.monotonic() - start) * 1000
    expect("  and, revoked at replica A, is refused", f"{result} after {took:.1f} ms", result == "TOKEN_REVOKED")


async def tell_of_redis(stage: Stage, parts: Parts) -> None:
    """Redis counts guesses and mirrors revocations; SQL stands behind it."""
    print("Redis is killed")
    alice = stage.client("user")
    await alice.log_in()
    async with meanwhile(lambda: alice.get_order("3")) as calls, meanwhile(alice.renew) as refreshes:
        await calls.grows()
        parts.redis.kill()
        await calls.grows()
        await expect_log_in(stage)
        await expect_revocation(stage)
        await asyncio.to_thread(parts.redis.start)
        await calls.grows()
    expect_no_failure("alice's calls of orders all the while", calls)
    expect_no_failure("her refreshes", refreshes)


async def tell_of_replicas(stage: Stage, parts: Parts) -> None:
    """A replica dies without a word: its peers go on by what they hold, and follow the other one."""
    b = parts.replicas[1]
    print("Replica B, which orders follows, is killed")
    alice = stage.client("user")
    await alice.log_in()
    async with meanwhile(lambda: alice.get_order("3")) as calls:
        await calls.grows()
        await b.kill()
        await calls.grows()
        await expect_log_in(stage)
        await expect_revocation(stage)
        await b.start()
        await calls.grows()
    expect_no_failure("alice's calls of orders all the while", calls)
    print("Replica B is back")
    async with grpc.aio.insecure_channel(b.address) as channel:
        other = OrdersClient(channel, stage.orders, "alice", stage.known["user"]["password"])
        other.held = alice.held
        expect("  her session, begun at A, is refreshed at B", result := await outcome(other.renew()), result == "ok")
        expect("  and she logs in there", result := await outcome(other.log_in()), result == "ok")


async def expect_log_in(stage: Stage) -> None:
    """Alice logs in at replica A."""
    expect("  alice logs in", result := await outcome(stage.client("user").log_in()), result == "ok")


if __name__ == "__main__":
    asyncio.run(main())

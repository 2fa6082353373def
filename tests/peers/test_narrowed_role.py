"""A role with very many members is narrowed: one feed entry, and clients that carry on without a failed call.

2,000 members; IDENTITY_TEST_MEMBERS=100000 for the long form.
"""

from __future__ import annotations

import asyncio
import os
import sqlite3
import time
from contextlib import AsyncExitStack, closing
from pathlib import Path

import grpc
import pytest
from orders.client import OrdersClient

from identity_client.trust.entries import EntryKind
from tests.clients.issuer import new_id
from tests.peers.orders import feed_version, running
from tests.rpc.api import USER_PASSWORD, Api
from tests.rpc.test_revoke_and_introspect import payload_of

MEMBERS = int(os.environ.get("IDENTITY_TEST_MEMBERS", "2000"))
CLIENTS = 200


def add_members(tmp_path: Path, like: str, role: str, count: int) -> None:
    """Accounts with the password of *like*, in bulk."""
    with closing(sqlite3.connect(tmp_path / "identity.db")) as connection, connection:
        query = "SELECT password_hash FROM accounts WHERE normalised_username = ?"
        [password_hash] = connection.execute(query, (like,)).fetchone()
        rows = ((new_id(), f"member{n}", f"member{n}", f"clerk {role}", password_hash) for n in range(count))
        connection.executemany(
            "INSERT INTO accounts (account_id, kind, username, normalised_username, roles, password_hash,"
            " generation, credential_version, create_time, update_time) VALUES (?, 'user', ?, ?, ?, ?, 1, 1, 0, 0)",
            rows,
        )


@pytest.mark.requirement("R3")
@pytest.mark.timeout(300)
async def test_two_hundred_clients_carry_on_while_their_role_is_narrowed(api: Api, tmp_path: Path) -> None:
    await api.create_role("reader", "orders.list", "orders.read")
    await api.create_user("carol", "clerk", "reader")
    add_members(tmp_path, "carol", "reader", MEMBERS)
    async with running(api) as orders, AsyncExitStack() as stack:
        identity = await stack.enter_async_context(grpc.aio.insecure_channel(api.address))
        clients = [OrdersClient(identity, orders.channel, f"member{n}", USER_PASSWORD) for n in range(CLIENTS)]
        for start in range(0, CLIENTS, 20):  # within what may wait for a hash
            await asyncio.gather(*(client.log_in() for client in clients[start : start + 20]))
        assert all(payload_of(client.held.access_token)["scope"] == "orders.list orders.read" for client in clients)
        is_over, calls = asyncio.Event(), [0] * CLIENTS

        async def work(number: int) -> None:
            while not is_over.is_set():
                assert (await clients[number].get_order("1")).item == "tea"
                calls[number] += 1

        workers = [asyncio.create_task(work(number)) for number in range(CLIENTS)]
        before = await feed_version(api)
        start_time = time.monotonic()
        await api.set_scopes("reader", "orders.list")
        took = time.monotonic() - start_time
        assert await feed_version(api) == before + 1
        await orders.has_heard(before + 1)
        seen = list(calls)
        while any(now < then + 2 for now, then in zip(calls, seen, strict=True)):
            assert not any(worker.done() for worker in workers), "a client's call failed"
            await asyncio.sleep(0.01)
        is_over.set()
        await asyncio.gather(*workers)
        assert all(payload_of(client.held.access_token)["scope"] == "orders.list" for client in clients)
        [entry] = [entry for entry in orders.identity.trust.entries() if entry.kind is EntryKind.ROLE]
        assert entry.name == "reader"
        print(f"{MEMBERS:,} members: narrowed in {took * 1000:.0f} ms; {CLIENTS} clients made {sum(calls):,} calls")

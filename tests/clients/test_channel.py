"""Calling: channels that authenticate themselves, against the real service and guarded peers."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager, closing
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

import identity_client
from identity.house import LOCAL_ACT
from identity.v1 import account_pb2, session_pb2
from identity_client import aio, status
from identity_client.access.rules import Rule
from identity_client.aio.environment import ConfigurationError, Connection
from identity_client.clock import Clock, SystemClock
from identity_client.errors import IdentityError, PermissionMissing, TokenOutdated, UnknownAudience, WrongAudience
from identity_client.principal import NoPrincipal, Principal
from tests.clients.issuer import FixedClock
from tests.rpc.api import Api, bearer
from tests.rpc.refusals import refusal

METHODS = {f"/{name}.v1.{name.title()}/Call": Rule(scopes=frozenset({"work.read"})) for name in ("orders", "stock")}
METHODS["/billing.v1.Billing/Call"] = Rule(scopes=frozenset({"work.read"}))

LIFETIME_SECONDS = 600
LEEWAY_SECONDS = 5

Handle = Callable[[Any, Any], Awaitable[bytes]]


class Town:
    """The identity service, a user, and services that call each other."""

    def __init__(self, api: Api, stack: AsyncExitStack, clock: Clock) -> None:
        self.api = api
        self.stack = stack
        self.clock = clock
        self.ids: dict[str, str] = {}
        self._secrets: dict[str, str] = {}

    async def add_account(self, name: str) -> None:
        created = await self.api.create_service(name, "hop")
        self.ids[name], self._secrets[name] = created.account.account_id, created.client_secret

    def connection(self, name: str) -> Connection:
        return Connection(self.api.address, name, self._secrets[name])

    async def connect(self, name: str) -> aio.Identity:
        return await self.stack.enter_async_context(aio.Identity(self.connection(name), clock=self.clock))

    async def serve(self, name: str, identity: aio.Identity, handle: Handle) -> str:
        """A guarded service of one method; -> its address."""
        path = f"/{name}.v1.{name.title()}/Call"
        server = grpc.aio.server(interceptors=[identity.guard(name, rules={path: METHODS[path]})])
        handler = grpc.method_handlers_generic_handler(
            f"{name}.v1.{name.title()}", {"Call": grpc.unary_unary_rpc_method_handler(handle)}
        )
        server.add_generic_rpc_handlers((handler,))
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        self.stack.push_async_callback(server.stop, None)
        return f"127.0.0.1:{port}"


@asynccontextmanager
async def founded(api: Api, clock: Clock) -> AsyncIterator[Town]:
    assert api.server.house is not None
    scopes = ("identity.exchange", "identity.introspect", "identity.watch", "work.read")
    await api.server.house.roles.create("hop", scopes, "", LOCAL_ACT)
    await api.server.house.roles.create("worker", ("work.read", "work.write"), "", LOCAL_ACT)
    async with AsyncExitStack() as stack:
        town = Town(api, stack, clock)
        for name in ("orders", "billing", "stock"):
            await town.add_account(name)
        town.ids["alice"] = (await api.create_user("alice", "worker")).account_id
        yield town


@pytest.fixture
async def town(api: Api) -> AsyncIterator[Town]:
    async with founded(api, SystemClock()) as town:
        yield town


@pytest.fixture
async def timed_town(timed_api: Api, server_clock: FixedClock) -> AsyncIterator[Town]:
    """The same, in a time that stands still until the test moves it, for the service and its peers alike."""
    async with founded(timed_api, server_clock) as town:
        yield town


def call(channel: grpc.aio.Channel, name: str) -> Any:
    method: Any = channel.unary_unary(f"/{name}.v1.{name.title()}/Call")
    return method(b"")


def describe(principal: Principal) -> str:
    return " ".join([principal.account_id, *principal.scopes, "by", *principal.actors])


async def tell(_: Any, __: Any) -> bytes:
    return describe(identity_client.current_principal()).encode()


@pytest.mark.requirement("R73")
async def test_a_channel_calls_as_the_service_itself(town: Town) -> None:
    orders, stock = await town.connect("orders"), await town.connect("stock")
    address = await town.serve("stock", stock, tell)
    async with orders.channel(address, audience="stock") as channel:
        assert await call(channel, "stock") == f"{town.ids['orders']} work.read by".encode()


@pytest.mark.requirement("R34")
async def test_over_three_hops_the_last_sees_the_user_and_who_acts(town: Town) -> None:
    orders, stock = await town.connect("orders"), await town.connect("stock")
    stock_address = await town.serve("stock", stock, tell)
    billing_address = await threaded_billing(town, stock_address)
    to_billing = orders.channel(
        billing_address, audience="billing", on_behalf_of=identity_client.current_principal, scopes=["work.read"]
    )
    town.stack.push_async_callback(to_billing.close)

    async def forward(_: Any, __: Any) -> bytes:
        return bytes(await call(to_billing, "billing"))

    orders_address = await town.serve("orders", orders, forward)
    alice = await town.api.login("alice", audience="orders")
    async with grpc.aio.insecure_channel(orders_address) as channel:
        method: Any = channel.unary_unary("/orders.v1.Orders/Call")
        seen = (await method(b"", metadata=bearer(alice.access_token))).decode()
        assert seen.split()[1:] == ["work.read", "by", town.ids["billing"], town.ids["orders"]]
        own = bearer((await town.api.login("alice")).access_token)
        await town.api.sessions.EndSession(session_pb2.EndSessionRequest(session_id=alice.session_id), metadata=own)

        async def is_refused() -> bool:
            try:
                await method(b"", metadata=bearer(alice.access_token))
            except grpc.aio.AioRpcError:
                return True
            return False

        async with asyncio.timeout(5):
            while not await is_refused():
                await asyncio.sleep(0)


async def threaded_billing(town: Town, stock_address: str) -> str:
    """billing on grpc.server, which calls stock on the user's behalf; -> its address."""
    identity = identity_client.Identity(town.connection("billing"))
    await asyncio.to_thread(identity.__enter__)
    town.stack.push_async_callback(asyncio.to_thread, identity.__exit__, None, None, None)
    channel = identity.channel(stock_address, audience="stock", on_behalf_of=identity_client.current_principal)
    town.stack.callback(channel.close)

    def forward(_: Any, __: Any) -> bytes:
        method: Any = channel.unary_unary("/stock.v1.Stock/Call")
        return bytes(method(b""))

    path = "/billing.v1.Billing/Call"
    server = grpc.server(ThreadPoolExecutor(4), interceptors=[identity.guard("billing", rules={path: METHODS[path]})])
    handler = grpc.method_handlers_generic_handler(
        "billing.v1.Billing", {"Call": grpc.unary_unary_rpc_method_handler(forward)}
    )
    server.add_generic_rpc_handlers((handler,))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    town.stack.callback(lambda: server.stop(None).wait())
    return f"127.0.0.1:{port}"


@pytest.mark.requirement("R73")
async def test_five_hundred_calls_across_a_role_change_fail_not_once_and_renew_once(town: Town, tmp_path: Path) -> None:
    database = tmp_path / "identity.db"
    orders, stock = await town.connect("orders"), await town.connect("stock")
    address = await town.serve("stock", stock, tell)
    async with orders.channel(address, audience="stock") as channel:
        await call(channel, "stock")
        before = logins_of(database, town.ids["orders"])
        change = account_pb2.SetRolesRequest(username="orders", roles=["hop", "worker"])
        calls = [asyncio.ensure_future(call(channel, "stock")) for _ in range(250)]
        await town.api.accounts.SetRoles(change, metadata=await town.api.admin())
        calls += [asyncio.ensure_future(call(channel, "stock")) for _ in range(250)]
        assert all(await asyncio.gather(*calls))
        async with asyncio.timeout(5):
            while b"work.write" not in await call(channel, "stock"):
                await asyncio.sleep(0)
    # One renewal for stock, and at most one of the token that the trust stream itself uses.
    assert 1 <= logins_of(database, town.ids["orders"]) - before <= 2


@pytest.mark.requirement("R73")
async def test_five_hundred_calls_across_an_expiry_fail_not_once_and_renew_once(
    timed_town: Town, server_clock: FixedClock, tmp_path: Path
) -> None:
    database = tmp_path / "identity.db"
    orders, stock = await timed_town.connect("orders"), await timed_town.connect("stock")

    async def tell_token(_: Any, __: Any) -> bytes:
        return identity_client.current_principal().token_id.encode()

    address = await timed_town.serve("stock", stock, tell_token)
    async with orders.channel(address, audience="stock") as channel:
        first = await call(channel, "stock")
        before = logins_of(database, timed_town.ids["orders"])
        calls = [asyncio.ensure_future(call(channel, "stock")) for _ in range(250)]
        await asyncio.wait(calls, return_when=asyncio.FIRST_COMPLETED)
        server_clock.wall += LIFETIME_SECONDS + LEEWAY_SECONDS
        calls += [asyncio.ensure_future(call(channel, "stock")) for _ in range(250)]
        answers = await asyncio.gather(*calls)
    assert first in answers
    assert len(set(answers)) == 2
    # One renewal for stock, and at most one of the token that the trust stream itself uses.
    assert 1 <= logins_of(database, timed_town.ids["orders"]) - before <= 2


def logins_of(database: Path, account_id: str) -> int:
    with closing(sqlite3.connect(database)) as connection:
        query = "SELECT count(*) FROM audit_events WHERE action = 'client_secret.use' AND account_id = ?"
        return int(connection.execute(query, (account_id,)).fetchone()[0])


@pytest.mark.requirement("R73")
async def test_a_users_program_logs_in_once_and_never_thinks_of_tokens_again(town: Town) -> None:
    orders = await town.connect("orders")
    address = await town.serve("orders", orders, tell)
    service = aio.Endpoints(Connection(town.api.address))
    session = aio.logins.Session(service, aio.logins.Wish("orders"), username="alice", password="a long enough secret")
    source = aio.TokenSource(session.obtain)
    async with grpc.aio.insecure_channel(address, interceptors=aio.interceptors(lambda: source, "orders")) as channel:
        first = await call(channel, "orders")
        request = account_pb2.SetRolesRequest(username="alice", roles=["worker", "clerk"])
        await town.api.accounts.SetRoles(request, metadata=await town.api.admin())
        assert await call(channel, "orders") == first
    await service.close()


def test_a_service_needs_something_to_log_in_with(api: Api) -> None:
    with pytest.raises(ConfigurationError):
        aio.Identity(Connection(api.address, "orders"))


async def test_a_refusal_that_a_handler_passes_on_repeats_nothing(town: Town) -> None:
    orders, stock = await town.connect("orders"), await town.connect("stock")
    runs = 0

    async def leak(_: Any, context: Any) -> bytes:
        nonlocal runs
        runs += 1
        code, message, trailers = status.refusal(TokenOutdated(), "another service")
        await context.abort(code, message, trailers)
        return b""

    address = await town.serve("stock", stock, leak)
    async with orders.channel(address, audience="stock") as channel:
        assert isinstance(await refusal(call(channel, "stock")), IdentityError)
    assert runs == 1


async def test_on_behalf_of_nobody_is_an_error_of_the_caller(town: Town) -> None:
    orders = await town.connect("orders")
    channel = orders.channel("127.0.0.1:1", audience="stock", on_behalf_of=identity_client.current_principal)
    with pytest.raises(NoPrincipal):
        await call(channel, "stock")
    await channel.close()


@pytest.mark.parametrize("shape", ["unary_unary", "unary_stream", "stream_unary", "stream_stream"])
async def test_where_no_token_can_be_had_a_call_fails_as_calls_do(town: Town, shape: str) -> None:
    """With an RpcError that handlers expect, and in it the class that the identity service raised."""
    orders, threaded = await town.connect("orders"), identity_client.Identity(town.connection("orders"))
    await asyncio.to_thread(threaded.__enter__)
    town.stack.push_async_callback(asyncio.to_thread, threaded.__exit__, None, None, None)
    message = iter([b""]) if shape.startswith("stream") else b""
    async with orders.channel("127.0.0.1:1", audience="nowhere") as channel:
        made = getattr(channel, shape)("/stock.v1.Stock/Call")(message)
        assert isinstance(await refusal(aiter(made).__anext__() if shape.endswith("stream") else made), UnknownAudience)
    with threaded.channel("127.0.0.1:1", audience="nowhere") as blocking:
        method = getattr(blocking, shape)("/stock.v1.Stock/Call")
        made = asyncio.to_thread(lambda: list(method(message)))
        assert isinstance(await refusal(made), UnknownAudience)


@pytest.mark.requirement("R48")
async def test_no_token_leaves_the_machine_in_plain_text(town: Town) -> None:
    orders = await town.connect("orders")
    with pytest.raises(ConfigurationError):
        orders.channel("stock.example.com:50054", audience="stock")


@pytest.mark.requirement("R17")
async def test_one_access_token_for_a_group_is_accepted_by_two_services_of_it(town: Town) -> None:
    alice = bearer((await town.api.login("alice", audience="internal")).access_token)
    seen = []
    for name in ("orders", "stock"):
        address = await town.serve(name, await town.connect(name), tell)
        async with grpc.aio.insecure_channel(address) as channel:
            method: Any = channel.unary_unary(f"/{name}.v1.{name.title()}/Call")
            seen.append(await method(b"", metadata=alice))
    assert seen[0] == seen[1] == f"{town.ids['alice']} work.read work.write by".encode()


async def test_a_token_for_stock_is_refused_by_orders(town: Town) -> None:
    orders, stock = await town.connect("orders"), await town.connect("stock")
    address = await town.serve("orders", orders, tell)
    async with stock.channel(address, audience="stock") as channel:
        assert isinstance(await refusal(call(channel, "orders")), WrongAudience)


async def test_without_the_scope_to_exchange_nobody_is_acted_for(town: Town) -> None:
    request = account_pb2.SetRolesRequest(username="orders", roles=["peer"])
    await town.api.accounts.SetRoles(request, metadata=await town.api.admin())
    orders = await town.connect("orders")
    alice = await town.api.login("alice")
    with pytest.raises(PermissionMissing):
        await orders.exchanges("stock").source(alice.access_token).get()

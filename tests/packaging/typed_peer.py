"""A peer's code, to be checked by mypy --strict against the installed package: the types of the public face.

It is never run. Where a call must be refused, `type: ignore` says so, and mypy --strict complains of one too many.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import assert_type

import grpc
import grpc.aio
from orders.v1 import orders_pb2
from orders.v1.orders_pb2_grpc import OrderServiceStub

import identity_client
from identity_client import Hooks, MethodOptions, Principal, Rule, aio
from identity_client.testing import Credential, Issuer

CANCEL = "/orders.v1.OrderService/CancelOrder"


class Counts(Hooks):
    def on_refused(self, method: str, reason: str) -> None:
        print(method, reason)


def threaded() -> grpc.Server:
    with identity_client.Identity.from_env() as identity:
        assert_type(identity.is_ready, bool)
        guard = identity.guard("orders", orders_pb2, groups=["internal", "shop"], hooks=Counts())
        assert_type(guard, identity_client.Guard)
        identity.guard("orders", orders_pb2, on_stale="never")  # type: ignore[arg-type]
        identity.guard(orders_pb2)  # type: ignore[arg-type]
        return grpc.server(ThreadPoolExecutor(), interceptors=[guard])


async def asynchronous() -> grpc.aio.Server:
    connection = aio.Connection(address="127.0.0.1:50551", client_id="orders", client_secret="idc_")
    async with aio.Identity(connection, start_timeout_seconds=5) as identity:
        guard = identity.guard(
            "orders",
            rules={CANCEL: Rule(any_roles=frozenset({"manager"}), is_confirmed=True)},
            max_staleness_seconds=10,
            on_stale="confirm",
            enforce=False,
            methods={CANCEL: MethodOptions(enforce=True, on_stale="reject")},
        )
        assert_type(guard, aio.Guard)
        for kind, count in guard.report.counts().items():
            print(kind.method, kind.reason, kind.caller, kind.address, count + 1)
        return grpc.aio.server(interceptors=[guard])


def handler() -> str:
    who = identity_client.current_principal()
    assert_type(who, Principal)
    assert_type(who.scopes, tuple[str, ...])
    assert_type(who.roles, tuple[str, ...])
    assert_type(who.authentication_time, int | None)
    assert_type(identity_client.find_principal(), Principal | None)
    who.roles = ()  # type: ignore[misc]
    return who.subject


def test_with_a_token(identity_issuer: Issuer, channel: grpc.Channel) -> None:
    held = identity_issuer.mint("alice", scopes=["orders.read"])
    assert_type(held, Credential)
    assert_type(held.raw_token, str)
    OrderServiceStub(channel).GetOrder(orders_pb2.GetOrderRequest(order_id="1"), metadata=held)


async def test_with_a_token_over_asyncio(identity_issuer: Issuer, channel: grpc.aio.Channel) -> None:
    request = orders_pb2.GetOrderRequest(order_id="1")
    await OrderServiceStub(channel).GetOrder(request, metadata=identity_issuer.mint_session("alice"))

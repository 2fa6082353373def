"""A client of the orders service: `python -m orders.client [ORDER_ID]`. Logs in by password, calls, and renews its
tokens when the guard says that they are outdated."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import grpc

from identity.v1 import authentication_pb2, token_pb2
from identity.v1.authentication_pb2_grpc import AuthenticationServiceStub
from identity.v1.token_pb2_grpc import TokenServiceStub
from identity_client import status
from identity_client.errors import IdentityError, TokenExpired, TokenOutdated
from orders.v1 import orders_pb2 as pb
from orders.v1.orders_pb2_grpc import OrderServiceStub

Response = TypeVar("Response")


class OrdersClient:
    """Calls orders as one user. Raises IdentityError: the class that the service or the peer's guard raised."""

    def __init__(self, identity: grpc.aio.Channel, orders: grpc.aio.Channel, username: str, password: str) -> None:
        self._authentication = AuthenticationServiceStub(identity)
        self._tokens = TokenServiceStub(identity)
        self._orders = OrderServiceStub(orders)
        self._username = username
        self._password = password
        self.held = authentication_pb2.TokenSet()

    async def log_in(self, audience: str = "") -> None:
        """Exchange the password for an access and a refresh token, for *audience* or the default group."""
        password = authentication_pb2.PasswordCredential(username=self._username, password=self._password)
        request = authentication_pb2.AuthenticateRequest(password=password, audience=audience)
        self.held = (await attempt(self._authentication.Authenticate(request))).tokens

    async def renew(self) -> None:
        """Exchange the refresh token for its successor. The old one is spent: keep only the answer."""
        request = token_pb2.RefreshRequest(refresh_token=self.held.refresh_token)
        self.held = (await attempt(self._tokens.Refresh(request))).tokens

    async def get_order(self, order_id: str) -> pb.Order:
        """One order; needs the role clerk."""
        return (await self._call(self._orders.GetOrder, pb.GetOrderRequest(order_id=order_id))).order

    async def cancel_order(self, order_id: str) -> pb.Order:
        """The order as cancelled; needs the role manager."""
        return (await self._call(self._orders.CancelOrder, pb.CancelOrderRequest(order_id=order_id))).order

    async def bill_order(self, order_id: str) -> pb.BillOrderResponse:
        """Who the order was billed for, and by whom; needs the role clerk."""
        return await self._call(self._orders.BillOrder, pb.BillOrderRequest(order_id=order_id))

    async def _call(self, method: Callable[..., grpc.aio.UnaryUnaryCall[Any, Response]], request: object) -> Response:
        try:
            return await attempt(method(request, metadata=self._metadata()))
        except (TokenExpired, TokenOutdated):  # refused before the method ran: renew, and repeat once
            await self.renew()
            return await attempt(method(request, metadata=self._metadata()))

    def _metadata(self) -> tuple[tuple[str, str]]:
        return (("authorization", f"Bearer {self.held.access_token}"),)


async def attempt(call: grpc.aio.UnaryUnaryCall[Any, Response]) -> Response:
    """The answer; a refusal as the class that was raised over there."""
    try:
        return await call
    except grpc.aio.AioRpcError as error:
        raise status.from_rpc_error(error) from None


async def main(known: dict[str, Any], orders_address: str, order_id: str) -> None:
    """Get an order as the user that *known*, the content of dev.json, names."""
    open_channel = grpc.aio.insecure_channel  # everything is on this machine
    async with open_channel(known["address"]) as identity, open_channel(orders_address) as orders:
        client = OrdersClient(identity, orders, known["user"]["username"], known["user"]["password"])
        try:
            await client.log_in()
            print(await client.get_order(order_id), end="")
        except IdentityError as refusal:
            sys.exit(f"{refusal.reason}: {refusal}")


if __name__ == "__main__":
    dev_file = Path(os.environ.get("IDENTITY_DEV_FILE", ".identity/dev.json"))
    address = f"127.0.0.1:{os.environ.get('ORDERS_PORT', '50552')}"
    asyncio.run(main(json.loads(dev_file.read_text()), address, sys.argv[1] if len(sys.argv) > 1 else "1"))

"""A client of the orders service: `python -m orders.client [ORDER_ID]`. Logs in by password, calls, and logs in again
when the guard says that its token is outdated."""

from __future__ import annotations

from typing import Any, TypeVar

import grpc

from identity.v1 import authentication_pb2
from identity.v1.authentication_pb2_grpc import AuthenticationServiceStub
from identity_client import status
from identity_client.errors import TokenExpired, TokenOutdated
from orders.v1 import orders_pb2 as pb
from orders.v1.orders_pb2_grpc import OrderServiceStub

Response = TypeVar("Response")


class OrdersClient:
    """Calls orders as one user. Raises: IdentityError, the class that the server or its guard raised."""

    def __init__(self, identity: grpc.aio.Channel, orders: grpc.aio.Channel, username: str, password: str) -> None:
        self._authentication = AuthenticationServiceStub(identity)
        self._orders = OrderServiceStub(orders)
        self._username = username
        self._password = password
        self._metadata: tuple[tuple[str, str], ...] = ()

    async def log_in(self) -> None:
        """Exchanges the password for an access token."""
        request = authentication_pb2.AuthenticateRequest(
            password=authentication_pb2.PasswordCredential(username=self._username, password=self._password),
            grant_type=authentication_pb2.GRANT_TYPE_ACCESS_TOKEN,
        )
        try:
            response = await self._authentication.Authenticate(request)
        except grpc.RpcError as error:
            raise status.from_rpc_error(error) from error
        self._metadata = (("authorization", f"Bearer {response.access.access_token}"),)

    async def get_order(self, order_id: str) -> pb.Order:
        """One order; needs the role clerk."""
        return (await self._call(self._orders.GetOrder, pb.GetOrderRequest(order_id=order_id))).order

    async def cancel_order(self, order_id: str) -> pb.Order:
        """The order as cancelled; needs the role manager."""
        return (await self._call(self._orders.CancelOrder, pb.CancelOrderRequest(order_id=order_id))).order

    async def _call(self, method: grpc.aio.UnaryUnaryMultiCallable[Any, Response], request: object) -> Response:
        try:
            return await self._attempt(method, request)
        except (TokenExpired, TokenOutdated):
            await self.log_in()
            return await self._attempt(method, request)

    async def _attempt(self, method: grpc.aio.UnaryUnaryMultiCallable[Any, Response], request: object) -> Response:
        try:
            return await method(request, metadata=self._metadata)
        except grpc.RpcError as error:
            raise status.from_rpc_error(error) from error

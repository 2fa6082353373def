"""The orders service: `python -m orders.server`. Three lines let Identity judge every caller."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from typing import Any, TypeAlias

import grpc
from billing.v1 import billing_pb2
from billing.v1.billing_pb2_grpc import BillingServiceStub

from identity_client import aio
from orders.v1 import orders_pb2 as pb
from orders.v1 import orders_pb2_grpc

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"


class OrderServicer(orders_pb2_grpc.OrderServiceServicer):
    """Three orders in memory. Who may call what stands in orders.proto; no handler checks a token."""

    def __init__(self, billing: grpc.aio.Channel) -> None:
        self._billing = BillingServiceStub(billing)
        items = {"1": "tea", "2": "coffee", "3": "cocoa"}
        self._orders = {
            key: pb.Order(order_id=key, item=item, state=pb.ORDER_STATE_OPEN) for key, item in items.items()
        }
        self._watchers: set[asyncio.Queue[pb.Order]] = set()

    async def GetOrder(self, request: pb.GetOrderRequest, context: Context) -> pb.GetOrderResponse:
        return pb.GetOrderResponse(order=await self._find(request.order_id, context))

    async def WatchOrders(self, _: pb.WatchOrdersRequest, __: Context) -> AsyncIterator[pb.WatchOrdersResponse]:
        changes: asyncio.Queue[pb.Order] = asyncio.Queue()
        self._watchers.add(changes)
        try:
            for order in self._orders.values():
                yield pb.WatchOrdersResponse(order=order)
            while True:
                yield pb.WatchOrdersResponse(order=await changes.get())
        finally:
            self._watchers.discard(changes)

    async def CancelOrder(self, request: pb.CancelOrderRequest, context: Context) -> pb.CancelOrderResponse:
        order = await self._find(request.order_id, context)
        order.state = pb.ORDER_STATE_CANCELLED
        for changes in self._watchers:
            changes.put_nowait(order)
        print(f"order {order.order_id} was cancelled by {aio.current_principal().subject}", flush=True)
        return pb.CancelOrderResponse(order=order)

    async def BillOrder(self, request: pb.BillOrderRequest, context: Context) -> pb.BillOrderResponse:
        order = await self._find(request.order_id, context)
        try:
            charged = await self._billing.Charge(billing_pb2.ChargeRequest(item=order.item))
        except grpc.aio.AioRpcError as error:
            await context.abort(error.code(), error.details() or "")
        return pb.BillOrderResponse(left=charged.left, chain=charged.chain)

    async def _find(self, order_id: str, context: Context) -> pb.Order:
        if order_id not in self._orders:
            await context.abort(grpc.StatusCode.NOT_FOUND, "No order has this id.")
        return self._orders[order_id]


async def main() -> None:
    async with aio.Identity.from_env() as identity:
        server = grpc.aio.server(interceptors=[identity.guard("orders", pb)])
        billing = identity.channel(
            os.environ.get("BILLING_ADDRESS", "127.0.0.1:50553"),
            audience="billing",
            scopes=["billing.charge", "stock.reserve"],
            on_behalf_of=aio.current_principal,
        )
        orders_pb2_grpc.add_OrderServiceServicer_to_server(OrderServicer(billing), server)
        port = server.add_insecure_port(f"127.0.0.1:{os.environ.get('ORDERS_PORT', '50552')}")
        await server.start()
        print(f"orders is ready on 127.0.0.1:{port}", flush=True)
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, lambda: asyncio.create_task(server.stop(1)))
        await server.wait_for_termination()


if __name__ == "__main__":
    asyncio.run(main())

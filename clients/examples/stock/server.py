"""The stock service: `python -m stock.server`. At the end of the chain orders -> billing -> stock."""

import asyncio
import os
import signal
from typing import Any, TypeAlias

import grpc

from identity_client import aio
from stock.v1 import stock_pb2 as pb
from stock.v1 import stock_pb2_grpc

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"


class StockServicer(stock_pb2_grpc.StockServiceServicer):
    """A shelf in memory."""

    def __init__(self) -> None:
        self._left = {"tea": 100, "coffee": 100, "cocoa": 100}

    async def Reserve(self, request: pb.ReserveRequest, context: Context) -> pb.ReserveResponse:
        if request.item not in self._left:
            await context.abort(grpc.StatusCode.NOT_FOUND, "No such item.")
        if not self._left[request.item]:
            await context.abort(grpc.StatusCode.FAILED_PRECONDITION, "None is left.")
        self._left[request.item] -= 1
        who = aio.current_principal()
        return pb.ReserveResponse(left=self._left[request.item], chain=[who.subject, *who.actors])


async def main() -> None:
    async with aio.Identity.from_env() as identity:
        server = grpc.aio.server(interceptors=[identity.guard("stock", pb)])
        stock_pb2_grpc.add_StockServiceServicer_to_server(StockServicer(), server)
        port = server.add_insecure_port(f"127.0.0.1:{os.environ.get('STOCK_PORT', '50554')}")
        await server.start()
        print(f"stock is ready on 127.0.0.1:{port}", flush=True)
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, lambda: asyncio.create_task(server.stop(1)))
        await server.wait_for_termination()


if __name__ == "__main__":
    asyncio.run(main())

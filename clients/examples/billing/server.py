"""The billing service: `python -m billing.server`. The threaded middle of the chain orders -> billing -> stock."""

import os
import signal
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
from stock.v1 import stock_pb2
from stock.v1.stock_pb2_grpc import StockServiceStub

import identity_client
from billing.v1 import billing_pb2 as pb
from billing.v1 import billing_pb2_grpc


class BillingServicer(billing_pb2_grpc.BillingServiceServicer):
    """Charges nobody, but reserves for whoever calls, with a token that is good at stock and for nothing else."""

    def __init__(self, stock: grpc.Channel) -> None:
        self._stock = StockServiceStub(stock)

    def Charge(self, request: pb.ChargeRequest, context: Any) -> pb.ChargeResponse:
        try:
            reserved = self._stock.Reserve(stock_pb2.ReserveRequest(item=request.item))
        except grpc.RpcError as error:
            context.abort(error.code(), error.details())
        return pb.ChargeResponse(left=reserved.left, chain=reserved.chain)


def main() -> None:
    with identity_client.Identity.from_env() as identity:
        server = grpc.server(ThreadPoolExecutor(8), interceptors=[identity.guard("billing", pb)])
        stock = identity.channel(
            os.environ.get("STOCK_ADDRESS", "127.0.0.1:50554"),
            audience="stock",
            scopes=["stock.reserve"],
            on_behalf_of=identity_client.current_principal,
        )
        billing_pb2_grpc.add_BillingServiceServicer_to_server(BillingServicer(stock), server)
        port = server.add_insecure_port(f"127.0.0.1:{os.environ.get('BILLING_PORT', '50553')}")
        server.start()
        print(f"billing is ready on 127.0.0.1:{port}", flush=True)
        signal.signal(signal.SIGTERM, lambda *_: server.stop(1))
        server.wait_for_termination()


if __name__ == "__main__":
    main()

"""A gRPC relay on loopback that loses, repeats, swaps and delays the events of trust streams; all else passes."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from typing import Any

import grpc
import grpc.aio

_WATCH = "/identity.v1.TrustService/WatchTrust"


class Mangler(grpc.GenericRpcHandler):
    """Relays to one address; mangles every tenth event or so until it is calmed."""

    def __init__(self, target: str, chance: random.Random) -> None:
        self._target = target
        self._chance = chance
        self._is_calm = False
        self._server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
        self.address = ""
        self.mangled = 0
        """How many events did not pass as they came."""

    async def __aenter__(self) -> Mangler:
        self._channel = grpc.aio.insecure_channel(self._target)
        self._server.add_generic_rpc_handlers((self,))
        self.address = f"127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"
        await self._server.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._server.stop(0)
        await self._channel.close()

    def calm(self) -> None:
        """From now on everything passes."""
        self._is_calm = True

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        method = handler_call_details.method
        if method == _WATCH:
            return grpc.unary_stream_rpc_method_handler(self._watch)

        async def relay(request: bytes, context: Any) -> bytes:
            ask: Any = self._channel.unary_unary(method)
            answer: bytes = await ask(request, metadata=context.invocation_metadata())
            return answer

        return grpc.unary_unary_rpc_method_handler(relay)

    async def _watch(self, request: bytes, context: Any) -> AsyncIterator[bytes]:
        ask: Any = self._channel.unary_stream(_WATCH)
        call = ask(request, metadata=context.invocation_metadata())
        try:
            async for event in self._mangled(call):
                yield event
        finally:
            call.cancel()

    async def _mangled(self, call: Any) -> AsyncIterator[bytes]:
        kept_back: list[bytes] = []
        async for event in call:
            draw = 1.0 if self._is_calm else self._chance.random()
            self.mangled += draw < 0.12
            if draw < 0.03:
                continue
            if draw < 0.06:
                yield event
            elif draw < 0.09:
                kept_back.append(event)
                continue
            elif draw < 0.12:
                await asyncio.sleep(0.05)
            yield event
            while kept_back:
                yield kept_back.pop()

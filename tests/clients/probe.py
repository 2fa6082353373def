"""A peer with a handler of every shape, asynchronous and not, that tells who called. Requests and answers are bytes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, cast

import grpc
import grpc.aio

from identity_client import status
from identity_client.access.rules import Rule, Rules
from identity_client.aio.guard import Guard
from identity_client.errors import IdentityError
from identity_client.principal import Principal, find_principal

SERVICE = "probe.v1.ProbeService"
CLERK = Rule(any_roles=frozenset({"clerk"}))
RULES = Rules.from_table(
    {
        f"/{SERVICE}/{name}": rule
        for name, rule in {
            "UnaryUnary": CLERK,
            "UnaryStream": CLERK,
            "StreamUnary": CLERK,
            "StreamStream": CLERK,
            "SyncUnary": CLERK,
            "SyncStream": CLERK,
            "SyncPublic": Rule(public=True),
            "Watch": CLERK,
            "WatchByWriting": CLERK,
            "Public": Rule(public=True),
            "PublicStream": Rule(public=True),
            "Failing": CLERK,
            "Undecodable": CLERK,
            "Confirmed": Rule(any_roles=frozenset({"clerk"}), is_confirmed=True),
            "NotRegistered": CLERK,
        }.items()
    }
)
SHAPES = ("UnaryUnary", "UnaryStream", "StreamUnary", "StreamStream")


def caller() -> bytes:
    principal = find_principal()
    return principal.account_id.encode() if principal else b"nobody"


@dataclass
class Probe:
    """Handlers; *runs* counts those that ran, *cleaned_up* is set by a watch that ended."""

    runs: int = 0
    principal: Principal | None = None
    cleaned_up: asyncio.Event = field(default_factory=asyncio.Event)

    async def unary(self, _request: object, _context: object) -> bytes:
        self.runs += 1
        self.principal = find_principal()
        before = caller()
        await asyncio.sleep(0)
        return before if before == caller() else b"mixed up"

    async def stream(self, _request: object, _context: object) -> AsyncIterator[bytes]:
        self.runs += 1
        for _ in range(2):
            yield caller()
            await asyncio.sleep(0)

    def sync_unary(self, _request: object, _context: object) -> bytes:
        self.runs += 1
        return caller()

    def sync_stream(self, _request: object, _context: object) -> Iterator[bytes]:
        self.runs += 1
        yield caller()
        yield caller()

    async def watch(self, _request: object, _context: object) -> AsyncIterator[bytes]:
        try:
            yield b"watching"
            await asyncio.Event().wait()
        finally:
            self.cleaned_up.set()

    async def watch_by_writing(self, _request: object, context: grpc.aio.ServicerContext[Any, Any]) -> None:
        try:
            await context.write(b"watching")
            await asyncio.Event().wait()
        finally:
            self.cleaned_up.set()

    async def failing(self, _request: object, context: grpc.aio.ServicerContext[Any, Any]) -> bytes:
        await context.abort(grpc.StatusCode.FAILED_PRECONDITION, "the handler's own words")
        return b""

    def handlers(self) -> dict[str, Any]:
        return {
            "UnaryUnary": grpc.unary_unary_rpc_method_handler(self.unary),
            "UnaryStream": grpc.unary_stream_rpc_method_handler(self.stream),
            "StreamUnary": grpc.stream_unary_rpc_method_handler(self.unary),
            "StreamStream": grpc.stream_stream_rpc_method_handler(self.stream),
            "SyncUnary": grpc.unary_unary_rpc_method_handler(self.sync_unary),
            "SyncStream": grpc.unary_stream_rpc_method_handler(self.sync_stream),
            "SyncPublic": grpc.unary_unary_rpc_method_handler(self.sync_unary),
            "Watch": grpc.unary_stream_rpc_method_handler(self.watch),
            "WatchByWriting": grpc.unary_stream_rpc_method_handler(self.watch_by_writing),
            "Public": grpc.unary_unary_rpc_method_handler(self.unary),
            "PublicStream": grpc.unary_stream_rpc_method_handler(self.stream),
            "Failing": grpc.unary_unary_rpc_method_handler(self.failing),
            "Undecodable": grpc.unary_unary_rpc_method_handler(self.unary, request_deserializer=_explode),
            "Confirmed": grpc.unary_unary_rpc_method_handler(self.unary),
            "NotRuled": grpc.unary_unary_rpc_method_handler(self.unary),
        }


def _explode(_raw: bytes) -> object:
    raise ValueError("the request was deserialised")


class Peer:
    """The probe behind a guard, and a channel to it."""

    def __init__(self, guard: Guard) -> None:
        self.probe = Probe()
        # One pool thread: whatever a call left on it, the next call would find.
        self._server = grpc.aio.server(ThreadPoolExecutor(1), interceptors=[guard])
        handler = grpc.method_handlers_generic_handler(SERVICE, self.probe.handlers())
        self._server.add_generic_rpc_handlers((handler,))
        self._port = self._server.add_insecure_port("127.0.0.1:0")

    async def __aenter__(self) -> Peer:
        await self._server.start()
        self.channel = grpc.aio.insecure_channel(f"127.0.0.1:{self._port}")
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.channel.close()
        await self._server.stop(0)

    def open(self, method: str, metadata: Any = ()) -> Any:
        """Starts a call as a client of the method's shape; requests are one empty message."""
        path, channel = f"/{SERVICE}/{method}", cast(Any, self.channel)
        if method in ("UnaryStream", "SyncStream", "PublicStream", "Watch", "WatchByWriting"):
            return channel.unary_stream(path)(b"", metadata=metadata)
        if method == "StreamUnary":
            return channel.stream_unary(path)(iter([b""]), metadata=metadata)
        if method == "StreamStream":
            return channel.stream_stream(path)(iter([b""]), metadata=metadata)
        return channel.unary_unary(path)(b"", metadata=metadata)

    async def call(self, method: str, metadata: Any = ()) -> list[bytes]:
        """All answers of a call, made with a deadline that only a hanging call reaches."""
        async with asyncio.timeout(10):
            call = self.open(method, metadata)
            return [answer async for answer in call] if hasattr(call, "__aiter__") else [await call]

    async def principal(self, metadata: Any) -> Principal:
        """Who called, as the handler saw it."""
        await self.call("UnaryUnary", metadata)
        assert self.probe.principal is not None
        return self.probe.principal

    async def refusal(self, method: str, metadata: Any = ()) -> IdentityError:
        """What the call was refused with. AssertionError if it was admitted."""
        try:
            answers = await self.call(method, metadata)
        except grpc.aio.AioRpcError as error:
            return status.from_rpc_error(error)
        raise AssertionError(f"admitted, and answered {answers}")


async def until(condition: Callable[[], bool]) -> None:
    """Returns once *condition* holds; TimeoutError after 10 s."""
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.002)

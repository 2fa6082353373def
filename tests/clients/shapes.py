"""A service with a handler of every shape, long and short, for both servers: `aio` with asynchronous or synchronous
handlers, `threaded`. Requests and answers are bytes."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, cast

import grpc
import grpc.aio

from identity_client import aio, status
from identity_client.access.rules import Rule, Rules
from identity_client.errors import IdentityError
from identity_client.principal import Principal, find_principal
from identity_client.sync.guard import Guard as ThreadedGuard

SERVICE = "shapes.v1.ShapeService"
SHAPES = ("UnaryUnary", "UnaryStream", "StreamUnary", "StreamStream")
LONG = ("LongUnaryStream", "LongStreamUnary", "LongStreamStream")
CLERK = Rule(any_roles=frozenset({"clerk"}), scopes=frozenset({"read"}))
TABLE = {f"/{SERVICE}/{name}": CLERK for name in (*SHAPES, *LONG)} | {
    f"/{SERVICE}/Flood": CLERK,
    f"/{SERVICE}/Confirmed": Rule(is_confirmed=True),
    f"/{SERVICE}/Public": Rule(public=True),
}
RULES = Rules.from_table(TABLE)

COLUMNS = ("aio, async handlers", "aio, sync handlers", "threaded")


def path(name: str) -> str:
    return f"/{SERVICE}/{name}"


def caller() -> bytes:
    principal = find_principal()
    return principal.account_id.encode() if principal else b"nobody"


@dataclass
class Handlers:
    """Counts what ran, what was deserialised and what was cleaned up. Synchronous long handlers block until
    *released*, whatever becomes of their call."""

    runs: int = 0
    consumed: int = 0
    cleaned_up: int = 0
    ended_regularly: int = 0
    principal: Principal | None = None
    released: threading.Event = field(default_factory=threading.Event)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def table(self, is_sync: bool) -> dict[str, Any]:
        """The handlers by method name."""
        kinds = {
            "UnaryUnary": (grpc.unary_unary_rpc_method_handler, self.one, self.sync_one),
            "UnaryStream": (grpc.unary_stream_rpc_method_handler, self.many, self.sync_many),
            "StreamUnary": (grpc.stream_unary_rpc_method_handler, self.gathering, self.sync_gathering),
            "StreamStream": (grpc.stream_stream_rpc_method_handler, self.echoing, self.sync_echoing),
            "LongUnaryStream": (grpc.unary_stream_rpc_method_handler, self.long, self.sync_long),
            "LongStreamUnary": (grpc.stream_unary_rpc_method_handler, self.gathering, self.sync_gathering),
            "LongStreamStream": (grpc.stream_stream_rpc_method_handler, self.echoing, self.sync_echoing),
            "Flood": (grpc.unary_stream_rpc_method_handler, self.flood, self.sync_flood),
            "Confirmed": (grpc.unary_unary_rpc_method_handler, self.one, self.sync_one),
            "Public": (grpc.unary_unary_rpc_method_handler, self.one, self.sync_one),
            "NotRuled": (grpc.unary_unary_rpc_method_handler, self.one, self.sync_one),
        }
        return {
            name: build(handlers[is_sync], request_deserializer=self.deserialised)
            for name, (build, *handlers) in kinds.items()
        }

    def deserialised(self, raw: bytes) -> bytes:
        self.count("consumed")
        return raw

    def count(self, what: str) -> None:
        with self._lock:
            setattr(self, what, getattr(self, what) + 1)

    async def one(self, _request: object, _context: object) -> bytes:
        return self.sync_one(_request, _context)

    def sync_one(self, _request: object, _context: object) -> bytes:
        self.count("runs")
        self.principal = find_principal()
        return caller()

    async def many(self, _request: object, _context: object) -> AsyncIterator[bytes]:
        self.count("runs")
        for _ in range(2):
            yield caller()
            await asyncio.sleep(0)

    def sync_many(self, _request: object, _context: object) -> Iterator[bytes]:
        self.count("runs")
        yield caller()
        yield caller()

    async def gathering(self, requests: Any, _context: object) -> bytes:
        self.count("runs")
        try:
            async for _ in requests:
                pass
            self.count("ended_regularly")
        finally:
            self.count("cleaned_up")
        return caller()

    def sync_gathering(self, requests: Any, _context: object) -> bytes:
        self.count("runs")
        try:
            for _ in requests:
                pass
            self.count("ended_regularly")
        finally:
            self.count("cleaned_up")
        return caller()

    async def echoing(self, requests: Any, _context: object) -> AsyncIterator[bytes]:
        self.count("runs")
        try:
            async for _ in requests:
                yield caller()
            self.count("ended_regularly")
        finally:
            self.count("cleaned_up")

    def sync_echoing(self, requests: Any, _context: object) -> Iterator[bytes]:
        self.count("runs")
        try:
            for _ in requests:
                yield caller()
            self.count("ended_regularly")
        finally:
            self.count("cleaned_up")

    async def long(self, _request: object, _context: object) -> AsyncIterator[bytes]:
        self.count("runs")
        try:
            yield caller()
            await asyncio.Event().wait()
        finally:
            self.count("cleaned_up")

    async def flood(self, _request: object, _context: object) -> AsyncIterator[bytes]:
        try:
            for _ in range(500):  # far more than flow control lets out unread
                yield bytes(64_000)
            self.count("ended_regularly")
        finally:
            self.count("cleaned_up")

    def sync_flood(self, _request: object, _context: object) -> Iterator[bytes]:
        try:
            for _ in range(500):  # far more than flow control lets out unread
                yield bytes(64_000)
            self.count("ended_regularly")
        finally:
            self.count("cleaned_up")

    def sync_long(self, _request: object, _context: object) -> Iterator[bytes]:
        self.count("runs")
        try:
            yield caller()
            self.released.wait()
        finally:
            self.count("cleaned_up")


class ShapePeer:
    """The service behind a guard, and a channel to it. *credentials* are those of server and channel, for TLS."""

    def __init__(
        self,
        guard: aio.Guard | ThreadedGuard,
        *,
        is_sync: bool = False,
        threads: int = 128,
        credentials: tuple[grpc.ServerCredentials, grpc.ChannelCredentials] | None = None,
    ) -> None:
        self.handlers = Handlers()
        self.pool = ThreadPoolExecutor(threads)
        self._server: Any
        if isinstance(guard, ThreadedGuard):
            self._server = grpc.server(self.pool, interceptors=[guard], options=[("grpc.so_reuseport", 0)])
        else:
            self._server = grpc.aio.server(self.pool, interceptors=[guard], options=[("grpc.so_reuseport", 0)])
        table = self.handlers.table(is_sync or isinstance(guard, ThreadedGuard))
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, table),))
        self._credentials = credentials
        self.port = (
            self._server.add_secure_port("localhost:0", credentials[0])
            if credentials
            else self._server.add_insecure_port("127.0.0.1:0")
        )

    async def __aenter__(self) -> ShapePeer:
        if isinstance(self._server, grpc.aio.Server):
            await self._server.start()
        else:
            self._server.start()
        self.client = self.connect()
        return self

    def connect(self, credentials: grpc.ChannelCredentials | None = None) -> Client:
        """A client, with the peer's own credentials or others."""
        chosen = credentials or (self._credentials[1] if self._credentials else None)
        return Client(f"{'localhost' if chosen else '127.0.0.1'}:{self.port}", chosen)

    async def __aexit__(self, *_: object) -> None:
        self.handlers.released.set()
        await self.client.close()
        if isinstance(self._server, grpc.aio.Server):
            await self._server.stop(0)
        else:
            await asyncio.to_thread(self._server.stop(0).wait)
        await asyncio.to_thread(self.pool.shutdown)

    def open(self, method: str, metadata: Any = (), client: Client | None = None) -> Any:
        """Starts a call as a client of the method's shape. Where requests are streamed, none is written yet."""
        stub = cast(Any, (client or self.client).channel)
        shape = method.removeprefix("Long")
        if shape in ("UnaryStream", "Flood"):
            return stub.unary_stream(path(method))(b"request", metadata=metadata)
        if shape == "StreamUnary":
            return stub.stream_unary(path(method))(metadata=metadata)
        if shape == "StreamStream":
            return stub.stream_stream(path(method))(metadata=metadata)
        return stub.unary_unary(path(method))(b"request", metadata=metadata)

    async def begin(self, method: str, metadata: Any) -> Any:
        """Opens a long call and returns once its handler runs."""
        call, runs = self.open(method, metadata), self.handlers.runs
        if method != "LongUnaryStream":
            await call.write(b"request")
        if method != "LongStreamUnary":
            assert await call.read() != grpc.aio.EOF
        async with asyncio.timeout(10):
            while self.handlers.runs == runs:
                await asyncio.sleep(0.002)
        return call

    async def call(self, method: str, metadata: Any = (), client: Client | None = None) -> list[bytes]:
        """All answers of a short call, made with a deadline that only a hanging call reaches."""
        chosen = client or self.client
        async with asyncio.timeout(10):
            if method in ("StreamUnary", "StreamStream"):
                return await asyncio.to_thread(chosen.call_in_thread, method, metadata)
            call = self.open(method, metadata, chosen)
            return [answer async for answer in call] if hasattr(call, "__aiter__") else [await call]

    async def refusal(self, method: str, metadata: Any = (), client: Client | None = None) -> IdentityError:
        """What the call was refused with. AssertionError if it was admitted."""
        try:
            answers = await self.call(method, metadata, client)
        except grpc.RpcError as error:
            return status.from_rpc_error(error)
        raise AssertionError(f"admitted, and answered {answers}")


class Client:
    """Channels to the service."""

    def __init__(self, address: str, credentials: grpc.ChannelCredentials | None) -> None:
        if credentials is None:
            self.channel = grpc.aio.insecure_channel(address)
            self._threaded = grpc.insecure_channel(address)
        else:
            self.channel = grpc.aio.secure_channel(address, credentials)
            self._threaded = grpc.secure_channel(address, credentials)

    async def close(self) -> None:
        self._threaded.close()
        await self.channel.close()

    def call_in_thread(self, method: str, metadata: Any) -> list[bytes]:
        """A short call with a stream of one request. Blocking: the asyncio client answers INTERNAL, a status of its
        own making, when it is refused while it writes."""
        stub, requests = cast(Any, self._threaded), iter([b"request"])
        if method == "StreamUnary":
            return [stub.stream_unary(path(method))(requests, metadata=metadata, timeout=10)]
        return list(stub.stream_stream(path(method))(requests, metadata=metadata, timeout=10))


async def end_of(call: Any) -> str:
    """The reason with which a call was ended as unauthenticated."""
    async with asyncio.timeout(10):
        assert await call.code() is grpc.StatusCode.UNAUTHENTICATED
        return str(await call.details()).partition(":")[0]


async def until(condition: Any) -> None:
    """Returns once *condition* holds; TimeoutError after 10 s."""
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.002)

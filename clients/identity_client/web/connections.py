"""Connections that outlive one answer, web sockets and streamed responses: they end when what their bearer presented
expires, is revoked or is outdated, or when the copy of the revocations has become too old to tell."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress

from identity_client.access.judge import Judge
from identity_client.access.streams import OpenStream, Watch
from identity_client.aio.streams import Sweeper
from identity_client.errors import IdentityError, RetryLater
from identity_client.principal import Principal
from identity_client.web.asgi import App, Message, Receive, Scope, Send

CLOSE_UNAUTHENTICATED = 4401
CLOSE_FORBIDDEN = 4403
CLOSE_TRY_LATER = 1013

_log = logging.getLogger(__name__)


def close_code(error: IdentityError) -> int:
    """The code that a web socket is closed with: 4401 log in again (or renew), 4403 not allowed, 1013 try later."""
    if isinstance(error, RetryLater):
        return CLOSE_TRY_LATER
    return CLOSE_FORBIDDEN if error.status == "PERMISSION_DENIED" else CLOSE_UNAUTHENTICATED


class Connections:
    """Runs the application for known callers, and watches what lasts: accepted web sockets, and responses of no stated
    length, such as events. A response with a length ends by itself."""

    def __init__(self, judge: Judge) -> None:
        self._watch = Watch(judge.recheck, lambda _stream, _error: True)
        self._sweeper: Sweeper | None = None

    async def run(
        self, app: App, scope: Scope, receive: Receive, send: Send, rule_path: str, caller: Principal
    ) -> None:
        """Serves one request or socket of *caller*, judged by the rule of *rule_path*."""
        connection = _Connection(rule_path, caller, receive, send, watch=self._add)
        try:
            await app(scope, connection.receive, connection.send)
        except Exception:
            if connection.error is None:
                raise
            # The application was in the middle of something: as if its client had left.
            _log.debug("a connection to %s was ended", rule_path, exc_info=True)
        finally:
            self._watch.remove(connection)
            await connection.settle()

    def _add(self, connection: OpenStream) -> None:
        if self._sweeper is None:
            self._sweeper = Sweeper(self._watch, asyncio.get_running_loop())
        self._watch.add(connection)
        self._sweeper.wake()


class _Connection(OpenStream):
    """One of them. Once it has ended, the application reads a disconnect, and what it sends is refused as if its client
    had left."""

    def __init__(
        self, rule_path: str, caller: Principal, receive: Receive, send: Send, *, watch: Callable[[OpenStream], None]
    ) -> None:
        super().__init__(rule_path, caller, None)
        self._receive = receive
        self._send = send
        self._watch = watch
        self._ended = asyncio.get_running_loop().create_future()
        self._sending = asyncio.Lock()
        self._pending: asyncio.Task[Message] | None = None
        self._closing: asyncio.Task[None] | None = None
        self._lasting = ""  # the kind of what lasts and is open: websocket, http, or none

    async def receive(self) -> Message:
        """What the client sends next, or that it is gone."""
        if self._pending is None:
            self._pending = asyncio.ensure_future(_next(self._receive))
        await asyncio.wait((self._pending, self._ended), return_when=asyncio.FIRST_COMPLETED)
        if self._ended.done() and self.error is not None:
            if self._lasting == "websocket":
                return {"type": "websocket.disconnect", "code": close_code(self.error), "reason": self.error.reason}
            return {"type": "http.disconnect"}
        pending, self._pending = self._pending, None
        return pending.result()

    async def send(self, message: Message) -> None:
        """Sends to the client. Raises OSError once the connection has ended."""
        async with self._sending:
            if self.error is not None:
                raise OSError(f"the connection was ended: {self.error.reason}")
            await self._send(message)
            self._note(message)

    def interrupt(self) -> None:
        self._ended.set_result(None)
        self._closing = asyncio.get_running_loop().create_task(self._close())

    async def settle(self) -> None:
        """Ends what still waits for the client."""
        if self._pending is not None:
            self._pending.cancel()
        if self._closing is not None:
            await asyncio.wait([self._closing])

    def _note(self, message: Message) -> None:
        match message["type"]:
            case "websocket.accept":
                self._begin("websocket")
            case "http.response.start":
                headers = message.get("headers", ())
                self._is_bounded = any(name.lower() == b"content-length" for name, _ in headers)
            case "http.response.body" if message.get("more_body", False):
                if not self._is_bounded and not self._lasting:
                    self._begin("http")
            case "http.response.body" | "websocket.close":
                self._lasting = ""

    def _begin(self, kind: str) -> None:
        self._lasting = kind
        self._watch(self)

    async def _close(self) -> None:
        async with self._sending:
            if self.error is None or not self._lasting:
                return  # the application has closed it meanwhile
            with suppress(OSError):  # the client has left
                if self._lasting == "websocket":
                    code, reason = close_code(self.error), self.error.reason
                    await self._send({"type": "websocket.close", "code": code, "reason": reason})
                else:
                    await self._send({"type": "http.response.body", "body": b"", "more_body": False})


async def _next(receive: Receive) -> Message:
    return await receive()

"""A small HTTP listener for probes, metrics and public keys: a few fixed pages, read by GET and HEAD.

One request a connection, of at most 8 KiB and without a body, within 5 seconds from the first byte to the last of the
answer. More than 64 connections at once are closed unread. Nothing of a request is ever repeated in an answer.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from http import HTTPStatus

_log = logging.getLogger(__name__)

HEAD_BYTES = 8 * 1024
SECONDS = 5.0
CONNECTIONS = 64

TEXT = "text/plain; charset=utf-8"

_UNIX = "unix:"
_REQUEST_LINE = re.compile(rb"([A-Z]{1,20}) (/[!-~]*) HTTP/1\.[01]")
_HEADER = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*([\t -~\x80-\xff]*)")  # RFC 9110 section 5.5


@dataclass(frozen=True, slots=True)
class Answer:
    """What a page says."""

    body: bytes
    content_type: str = TEXT
    status: HTTPStatus = HTTPStatus.OK
    cache_control: str = "no-store"


Page = Callable[[], Awaitable[Answer]]


class HttpListener:
    """Serves *pages* by their paths at *address*: HOST:PORT, or unix:PATH."""

    def __init__(self, address: str, pages: Mapping[str, Page]) -> None:
        self._address = address
        self._pages = pages
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> str:
        """Listen; -> the bound address. Raises OSError."""
        if self._address.startswith(_UNIX):
            path = self._address.removeprefix(_UNIX)
            self._server = await asyncio.start_unix_server(self._connected, path, limit=HEAD_BYTES)
            return self._address
        host, _, port = self._address.rpartition(":")
        self._server = await asyncio.start_server(self._connected, host.strip("[]"), int(port), limit=HEAD_BYTES)
        return f"{host}:{self._server.sockets[0].getsockname()[1]}"

    async def stop(self) -> None:
        """Close every connection."""
        if self._server is not None:
            self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(self._tasks) >= CONNECTIONS:
            writer.transport.abort()
            return
        task = asyncio.create_task(self._serve(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(TimeoutError, OSError):
            try:
                async with asyncio.timeout(SECONDS):
                    writer.write(await self._answer(reader))
                    writer.close()
                    await writer.wait_closed()  # what a slow reader does not take is dropped at the time limit
            finally:
                writer.transport.abort()

    async def _answer(self, reader: asyncio.StreamReader) -> bytes:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
        except asyncio.LimitOverrunError:
            return _refusal(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)
        except asyncio.IncompleteReadError:
            return b""
        request_line, *header_lines = head.removesuffix(b"\r\n\r\n").split(b"\r\n")
        request, headers = _REQUEST_LINE.fullmatch(request_line), [_HEADER.fullmatch(line) for line in header_lines]
        if (
            request is None
            or not all(headers)
            or any(_announces_body(*header.groups()) for header in headers if header)
        ):
            return _refusal(HTTPStatus.BAD_REQUEST)
        method, path = request[1], request[2].partition(b"?")[0].decode("ascii")
        if method not in (b"GET", b"HEAD"):
            return _refusal(HTTPStatus.METHOD_NOT_ALLOWED)
        if path not in self._pages:
            return _refusal(HTTPStatus.NOT_FOUND)
        return _bytes(await self._page(path), is_head=method == b"HEAD")

    async def _page(self, path: str) -> Answer:
        try:
            return await self._pages[path]()
        except Exception:
            _log.exception("the page %s failed", path)
            return _plain(HTTPStatus.INTERNAL_SERVER_ERROR)


def _announces_body(name: bytes, value: bytes) -> bool:
    name = name.lower()
    return name == b"transfer-encoding" or (name == b"content-length" and value.strip() != b"0")


def _plain(status: HTTPStatus) -> Answer:
    return Answer(f"{status.phrase}\n".encode(), status=status)


def _refusal(status: HTTPStatus) -> bytes:
    return _bytes(_plain(status), is_head=False)


def _bytes(answer: Answer, *, is_head: bool) -> bytes:
    lines = [
        f"HTTP/1.1 {answer.status.value} {answer.status.phrase}",
        f"Content-Type: {answer.content_type}",
        f"Content-Length: {len(answer.body)}",
        f"Cache-Control: {answer.cache_control}",
        "X-Content-Type-Options: nosniff",
        "Connection: close",
    ]
    if answer.status is HTTPStatus.METHOD_NOT_ALLOWED:
        lines.append("Allow: GET, HEAD")
    head = "\r\n".join(lines).encode("ascii") + b"\r\n\r\n"
    return head if is_head else head + answer.body

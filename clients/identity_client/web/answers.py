"""Answers of the front end itself: small JSON objects and redirects, never kept by a cache."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from http import HTTPStatus
from typing import Any
from urllib.parse import urlencode

from identity_client.errors import IdentityError, RetryLater
from identity_client.web.asgi import Send
from identity_client.web.refusals import MethodNotAllowed, WebRefusal

_STATUS = {
    "INVALID_ARGUMENT": HTTPStatus.BAD_REQUEST,
    "UNAUTHENTICATED": HTTPStatus.UNAUTHORIZED,
    "PERMISSION_DENIED": HTTPStatus.FORBIDDEN,
    "RESOURCE_EXHAUSTED": HTTPStatus.TOO_MANY_REQUESTS,
    "UNAVAILABLE": HTTPStatus.SERVICE_UNAVAILABLE,
    "DEADLINE_EXCEEDED": HTTPStatus.GATEWAY_TIMEOUT,
}

Refusal = IdentityError | WebRefusal


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole response; the cookies in it are kept out of repr with the headers."""

    status: int
    headers: tuple[tuple[str, str], ...]
    body: bytes = b""

    def with_cookies(self, cookies: Sequence[str]) -> Answer:
        """The same, with Set-Cookie values."""
        return replace(self, headers=(*self.headers, *(("set-cookie", cookie) for cookie in cookies)))

    def __repr__(self) -> str:
        return f"Answer({self.status})"

    async def send(self, send: Send) -> None:
        """Sends it."""
        headers = (*self.headers, ("cache-control", "no-store"), ("content-length", str(len(self.body))))
        raw = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers]
        await send({"type": "http.response.start", "status": self.status, "headers": raw})
        await send({"type": "http.response.body", "body": self.body})


def http_status(error: Refusal) -> int:
    """The HTTP status of a refusal; 500 where the fault is ours."""
    if isinstance(error, WebRefusal):
        return error.http_status
    return _STATUS.get(error.status, HTTPStatus.INTERNAL_SERVER_ERROR)


def as_json(status: int, content: Mapping[str, Any], headers: Sequence[tuple[str, str]] = ()) -> Answer:
    """A JSON object."""
    body = json.dumps(content, separators=(",", ":")).encode()
    return Answer(status, (("content-type", "application/json"), *headers), body)


def refusal(error: Refusal) -> Answer:
    """`{"reason": ..., "message": ...}`, with Retry-After in whole seconds where waiting helps."""
    headers: list[tuple[str, str]] = []
    if isinstance(error, RetryLater):
        headers.append(("retry-after", str(max(1, math.ceil(error.retry_after_seconds)))))
    if isinstance(error, MethodNotAllowed):
        headers.append(("allow", "POST"))
    if http_status(error) == HTTPStatus.UNAUTHORIZED:
        headers.append(("www-authenticate", "Bearer"))
    return as_json(http_status(error), {"reason": error.reason, "message": str(error)}, headers)


def redirect(location: str, status: int = HTTPStatus.SEE_OTHER, **query: str) -> Answer:
    """To *location*, a path of this site; with *query*, those that are not empty."""
    given = {name: value for name, value in query.items() if value}
    return Answer(status, (("location", f"{location}?{urlencode(given)}" if given else location),))

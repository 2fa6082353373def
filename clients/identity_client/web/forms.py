"""What people send to log in: a small form or a small JSON object, read strictly; and where they are sent next."""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import parse_qsl, quote

from identity_client.web.asgi import Receive, Request
from identity_client.web.refusals import BodyMalformed, BodyTooLarge, MediaTypeUnknown

MAXIMUM_BYTES = 16_384
_MAXIMUM_FIELDS = 16
_LONGEST_TARGET = 2_000

FORM = "application/x-www-form-urlencoded"
JSON = "application/json"


async def read_fields(request: Request, receive: Receive) -> dict[str, str]:
    """The body's fields by name. Raises MediaTypeUnknown, BodyTooLarge, BodyMalformed, HeaderRepeated."""
    media_type = (request.find(b"content-type") or "").partition(";")[0].strip().lower()
    if media_type not in (FORM, JSON):
        raise MediaTypeUnknown()
    body = await _read(receive)
    try:
        pairs = _form(body) if media_type == FORM else _json(body)
        "".join(value for _, value in pairs if isinstance(value, str)).encode()  # half a surrogate pair is no text
    except (ValueError, RecursionError):
        raise BodyMalformed() from None  # the cause would quote the body
    fields = dict(pairs)
    if len(fields) != len(pairs) or not all(isinstance(value, str) for value in fields.values()):
        raise BodyMalformed()
    return fields


def local_target(target: str | None, otherwise: str) -> str:
    """*target* if it is a path of this site, as a Location value: never another host, however it is spelled."""
    if target is None or not 0 < len(target) <= _LONGEST_TARGET or not target.startswith("/"):
        return otherwise
    # A browser takes // and /\\ for another host, and drops tabs and line breaks before it looks.
    if target[1:2] in ("/", "\\") or any(character <= " " or character in "\\\x7f" for character in target):
        return otherwise
    return quote(target, safe="/?&=#%:@!$'()*+,;~-._[]", errors="replace")


async def _read(receive: Receive) -> bytes:
    body = bytearray()
    while True:
        message = await receive()
        if message["type"] != "http.request":
            raise BodyMalformed()  # the client has left
        body += message.get("body", b"")
        if len(body) > MAXIMUM_BYTES:
            raise BodyTooLarge()
        if not message.get("more_body", False):
            return bytes(body)


def _form(body: bytes) -> list[tuple[str, str]]:
    text = body.decode("ascii")
    return parse_qsl(text, True, bool(text), errors="strict", max_num_fields=_MAXIMUM_FIELDS)


def _json(body: bytes) -> list[tuple[str, Any]]:
    pairs: list[tuple[str, Any]] = json.loads(body, object_pairs_hook=list)
    if not isinstance(pairs, list) or not all(isinstance(pair, tuple) for pair in pairs):
        raise ValueError
    return pairs

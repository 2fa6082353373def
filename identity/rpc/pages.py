"""Pages of lists. A page goes on after a row's place in the order: rows that come or go meanwhile shift nothing."""

from __future__ import annotations

import binascii
from base64 import urlsafe_b64decode, urlsafe_b64encode

from identity_client.errors import InvalidRequest

from . import convert

DEFAULT_PAGE_SIZE = 100
MAXIMUM_PAGE_SIZE = 1_000

_LONGEST_TOKEN = 1_024


def page_size(asked: int) -> int:
    """How many rows. Raises InvalidRequest."""
    if not 0 <= asked <= MAXIMUM_PAGE_SIZE:
        raise InvalidRequest(f"1-{MAXIMUM_PAGE_SIZE:,}, or 0 for {DEFAULT_PAGE_SIZE}", "page_size")
    return asked or DEFAULT_PAGE_SIZE


def write_token(*place: str) -> str:
    """The page token that goes on after the row at *place*."""
    return urlsafe_b64encode("\0".join(place).encode()).decode()


def read_name(page_token: str, longest: int) -> str:
    """The name to go on after, "" at the start. Raises InvalidRequest."""
    [name] = _read(page_token, 1) or [""]
    if page_token and not 1 <= len(name) <= longest:
        raise _unreadable()
    return name


def read_number(page_token: str) -> int | None:
    """The number to go on below, None at the start. Raises InvalidRequest."""
    place = _read(page_token, 1)
    return None if place is None else _number(place[0], 18)


def read_time_and_id(page_token: str) -> tuple[int, str] | None:
    """The time and id to go on below, None at the start. Raises InvalidRequest."""
    place = _read(page_token, 2)
    if place is None:
        return None
    time, row_id = place
    return _number(time, 12), convert.checked_id(row_id, "page_token")


def _number(text: str, digits: int) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= digits):
        raise _unreadable()
    return int(text)


def _read(page_token: str, parts: int) -> list[str] | None:
    if not page_token:
        return None
    try:
        if len(page_token) > _LONGEST_TOKEN:
            raise ValueError("too long")
        place = urlsafe_b64decode(page_token.encode("ascii")).decode("utf-8").split("\0")
    except (binascii.Error, ValueError):
        place = []
    if len(place) != parts:
        raise _unreadable()
    return place


def _unreadable() -> InvalidRequest:
    return InvalidRequest("give next_page_token of the page before, unchanged", "page_token")

"""Opaque texts: recognisable by their prefix, checked for typing errors before anything is looked up.

prefix + body + checksum. The body is fixed-width base62 of the bytes; the checksum is CRC-32 over prefix and body as
six characters, so that a scanner finds leaked ones without asking and a typing error costs no look-up. It is no
protection: the random bytes are.
"""

from __future__ import annotations

import enum
import math
import zlib

from identity_client.errors import TokenMalformed
from identity_client.trust.entries import id_bytes, id_text

ID_BYTES = 16
SECRET_BYTES = 32
COUNT_BYTES = 4
MAC_BYTES = 32

_ALPHABET = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_VALUES = {character: value for value, character in enumerate(_ALPHABET)}
_CHECKSUM_WIDTH = 6


class Kind(enum.StrEnum):
    """The prefix of each kind of text."""

    SESSION = "ids_"
    REFRESH = "idr_"
    API_KEY = "idk_"
    CLIENT_SECRET = "idc_"  # noqa: S105 - the prefix, not a secret


_KINDS = {kind.value: kind for kind in Kind}


def kind_of(text: str) -> Kind | None:
    """What *text* claims to be, by its prefix alone; None for no kind of ours."""
    return _KINDS.get(text[:4])


def encode_secret(kind: Kind, grant_id: str, secret: bytes) -> str:
    """The text of a session token, API key or client secret: id and random part."""
    return _encode(kind, id_bytes(grant_id) + secret)


def split_secret(text: str, kind: Kind) -> tuple[str, bytes]:
    """-> grant id, random part. Raises TokenMalformed."""
    body = _decode(kind, text, ID_BYTES + SECRET_BYTES)
    return id_text(body[:ID_BYTES]), body[ID_BYTES:]


def encode_refresh(grant_id: str, count: int, mac: bytes) -> str:
    """The text of a refresh token: session id, rotation count and MAC."""
    return _encode(Kind.REFRESH, id_bytes(grant_id) + count.to_bytes(COUNT_BYTES, "big") + mac)


def split_refresh(text: str) -> tuple[str, int, bytes]:
    """-> session id, rotation count, MAC. Raises TokenMalformed."""
    body = _decode(Kind.REFRESH, text, ID_BYTES + COUNT_BYTES + MAC_BYTES)
    count = int.from_bytes(body[ID_BYTES : ID_BYTES + COUNT_BYTES], "big")
    return id_text(body[:ID_BYTES]), count, body[ID_BYTES + COUNT_BYTES :]


def _encode(kind: Kind, body: bytes) -> str:
    text = kind.value + _base62(int.from_bytes(body, "big"), _width(len(body)))
    return text + _checksum(text)


def _decode(kind: Kind, text: str, size: int) -> bytes:
    start, end = len(kind.value), len(kind.value) + _width(size)
    if len(text) != end + _CHECKSUM_WIDTH or not text.startswith(kind.value) or text[end:] != _checksum(text[:end]):
        raise TokenMalformed()
    try:
        return _number(text[start:end]).to_bytes(size, "big")
    except (KeyError, OverflowError):
        raise TokenMalformed() from None


def _width(size: int) -> int:
    return math.ceil(size * 8 / math.log2(62))


def _checksum(text: str) -> str:
    return _base62(zlib.crc32(text.encode("utf-8", "surrogatepass")), _CHECKSUM_WIDTH)


def _base62(number: int, width: int) -> str:
    digits = []
    for _ in range(width):
        number, value = divmod(number, 62)
        digits.append(_ALPHABET[value])
    return "".join(reversed(digits))


def _number(text: str) -> int:
    number = 0
    for character in text:
        number = number * 62 + _VALUES[character]
    return number

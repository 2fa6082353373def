"""The text of an access token, in both directions: what our issuer writes, and a parser that takes nothing else.

Every rule here holds before PyJWT sees a byte, because a lax parser accepts texts that our issuer never wrote: padded
or non-canonical base64, other header members, duplicate names, times that are not integers (RFC 8725 sections 3.1 to
3.11). All functions are pure; all refusals are TokenMalformed, except that of a signature.
"""

from __future__ import annotations

import binascii
import json
import re
from functools import lru_cache
from typing import Any, NamedTuple

from cryptography.hazmat.primitives.asymmetric import ec
from jwt.algorithms import ECAlgorithm

from identity_client.errors import TokenMalformed
from identity_client.tokens.claims import Claims
from identity_client.tokens.keys import PublicKey, base64url

MAXIMUM_BYTES = 4096
SIGNATURE_BYTES = 64

_ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
_HALF_ORDER = _ORDER // 2
_ZERO, _ORDER_BYTES, _HALF_ORDER_BYTES = (number.to_bytes(32, "big") for number in (0, _ORDER, _HALF_ORDER))
_OBJECTS = frozenset({"cnf", "act"})
_PLAIN = frozenset({str, int, bool, type(None), list})
_TO_STANDARD = bytes.maketrans(b"-_", b"+/")
_ENCODER = json.JSONEncoder(separators=(",", ":"))
_ES256 = ECAlgorithm(ECAlgorithm.SHA256, ec.SECP256R1)

_SHAPE = re.compile(r"([A-Za-z0-9_-]+)\.([A-Za-z0-9_-]+)\.([A-Za-z0-9_-]{86})")
_DIGITS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
_LAST_CHARACTERS = (_DIGITS, "", _DIGITS[::16], _DIGITS[::4])  # by the segment's length, modulo 4
_HEADER = re.compile(rb'\{"alg":"ES256","kid":"([A-Za-z0-9_-]{43})","typ":"at\+jwt"\}')


class Parts(NamedTuple):
    """A token taken apart. Nothing in it is proved yet."""

    key_id: str
    payload: bytes
    signing_input: bytes
    signature: bytes


def split(raw_token: str) -> Parts:
    """Take *raw_token* apart: length, shape, exact header. Raises TokenMalformed."""
    if len(raw_token) > MAXIMUM_BYTES:
        raise TokenMalformed()
    shape = _SHAPE.fullmatch(raw_token)
    if shape is None:
        raise TokenMalformed()
    header, payload, signature = shape.groups()
    signing_input = raw_token[: shape.end(2)].encode("ascii")
    return Parts(_key_id(header), _decode(payload), signing_input, _decode(signature))


def parse_payload(payload: bytes) -> dict[str, Any]:
    """One JSON object of texts, integers, true, false, null, lists of texts, and the objects cnf and act.

    The bytes must be the very ones that our encoder writes for these members. That leaves nothing that two parsers
    could read differently: no duplicate names, fractions, NaN, odd escapes, white space, or bytes beyond ASCII.
    Raises TokenMalformed.
    """
    try:
        text = payload.decode("ascii")
        members = json.loads(text)
        is_ours = type(members) is dict and _is_plain(members) and _ENCODER.encode(members) == text
    except (ValueError, RecursionError):
        is_ours = False
    if not is_ours:
        raise TokenMalformed()
    return members  # type: ignore[no-any-return]


def check_signature(key: PublicKey, signing_input: bytes, signature: bytes) -> bool:
    """Whether *signature* (r and s, 64 bytes) is the low-S ECDSA signature of *signing_input* (RFC 7518 section 3.4).

    With s, n - s verifies too: of the two texts of one token only the one that we issue is accepted.
    """
    return is_low_s(signature) and verify_es256(key, signing_input, signature)


def verify_es256(key: PublicKey, signing_input: bytes, signature: bytes) -> bool:
    """The same of a signature by someone else, who may leave s in either half."""
    return bool(_ES256.verify(signing_input, key.key, signature))


def is_low_s(signature: bytes) -> bool:
    """Whether r and s are in range and s is in its lower half."""
    # Of numbers of one width, the order of the bytes is that of the numbers.
    return (
        len(signature) == SIGNATURE_BYTES
        and _ZERO < signature[:32] < _ORDER_BYTES
        and _ZERO < signature[32:] <= _HALF_ORDER_BYTES
    )


def low_s(signature: bytes) -> bytes:
    """The same signature with s in its lower half."""
    s = int.from_bytes(signature[32:], "big")
    return signature if s <= _HALF_ORDER else signature[:32] + (_ORDER - s).to_bytes(32, "big")


def signing_input(claims: Claims) -> bytes:
    """What the issuer signs: header and payload, always in the same bytes for the same claims."""
    header = f'{{"alg":"ES256","kid":"{claims.key_id}","typ":"at+jwt"}}'.encode("ascii")
    payload = _ENCODER.encode(_payload(claims)).encode("ascii")
    return f"{base64url(header)}.{base64url(payload)}".encode("ascii")


def _payload(claims: Claims) -> dict[str, Any]:
    payload: dict[str, Any] = {
        "iss": claims.issuer,
        "sub": claims.account_id,
        "aud": claims.audience,
        "exp": claims.expire_time,
        "iat": claims.issue_time,
        "jti": claims.token_id,
        "client_id": claims.client_id,
        "sid": claims.grant_id,
        "gen": claims.generation,
        "pol": claims.policy_version,
    }
    if claims.scopes:
        payload["scope"] = " ".join(claims.scopes)
    if claims.roles:
        payload["roles"] = list(claims.roles)
    if claims.authentication_time is not None:
        payload["auth_time"] = claims.authentication_time
    if claims.authentication_methods:
        payload["amr"] = list(claims.authentication_methods)
    if claims.certificate_thumbprint:
        payload["cnf"] = {"x5t#S256": claims.certificate_thumbprint}
    if claims.actors:
        payload["act"] = _nested(claims.actors)
    if claims.is_limited:
        payload["lim"] = True
    return payload


def _nested(actors: tuple[str, ...]) -> dict[str, Any]:
    nearest, *earlier = actors
    return {"sub": nearest, "act": _nested(tuple(earlier))} if earlier else {"sub": nearest}


def _is_plain(members: dict[str, Any]) -> bool:
    """Whether each value is a text, an integer, true, false, null or a list of texts; cnf and act are objects, whose
    own form is judged where their claims are read."""
    values = [value for name, value in members.items() if name not in _OBJECTS or type(value) is not dict]
    if not _PLAIN.issuperset(map(type, values)):
        return False
    lists = [value for value in values if type(value) is list]
    return all(type(item) is str for items in lists for item in items)


@lru_cache(maxsize=64)  # an issuer has a handful of keys, and so of headers
def _key_id(header: str) -> str:
    match = _HEADER.fullmatch(_decode(header))
    if match is None:
        raise TokenMalformed()
    return match[1].decode("ascii")


def _decode(segment: str) -> bytes:
    """Canonical base64url: no padding, and the unused bits of the last character are zero (RFC 4648 section 3.5)."""
    if segment[-1] not in _LAST_CHARACTERS[len(segment) % 4]:
        raise TokenMalformed()
    return binascii.a2b_base64(segment.encode("ascii").translate(_TO_STANDARD) + b"==")

"""Signed assertions of service accounts (RFC 7523 section 3, `private_key_jwt`).

They are written by any JOSE library, so the parser is wider than that of our own access tokens; what it does not know
is refused all the same where ignoring it could be harmful. Order: length, shape, header, key, signature, claims.
"""

from __future__ import annotations

import binascii
import hashlib
import json
import re
from base64 import urlsafe_b64decode
from dataclasses import dataclass
from typing import Any, Never

from identity_client.tokens import compact
from identity_client.tokens.keys import PublicKey

from .grants import UsedAssertion
from .refusals import Cause, Rejected

MAXIMUM_LIFETIME_SECONDS = 300
MAXIMUM_JTI = 128

_SHAPE = re.compile(r"([A-Za-z0-9_-]+)\.([A-Za-z0-9_-]+)\.([A-Za-z0-9_-]{86})")
_TYPES = (None, "JWT", "client-authentication+jwt")  # compared, not hashed: the header may say anything
_KEY_ID = re.compile(r"[A-Za-z0-9_-]{43}")
_HEADER_NAMES = frozenset({"alg", "kid", "typ"})
_TIME_LIMIT = 2**53


@dataclass(frozen=True, slots=True)
class Assertion:
    """An assertion taken apart; nothing in it is proved yet."""

    key_id: str
    signing_input: bytes
    signature: bytes
    claims: dict[str, Any]


def parse_assertion(raw_assertion: str) -> Assertion:
    """Take the text apart. Raises Rejected: ASSERTION_MALFORMED, ASSERTION_KEY_UNKNOWN (no thumbprint)."""
    shape = _SHAPE.fullmatch(raw_assertion) if len(raw_assertion) <= compact.MAXIMUM_BYTES else None
    if shape is None:
        raise Rejected(Cause.ASSERTION_MALFORMED)
    header, claims = _json_object(shape[1]), _json_object(shape[2])
    key_id = header.get("kid")
    if header.keys() - _HEADER_NAMES or header.get("alg") != "ES256" or header.get("typ") not in _TYPES:
        raise Rejected(Cause.ASSERTION_MALFORMED)  # crit, b64, jwk and the like: never to be ignored
    if type(key_id) is not str or not _KEY_ID.fullmatch(key_id):
        raise Rejected(Cause.ASSERTION_KEY_UNKNOWN)
    return Assertion(key_id, raw_assertion[: shape.end(2)].encode("ascii"), _decoded(shape[3]), claims)


def check_assertion(
    assertion: Assertion, key: PublicKey, client_id: str, audience: str, now: float, leeway: int
) -> UsedAssertion:
    """Prove it for the account *client_id* whose *key* it names; -> what keeps it from being used again.

    *audience* is this issuer's name. Raises Rejected with the cause.
    """
    if not compact.verify_es256(key, assertion.signing_input, assertion.signature):
        raise Rejected(Cause.ASSERTION_SIGNATURE_WRONG)
    claims = assertion.claims
    if claims.get("iss") != client_id or claims.get("sub") != client_id:
        raise Rejected(Cause.ASSERTION_ISSUER_WRONG)
    if claims.get("aud") not in (audience, [audience]):
        raise Rejected(Cause.ASSERTION_AUDIENCE_WRONG)
    expire_time = _check_times(claims, now, leeway)
    token_id = claims.get("jti")
    if type(token_id) is not str or not 1 <= len(token_id) <= MAXIMUM_JTI:
        raise Rejected(Cause.ASSERTION_MALFORMED)
    return UsedAssertion(hashlib.sha256(token_id.encode("utf-8", "surrogatepass")).digest(), expire_time + leeway)


def _check_times(claims: dict[str, Any], now: float, leeway: int) -> int:
    expire_time = _time(claims, "exp")
    if now >= expire_time + leeway:
        raise Rejected(Cause.ASSERTION_EXPIRED)
    for name in ("iat", "nbf"):
        if name in claims and _time(claims, name) > now + leeway:
            raise Rejected(Cause.ASSERTION_NOT_YET_VALID)
    issue_time = _time(claims, "iat") if "iat" in claims else int(now)
    if expire_time - issue_time > MAXIMUM_LIFETIME_SECONDS:
        raise Rejected(Cause.ASSERTION_LIVES_TOO_LONG)
    return expire_time


def _time(claims: dict[str, Any], name: str) -> int:
    value = claims.get(name)
    if type(value) is float and 0 < value < _TIME_LIMIT:
        value = int(value)  # RFC 7519 section 2 lets a NumericDate have a fraction, and time.time() has one
    if type(value) is not int or not 0 < value < _TIME_LIMIT:
        raise Rejected(Cause.ASSERTION_MALFORMED)
    return value


def _json_object(segment: str) -> dict[str, Any]:
    try:
        value = json.loads(
            _decoded(segment).decode("utf-8"), object_pairs_hook=_without_duplicates, parse_constant=_refuse
        )
    except (ValueError, RecursionError):
        raise Rejected(Cause.ASSERTION_MALFORMED) from None
    if type(value) is not dict:
        raise Rejected(Cause.ASSERTION_MALFORMED)
    return value


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise ValueError("a name stands twice")
    return members


def _refuse(name: str) -> Never:
    raise ValueError(f"{name} is no JSON number")


def _decoded(segment: str) -> bytes:
    try:
        return urlsafe_b64decode(segment + "=" * (-len(segment) % 4))
    except binascii.Error:
        raise Rejected(Cause.ASSERTION_MALFORMED) from None

"""From a payload to Claims: each claim by its exact type and grammar, unknown ones ignored.

Most tokens have the usual claims in the order in which we write them, and one pattern proves all of that at once. It
takes a part of what the general way takes, and reads it alike: it only saves time (tests/unit/test_payload.py).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from identity_client.errors import TokenMalformed
from identity_client.tokens import compact
from identity_client.tokens.claims import Claims

MAXIMUM_ITEMS = 64
MAXIMUM_ACTORS = 4

_TIME_LIMIT = 2**53  # what every JSON reader holds exactly (RFC 7493 section 2.2)
_NAME = re.compile(r"[!-~]{1,128}")
_ISSUER = re.compile(r"[!-~]{1,512}")
_ID = re.compile(r"[A-Za-z0-9_-]{21}[AQgw]")  # 16 bytes as canonical base64url
_ROLE = re.compile(r"[a-z][a-z0-9._-]{0,63}")
_METHOD = re.compile(r"[a-z]{1,16}")
_SCOPE = re.compile(r"[!#-\[\]-~]{1,64}(?: [!#-\[\]-~]{1,64}){0,63}")  # RFC 6749 section 3.3

_THUMBPRINT = re.compile(r"[A-Za-z0-9_-]{42}[AEIMQUYcgkosw048]")  # 32 bytes as canonical base64url

_PLAIN_NAME = r"([!#-\[\]-~]{1,128})"  # without the two characters that JSON escapes
_NUMBER = r"([1-9][0-9]{0,14})"
_USUAL_ID = rf'"({_ID.pattern})"'
_USUAL = re.compile(
    rf'\{{"iss":"([!#-\[\]-~]{{1,512}})","sub":"{_PLAIN_NAME}","aud":"{_PLAIN_NAME}"'
    rf',"exp":{_NUMBER},"iat":{_NUMBER},"jti":{_USUAL_ID},"client_id":"{_PLAIN_NAME}"'
    rf',"sid":{_USUAL_ID},"gen":{_NUMBER},"pol":{_NUMBER}'
    rf'(?:,"scope":"({_SCOPE.pattern})")?'
    rf'(?:,"roles":\["({_ROLE.pattern}(?:","{_ROLE.pattern}){{0,63}})"\])?'
    rf'(?:,"auth_time":{_NUMBER})?'
    rf'(?:,"amr":\["({_METHOD.pattern}(?:","{_METHOD.pattern}){{0,63}})"\])?\}}'
)

_NOT_ISSUED = frozenset({"nbf"})
"""A claim that restricts a token. We issue none, and a verifier must never ignore one."""


def claims_of(payload: bytes, key_id: str) -> Claims:
    """The claims of a payload. Raises TokenMalformed: it is not what our issuer writes."""
    usual = _USUAL.fullmatch(payload.decode("latin-1"))
    if usual is None:
        return read_claims(compact.parse_payload(payload), key_id)
    issuer, account, audience, exp, iat, jti, client, sid, gen, pol, scope, roles, auth_time, methods = usual.groups()
    return Claims(
        issuer,
        account,
        audience,
        int(exp),
        int(iat),
        jti,
        client,
        sid,
        int(gen),
        int(pol),
        key_id,
        tuple(scope.split(" ")) if scope else (),
        tuple(roles.split('","')) if roles else (),
        int(auth_time) if auth_time else None,
        tuple(methods.split('","')) if methods else (),
    )


def read_claims(members: dict[str, Any], key_id: str) -> Claims:
    """Raises TokenMalformed: a claim that is missing, of another type or outside its grammar."""
    if not _NOT_ISSUED.isdisjoint(members):
        raise TokenMalformed()
    try:
        return Claims(
            issuer=_text(members["iss"], _ISSUER),
            account_id=_text(members["sub"], _NAME),
            audience=_text(members["aud"], _NAME),
            expire_time=_whole(members["exp"]),
            issue_time=_whole(members["iat"]),
            token_id=_text(members["jti"], _ID),
            client_id=_text(members["client_id"], _NAME),
            grant_id=_text(members["sid"], _ID),
            generation=_whole(members["gen"]),
            policy_version=_whole(members["pol"]),
            key_id=key_id,
            scopes=tuple(_text(members["scope"], _SCOPE).split(" ")) if "scope" in members else (),
            roles=_texts(members["roles"], _ROLE) if "roles" in members else (),
            authentication_time=_whole(members["auth_time"]) if "auth_time" in members else None,
            authentication_methods=_texts(members["amr"], _METHOD) if "amr" in members else (),
            certificate_thumbprint=_thumbprint(members["cnf"]) if "cnf" in members else "",
            actors=tuple(_actors(members["act"])) if "act" in members else (),
            is_limited=_true(members["lim"]) if "lim" in members else False,
        )
    except KeyError:
        raise TokenMalformed() from None


def _text(value: object, grammar: re.Pattern[str]) -> str:
    if type(value) is not str or grammar.fullmatch(value) is None:
        raise TokenMalformed()
    return value


def _texts(value: object, grammar: re.Pattern[str]) -> tuple[str, ...]:
    if type(value) is not list or not 1 <= len(value) <= MAXIMUM_ITEMS:
        raise TokenMalformed()
    return tuple(_text(item, grammar) for item in value)


def _thumbprint(value: object) -> str:
    """The one confirmation that we issue (RFC 8705 section 3.1): a token bound in another way is not ours."""
    if type(value) is not dict or value.keys() != {"x5t#S256"}:
        raise TokenMalformed()
    return _text(value["x5t#S256"], _THUMBPRINT)


def _true(value: object) -> bool:
    if value is not True:
        raise TokenMalformed()
    return True


def _actors(value: object) -> Iterator[str]:
    """Each actor holds the one before it (RFC 8693 section 4.1)."""
    for _ in range(MAXIMUM_ACTORS):
        if type(value) is not dict or not {"sub"} <= value.keys() <= {"sub", "act"}:
            raise TokenMalformed()
        yield _text(value["sub"], _NAME)
        if "act" not in value:
            return
        value = value["act"]
    raise TokenMalformed()


def _whole(value: object) -> int:
    # type() and not isinstance(): True is an int in Python, and no JSON number (RFC 7519 section 2).
    if type(value) is not int or not 0 < value < _TIME_LIMIT:
        raise TokenMalformed()
    return value

"""Messages to values and back. What a field must look like is said here when the shape alone decides it."""

from __future__ import annotations

import binascii
from collections.abc import Sequence
from typing import Literal, Protocol

from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.timestamp_pb2 import Timestamp

from identity.domain.introspect import Active
from identity.domain.minting import Issued, OpenedSession
from identity.domain.texts import check_text
from identity.domain.values import Account, AccountKind, AccountRef, Standing, TokenIdentity
from identity.v1 import account_pb2, authentication_pb2, token_pb2, trust_pb2
from identity_client.errors import InvalidRequest
from identity_client.principal import BearerKind
from identity_client.tokens.claims import NO_END
from identity_client.trust.entries import id_bytes, id_text

MAXIMUM_TEXT_BYTES = 4096
MAXIMUM_NAME = 128
MAXIMUM_SCOPES = 64
MAXIMUM_ROLES = 64
MAXIMUM_NOTE_CHARACTERS = 256
MAXIMUM_CHECKED_TOKENS = 100

_KINDS = {AccountKind.USER: account_pb2.ACCOUNT_KIND_USER, AccountKind.SERVICE: account_pb2.ACCOUNT_KIND_SERVICE}
_STANDINGS = {
    Standing.LIVE: trust_pb2.TOKEN_STANDING_LIVE,
    Standing.REVOKED: trust_pb2.TOKEN_STANDING_REVOKED,
    Standing.OUTDATED: trust_pb2.TOKEN_STANDING_OUTDATED,
}
_BEARERS = {
    BearerKind.ACCESS_TOKEN: token_pb2.TOKEN_KIND_ACCESS_TOKEN,
    BearerKind.SESSION: token_pb2.TOKEN_KIND_SESSION,
    BearerKind.API_KEY: token_pb2.TOKEN_KIND_API_KEY,
}


class _NamesAccount(Protocol):
    account_id: str
    username: str

    def WhichOneof(self, oneof_group: Literal["account"]) -> Literal["account_id", "username"] | None: ...


def timestamp(seconds: int) -> Timestamp:
    """Unix seconds as a Timestamp."""
    return Timestamp(seconds=seconds)


def account_ref(request: _NamesAccount, prefix: str = "") -> AccountRef:
    """The account that a request names; *prefix* leads to the part that does. Raises InvalidRequest."""
    match request.WhichOneof("account"):
        case "account_id":
            return AccountRef(account_id=checked_id(request.account_id, f"{prefix}account_id"))
        case "username":
            return AccountRef(username=request.username)
        case _:
            raise InvalidRequest("name the account by account_id or by username", f"{prefix}account")


def checked_id(text: str, field: str) -> str:
    """An id as we write them: 22 characters of base64url. Raises InvalidRequest."""
    try:
        is_canonical = len(text) == 22 and text.isascii() and id_text(id_bytes(text)) == text
    except binascii.Error:
        is_canonical = False
    if not is_canonical:
        raise InvalidRequest("an id has 22 characters of base64url", field)
    return text


def presented(text: str, field: str) -> str:
    """A token or secret that is present and not absurdly long. Raises InvalidRequest."""
    if not text:
        raise InvalidRequest("this field is needed", field)
    if len(text) > MAXIMUM_TEXT_BYTES:
        raise InvalidRequest(f"at most {MAXIMUM_TEXT_BYTES:,} characters", field)
    return text


def presented_batch(texts: Sequence[str]) -> list[str]:
    """1-100 of them. Raises InvalidRequest."""
    if not 1 <= len(texts) <= MAXIMUM_CHECKED_TOKENS:
        raise InvalidRequest(f"give 1 to {MAXIMUM_CHECKED_TOKENS} tokens in one call", "tokens")
    return [presented(text, f"tokens[{at}]") for at, text in enumerate(texts)]


def note(text: str) -> str:
    """An administrator's reason, for the audit log. Raises InvalidRequest."""
    return check_text(text, MAXIMUM_NOTE_CHARACTERS, "reason")


def mask(message: FieldMask, changeable: Sequence[str]) -> frozenset[str]:
    """What an update is to change: at least one path, each of *changeable*. Raises InvalidRequest."""
    paths = frozenset(message.paths)
    if not paths or not paths.issubset(changeable):
        raise InvalidRequest(f"name what is to change: {', '.join(changeable)}", "update_mask")
    return paths


def scopes(texts: Sequence[str]) -> tuple[str, ...]:
    """Requested scopes, each once, in the caller's order. Raises InvalidRequest."""
    if len(texts) > MAXIMUM_SCOPES or any(len(text) > 64 for text in texts):
        raise InvalidRequest(f"at most {MAXIMUM_SCOPES} scopes of at most 64 characters", "scopes")
    return tuple(dict.fromkeys(texts))


def account(value: Account) -> account_pb2.Account:
    """An account."""
    message = account_pb2.Account(
        account_id=value.account_id,
        kind=_KINDS[value.kind],
        username=value.username,
        roles=value.roles,
        generation=value.generation,
        create_time=timestamp(value.create_time),
        update_time=timestamp(value.update_time),
        password_change_required=value.password_change_required,
    )
    if value.disable_time is not None:
        message.disable_time.CopyFrom(timestamp(value.disable_time))
    return message


def access_grant(issued: Issued) -> authentication_pb2.AccessGrant:
    """An access token alone."""
    return authentication_pb2.AccessGrant(
        access_token=issued.access.text,
        access_token_expire_time=timestamp(issued.access.expire_time),
        grant_id=issued.snapshot.grant_id,
        scopes=issued.snapshot.scopes,
    )


def token_set(issued: Issued) -> authentication_pb2.TokenSet:
    """An access token and its refresh token."""
    return authentication_pb2.TokenSet(
        access_token=issued.access.text,
        access_token_expire_time=timestamp(issued.access.expire_time),
        refresh_token=issued.refresh_text or "",
        refresh_token_expire_time=timestamp(issued.snapshot.idle_expire_time or 0),
        session_id=issued.snapshot.grant_id,
        scopes=issued.snapshot.scopes,
    )


def session_grant(opened: OpenedSession) -> authentication_pb2.SessionGrant:
    """A session token."""
    snapshot = opened.snapshot
    return authentication_pb2.SessionGrant(
        session_token=opened.session_text,
        session_id=snapshot.grant_id,
        idle_expire_time=timestamp(snapshot.idle_expire_time or 0),
        absolute_expire_time=timestamp(snapshot.absolute_expire_time or 0),
        audiences=opened.audiences,
        scopes=snapshot.scopes,
    )


def introspection(active: Active | None) -> token_pb2.IntrospectResponse:
    """What may be said of a token: everything, or that it is not active."""
    if active is None:
        return token_pb2.IntrospectResponse()
    claims = active.claims
    message = token_pb2.IntrospectResponse(
        active=True,
        token_id=claims.token_id,
        grant_id=claims.grant_id,
        account_id=claims.account_id,
        client_id=claims.client_id,
        audience=claims.audience,
        scopes=claims.scopes,
        roles=claims.roles,
        issue_time=timestamp(claims.issue_time),
        kind=_BEARERS[active.kind],
        generation=claims.generation,
        policy_version=claims.policy_version,
        authentication_methods=claims.authentication_methods,
        certificate_thumbprint=claims.certificate_thumbprint,
        key_id=claims.key_id,
        actors=claims.actors,
        limited=claims.is_limited,
    )
    if claims.expire_time != NO_END:
        message.expire_time.CopyFrom(timestamp(claims.expire_time))
    if claims.authentication_time is not None:
        message.authentication_time.CopyFrom(timestamp(claims.authentication_time))
    return message


def token_identities(request: trust_pb2.CheckRevocationRequest) -> list[TokenIdentity]:
    """The tokens to judge. Raises InvalidRequest."""
    if not 1 <= len(request.tokens) <= MAXIMUM_CHECKED_TOKENS:
        raise InvalidRequest(f"name 1 to {MAXIMUM_CHECKED_TOKENS} tokens in one call", "tokens")
    return [_token_identity(message, f"tokens[{at}]") for at, message in enumerate(request.tokens)]


def _token_identity(message: trust_pb2.TokenIdentity, field: str) -> TokenIdentity:
    if message.generation < 0 or message.policy_version < 0 or len(message.key_id) > 64:
        raise InvalidRequest("generation and policy_version are not negative, key_id has at most 64 characters", field)
    if len(message.roles) > MAXIMUM_ROLES or any(len(role) > 64 for role in message.roles):
        raise InvalidRequest(f"at most {MAXIMUM_ROLES} roles of at most 64 characters", f"{field}.roles")
    return TokenIdentity(
        token_id=checked_id(message.token_id, f"{field}.token_id"),
        grant_id=checked_id(message.grant_id, f"{field}.grant_id"),
        account_id=checked_id(message.account_id, f"{field}.account_id"),
        generation=message.generation,
        policy_version=message.policy_version,
        key_id=message.key_id,
        roles=tuple(message.roles),
    )


def standings(values: Sequence[Standing]) -> trust_pb2.CheckRevocationResponse:
    """One standing for each token asked about."""
    return trust_pb2.CheckRevocationResponse(standings=[_STANDINGS[value] for value in values])

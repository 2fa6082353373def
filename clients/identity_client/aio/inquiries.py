"""What a peer asks the identity service about tokens that it was shown, and about the keys that signed them."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import TypeVar

import grpc
import grpc.aio

from identity.v1 import token_pb2
from identity.v1 import trust_pb2 as pb
from identity_client import status
from identity_client.aio.endpoints import Endpoint, Endpoints
from identity_client.aio.token_source import AccessToken, TokenSource
from identity_client.errors import DependencyDown, IdentityError, RetryLater, TokenError, TokenOutdated, TokenRevoked
from identity_client.principal import Principal
from identity_client.tokens.claims import NO_END, Claims
from identity_client.tokens.keys import PublicKey
from identity_client.tokens.opaque import Kind
from identity_client.trust import wire

_CALL_SECONDS = 5.0
_TOKEN_KINDS = {Kind.SESSION.value: token_pb2.TOKEN_KIND_SESSION, Kind.API_KEY.value: token_pb2.TOKEN_KIND_API_KEY}
_NOT_CONFIRMED = "The identity service did not confirm the token: repeat the call later."
_Response = TypeVar("_Response")

_log = logging.getLogger(__name__)


class Inquiries:
    """Asks with our own token. No answer is DependencyDown: whatever is wrong between the service and us, the caller's
    token is not to blame."""

    def __init__(self, endpoints: Endpoints, tokens: TokenSource) -> None:
        self._endpoints = endpoints
        self._tokens = tokens

    async def confirm(self, principal: Principal) -> None:
        """Whether the grant behind *principal* is live by the database. Raises TokenRevoked, TokenOutdated,
        DependencyDown."""
        request = pb.CheckRevocationRequest(tokens=[_token_identity(principal)])
        response = await self._ask(
            lambda at, own: at.trust.CheckRevocation(request, metadata=own.metadata, timeout=_CALL_SECONDS)
        )
        standing = response.standings[0] if len(response.standings) == 1 else pb.TOKEN_STANDING_UNSPECIFIED
        if standing == pb.TOKEN_STANDING_REVOKED:
            raise TokenRevoked
        if standing == pb.TOKEN_STANDING_OUTDATED:
            raise TokenOutdated
        if standing != pb.TOKEN_STANDING_LIVE:
            raise DependencyDown("The identity service gave no standing for the token: repeat the call later.")

    async def look(self, raw_token: str, issuer: str) -> Claims | None:
        """What an opaque text stands for, None if it is not active. Raises DependencyDown."""
        request = token_pb2.IntrospectRequest(token=raw_token)
        response = await self._ask(
            lambda at, own: at.tokens.Introspect(request, metadata=own.metadata, timeout=_CALL_SECONDS)
        )
        if not response.active:
            return None
        if response.kind != _TOKEN_KINDS[raw_token[:4]]:
            raise DependencyDown("The identity service took the token for one of another kind: repeat the call later.")
        return _introspected(response, issuer)

    async def keys(self) -> tuple[str, list[PublicKey]] | None:
        """Issuer and keys; None, and a line in the log, if they cannot be had."""
        try:
            response = await self._endpoints.call(
                lambda at: at.trust.GetKeys(pb.GetKeysRequest(), timeout=_CALL_SECONDS)
            )
            return wire.keys_from_message(response.key_set)
        except (grpc.aio.AioRpcError, ValueError) as error:
            _log.warning("the keys could not be fetched; those held are kept: %s", type(error).__name__)
            return None

    async def _ask(self, rpc: Callable[[Endpoint, AccessToken], Awaitable[_Response]]) -> _Response:
        try:
            token = await self._tokens.get()
        except IdentityError as error:
            raise DependencyDown(_NOT_CONFIRMED) from error
        try:
            return await self._endpoints.call(lambda at: rpc(at, token))
        except grpc.aio.AioRpcError as error:
            refusal = status.from_rpc_error(error)
            if isinstance(refusal, TokenError):
                self._tokens.discard(token)
            if not isinstance(refusal, RetryLater):
                _log.warning("the identity service refused to judge a token for us: %s", refusal.reason)
            raise DependencyDown(_NOT_CONFIRMED) from error


def _introspected(response: token_pb2.IntrospectResponse, issuer: str) -> Claims:
    has_person = response.HasField("authentication_time")
    return Claims(
        issuer=issuer,
        account_id=response.account_id,
        audience=response.audience,
        expire_time=response.expire_time.seconds if response.HasField("expire_time") else NO_END,
        issue_time=response.issue_time.seconds,
        token_id=response.token_id,
        client_id=response.client_id,
        grant_id=response.grant_id,
        generation=response.generation,
        policy_version=response.policy_version,
        key_id=response.key_id,
        scopes=tuple(response.scopes),
        roles=tuple(response.roles),
        authentication_time=response.authentication_time.seconds if has_person else None,
        authentication_methods=tuple(response.authentication_methods),
        certificate_thumbprint=response.certificate_thumbprint,
        actors=tuple(response.actors),
        is_limited=response.limited,
    )


def _token_identity(principal: Principal) -> pb.TokenIdentity:
    claims = principal.claims
    return pb.TokenIdentity(
        token_id=claims.token_id,
        grant_id=claims.grant_id,
        account_id=claims.account_id,
        generation=claims.generation,
        policy_version=claims.policy_version,
        key_id=claims.key_id,
        roles=claims.roles,
    )

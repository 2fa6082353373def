"""AuthenticationService over the Authenticator."""

from __future__ import annotations

from typing import Any

import grpc

from identity.domain.authenticate import Authenticator, Wanted
from identity.domain.minting import Issued
from identity.v1 import authentication_pb2, authentication_pb2_grpc
from identity_client.errors import InvalidRequest

from . import convert
from .context import act_of_anyone

_GRANT_TYPES = frozenset(authentication_pb2.GrantType.values())


class AuthenticationServicer(authentication_pb2_grpc.AuthenticationServiceServicer):
    """Turns a credential into tokens."""

    def __init__(self, authenticator: Authenticator) -> None:
        self._authenticator = authenticator

    async def Authenticate(
        self, request: authentication_pb2.AuthenticateRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> authentication_pb2.AuthenticateResponse:
        kind = request.WhichOneof("credential")
        wanted = _wanted(request, is_person=kind == "password")
        act = act_of_anyone(context)
        match kind:
            case "password":
                person = request.password
                issued = await self._authenticator.by_password(person.username, person.password, wanted, act)
            case "client_secret":
                client = request.client_secret
                raw_secret = convert.presented(client.client_secret, "client_secret.client_secret")
                issued = await self._authenticator.by_client_secret(client.client_id, raw_secret, wanted, act)
            case _:
                raise InvalidRequest("give exactly one of password and client_secret", "credential")
        return _response(issued)


def _wanted(request: authentication_pb2.AuthenticateRequest, is_person: bool) -> Wanted:
    grant_type = request.grant_type
    if grant_type not in _GRANT_TYPES:
        raise InvalidRequest("use GRANT_TYPE_TOKENS or GRANT_TYPE_ACCESS_TOKEN", "grant_type")
    if grant_type == authentication_pb2.GRANT_TYPE_TOKENS and not is_person:
        raise InvalidRequest("a client secret gives access tokens only", "grant_type")
    if len(request.audience) > 128:
        raise InvalidRequest("at most 128 characters", "audience")
    with_refresh = is_person and grant_type != authentication_pb2.GRANT_TYPE_ACCESS_TOKEN
    return Wanted(request.audience, convert.scopes(request.scopes), with_refresh)


def _response(issued: Issued) -> authentication_pb2.AuthenticateResponse:
    if issued.refresh_text is None:
        return authentication_pb2.AuthenticateResponse(access=convert.access_grant(issued))
    return authentication_pb2.AuthenticateResponse(tokens=convert.token_set(issued))

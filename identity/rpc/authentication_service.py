"""AuthenticationService over the Authenticator and the MachineAuthenticator."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import grpc

from identity.domain.authenticate import Authenticator, ChangeRequired
from identity.domain.machines import MachineAuthenticator
from identity.domain.minting import Issued, OpenedSession
from identity.domain.values import Act
from identity.domain.wanted import MAXIMUM_AUDIENCES, Form, Wanted
from identity.v1 import authentication_pb2 as pb
from identity.v1 import authentication_pb2_grpc
from identity_client.errors import InvalidRequest

from . import convert
from .context import act_of_anyone, certificate_chain
from .observing import CallMeter, counted_login

_Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
_Request: TypeAlias = "pb.AuthenticateRequest | pb.ChangePasswordRequest"

_FORMS = {
    pb.GRANT_TYPE_UNSPECIFIED: Form.TOKENS,
    pb.GRANT_TYPE_TOKENS: Form.TOKENS,
    pb.GRANT_TYPE_ACCESS_TOKEN: Form.ACCESS_TOKEN,
    pb.GRANT_TYPE_SESSION: Form.SESSION,
}


class AuthenticationServicer(authentication_pb2_grpc.AuthenticationServiceServicer):
    """Turns a credential into tokens."""

    def __init__(self, people: Authenticator, machines: MachineAuthenticator, meter: CallMeter) -> None:
        self._people = people
        self._machines = machines
        self._meter = meter

    async def Authenticate(self, request: pb.AuthenticateRequest, context: _Context) -> pb.AuthenticateResponse:
        with counted_login(self._meter, request.WhichOneof("credential") or "none"):
            return await self._authenticate(request, context)

    async def _authenticate(self, request: pb.AuthenticateRequest, context: _Context) -> pb.AuthenticateResponse:
        act = act_of_anyone(context, request.client_info)
        if request.WhichOneof("credential") == "password":
            person, wanted = request.password, _wanted(request)
            return _response(await self._people.by_password(person.username, person.password, wanted, act))
        issued = await self._by_machine(request, _wanted_by_machine(request), context, act)
        return pb.AuthenticateResponse(access=convert.access_grant(issued))

    async def ChangePassword(self, request: pb.ChangePasswordRequest, context: _Context) -> pb.ChangePasswordResponse:
        changed = await self._people.change_password(
            request.username,
            request.current_password,
            request.new_password,
            _wanted(request),
            act_of_anyone(context, request.client_info),
        )
        if isinstance(changed, OpenedSession):
            return pb.ChangePasswordResponse(session=convert.session_grant(changed))
        if changed.refresh_text is None:
            return pb.ChangePasswordResponse(access=convert.access_grant(changed))
        return pb.ChangePasswordResponse(tokens=convert.token_set(changed))

    async def _by_machine(self, request: pb.AuthenticateRequest, wanted: Wanted, context: _Context, act: Act) -> Issued:
        match request.WhichOneof("credential"):
            case "client_secret":
                client = request.client_secret
                raw_secret = convert.presented(client.client_secret, "client_secret.client_secret")
                return await self._machines.by_client_secret(client.client_id, raw_secret, wanted, act)
            case "api_key":
                raw_key = convert.presented(request.api_key.api_key, "api_key.api_key")
                return await self._machines.by_api_key(raw_key, wanted, act)
            case "client_assertion":
                raw = convert.presented(request.client_assertion.assertion, "client_assertion.assertion")
                return await self._machines.by_assertion(raw, wanted, act)
            case "certificate":
                return await self._machines.by_certificate(certificate_chain(context), wanted, act)
            case _:
                raise InvalidRequest(
                    "give exactly one of password, client_secret, api_key, client_assertion and certificate",
                    "credential",
                )


def _wanted(request: _Request) -> Wanted:
    form = _FORMS.get(request.grant_type)
    if form is None:
        raise InvalidRequest(f"use one of {', '.join(pb.GrantType.keys()[1:])}", "grant_type")
    if request.audiences and form is not Form.SESSION:
        raise InvalidRequest("this is for GRANT_TYPE_SESSION: a token has one audience", "audiences")
    return Wanted(_audiences(request.audience, request.audiences), convert.scopes(request.scopes), form)


def _wanted_by_machine(request: pb.AuthenticateRequest) -> Wanted:
    if request.grant_type not in (pb.GRANT_TYPE_UNSPECIFIED, pb.GRANT_TYPE_ACCESS_TOKEN):
        raise InvalidRequest("a machine's credential gives access tokens only", "grant_type")
    if request.audiences:
        raise InvalidRequest("this is for GRANT_TYPE_SESSION: a token has one audience", "audiences")
    return Wanted(_audiences(request.audience, ()), convert.scopes(request.scopes), Form.ACCESS_TOKEN)


def _audiences(audience: str, audiences: Sequence[str]) -> tuple[str, ...]:
    if audience and audiences:
        raise InvalidRequest("give audience or audiences, not both", "audiences")
    if len(audiences) > MAXIMUM_AUDIENCES or any(len(name) > convert.MAXIMUM_NAME for name in (audience, *audiences)):
        raise InvalidRequest(
            f"at most {MAXIMUM_AUDIENCES} names of at most {convert.MAXIMUM_NAME} characters", "audience"
        )
    return (audience,) if audience else tuple(audiences)


def _response(result: Issued | OpenedSession | ChangeRequired) -> pb.AuthenticateResponse:
    match result:
        case OpenedSession():
            return pb.AuthenticateResponse(session=convert.session_grant(result))
        case ChangeRequired():
            return pb.AuthenticateResponse(challenge=pb.Challenge(kind=pb.CHALLENGE_KIND_PASSWORD_CHANGE))
        case Issued(refresh_text=None):
            return pb.AuthenticateResponse(access=convert.access_grant(result))
        case _:
            return pb.AuthenticateResponse(tokens=convert.token_set(result))

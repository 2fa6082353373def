"""What servicers need to know of the call at hand: its id, where it comes from, and who calls."""

from __future__ import annotations

import ipaddress
from dataclasses import replace
from typing import Any, TypeAlias

import grpc

from identity.domain.once import RequestIds
from identity.domain.texts import check_text
from identity.domain.values import Act, Caller
from identity.logs import request_id
from identity.v1 import authentication_pb2
from identity_client.errors import InvalidRequest, PermissionMissing
from identity_client.principal import Principal, current_principal, find_principal

MAXIMUM_USER_AGENT = 256

FORWARD_SCOPE = "identity.forward"

_ServicerContext: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"


def act_of_anyone(context: _ServicerContext, client_info: authentication_pb2.ClientInfo | None = None) -> Act:
    """An act by whoever holds the credential in the request, at the place that *client_info* says or the call's own.

    Raises PermissionMissing (who calls may not say where others are), InvalidRequest.
    """
    info = client_info or authentication_pb2.ClientInfo()
    place = _forwarded(info.ip_address) if info.ip_address else origin(context)
    agent = check_text(info.user_agent, MAXIMUM_USER_AGENT, "client_info.user_agent") or _user_agent(context)
    return Act(request_id.get(), place, user_agent=agent)


def act_of_admin(context: _ServicerContext) -> Act:
    """An act by the authenticated caller; the store confirms the caller in the act's own transaction."""
    return _act_of_caller(context, "identity.admin")


def act_of_creator(context: _ServicerContext, request: Any, request_ids: RequestIds) -> Act:
    """The same, once however often *request*, which has a request_id, is sent. Raises InvalidRequest."""
    content = type(request)()
    content.CopyFrom(request)
    content.ClearField("request_id")
    once = request_ids.read(request.request_id, request.DESCRIPTOR.name, content.SerializeToString(deterministic=True))
    return replace(act_of_admin(context), once=once)


def act_of_self(context: _ServicerContext) -> Act:
    """An act by the authenticated caller on their own account; confirmed likewise."""
    return _act_of_caller(context, "")


def act_of_refused(context: _ServicerContext, account_id: str, grant_id: str) -> Act:
    """An act that was refused to the account, which called with the grant, whatever it was."""
    caller = Caller(account_id=account_id, grant_id=grant_id, token_id="", generation=0, required_scope="")
    return Act(request_id.get(), origin(context), caller, _user_agent(context))


def origin(context: _ServicerContext) -> str:
    """The caller's address without its port: 127.0.0.1, 2001:db8::1, unix, or empty."""
    kind, _, address = context.peer().partition(":")
    match kind:
        case "ipv4":
            return address.rpartition(":")[0]
        case "ipv6":
            return address.rpartition(":")[0].replace("%5B", "").replace("%5D", "").strip("[]")
        case _:
            return kind


def certificate_chain(context: _ServicerContext) -> bytes | None:
    """What the connection showed as its client certificate, PEM, the certificate first; None for none."""
    shown = context.auth_context()
    for name in ("x509_pem_cert_chain", "x509_pem_cert"):
        for value in shown.get(name, ()):
            return bytes(value)
    return None


def _act_of_caller(context: _ServicerContext, required_scope: str) -> Act:
    caller = _caller(current_principal(), required_scope)
    return Act(request_id.get(), origin(context), caller, _user_agent(context))


def _caller(principal: Principal, required_scope: str) -> Caller:
    return Caller(
        account_id=principal.account_id,
        grant_id=principal.grant_id,
        token_id=principal.token_id,
        generation=principal.generation,
        required_scope=required_scope,
    )


def _forwarded(ip_address: str) -> str:
    principal = find_principal()
    if principal is None or FORWARD_SCOPE not in principal.scopes:
        raise PermissionMissing(f"client_info.ip_address is taken from callers with the scope {FORWARD_SCOPE} alone.")
    try:
        if "%" in ip_address:
            raise ValueError("a zone is any text, and means something on one machine alone")
        return str(ipaddress.ip_address(ip_address))
    except ValueError:
        raise InvalidRequest("an IPv4 or IPv6 address", "client_info.ip_address") from None


def _user_agent(context: _ServicerContext) -> str:
    for key, value in context.invocation_metadata() or ():
        if key == "user-agent" and isinstance(value, str) and value.isprintable():
            return value[:MAXIMUM_USER_AGENT]
    return ""

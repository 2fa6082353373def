"""What servicers need to know of the call at hand."""

from __future__ import annotations

import contextvars
from typing import Any, TypeAlias

import grpc

from identity.domain.values import Act, Caller
from identity_client.principal import current_principal

request_id: contextvars.ContextVar[str] = contextvars.ContextVar("request_id", default="")
"""The id of the call being served; in every log line and audit row of it."""

_ServicerContext: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"


def act_of_anyone(context: _ServicerContext) -> Act:
    """An act by whoever holds the credential in the request."""
    return Act(request_id.get(), origin(context))


def act_of_admin(context: _ServicerContext) -> Act:
    """An act by the authenticated caller; the store confirms the caller in the act's own transaction."""
    principal = current_principal()
    caller = Caller(
        account_id=principal.account_id,
        grant_id=principal.grant_id,
        token_id=principal.token_id,
        generation=principal.generation,
        required_scope="identity.admin",
    )
    return Act(request_id.get(), origin(context), caller)


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

"""Errors on the wire: canonical status, a message for people, and google.rpc details for programs."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2

from identity_client.errors import (
    BY_REASON,
    ERROR_DOMAIN,
    DependencyDown,
    IdentityError,
    Internal,
    InvalidRequest,
    NotFound,
    PermissionMissing,
    RetryLater,
    SecretAlreadyShown,
    StateConflict,
    Unauthenticated,
)

if TYPE_CHECKING:
    import grpc
    from grpc.aio import AioRpcError

STATUS_DETAILS_KEY = "grpc-status-details-bin"

_CODES = {
    "UNKNOWN": 2,
    "INVALID_ARGUMENT": 3,
    "DEADLINE_EXCEEDED": 4,
    "NOT_FOUND": 5,
    "ALREADY_EXISTS": 6,
    "PERMISSION_DENIED": 7,
    "RESOURCE_EXHAUSTED": 8,
    "FAILED_PRECONDITION": 9,
    "ABORTED": 10,
    "INTERNAL": 13,
    "UNAVAILABLE": 14,
    "UNAUTHENTICATED": 16,
}

# For answers without our details: from a proxy, a library, or a service of another make.
_BY_STATUS: dict[str, type[IdentityError]] = {
    "INVALID_ARGUMENT": InvalidRequest,
    "UNAUTHENTICATED": Unauthenticated,
    "PERMISSION_DENIED": PermissionMissing,
    "NOT_FOUND": NotFound,
    "ABORTED": StateConflict,
    "UNAVAILABLE": DependencyDown,
    "DEADLINE_EXCEEDED": DependencyDown,
    "INTERNAL": Internal,
}


def pack(error: IdentityError, refused_by: str = "", audience: str = "") -> bytes:
    """The value of the trailer `grpc-status-details-bin`: ErrorInfo, and BadRequest or RetryInfo where they apply.

    *refused_by* and *audience* tell a caller that the guard of that very service refused, so that it may renew its
    token and repeat: nothing was done yet.
    """
    info = error_details_pb2.ErrorInfo(reason=error.reason, domain=ERROR_DOMAIN, metadata=error.metadata)
    if refused_by:
        info.metadata.update({"refused_by": refused_by, "audience": audience})
    message = status_pb2.Status(code=_CODES[error.status], message=message_of(error))
    for detail in (info, *_extras(error)):
        message.details.add().Pack(detail)
    packed: bytes = message.SerializeToString()
    return packed


def message_of(error: IdentityError) -> str:
    """What a person reads: the reason and its sentence."""
    return f"{error.reason}: {error}"


def refusal(error: IdentityError, audience: str) -> tuple[grpc.StatusCode, str, tuple[tuple[str, bytes]]]:
    """Code, message and trailers with which the guard of *audience* refuses a call."""
    from grpc import StatusCode

    details = pack(error, refused_by="guard", audience=audience)
    return StatusCode[error.status], message_of(error), ((STATUS_DETAILS_KEY, details),)


def unpack(raw: bytes) -> IdentityError | None:
    """The error that `pack` packed; None for details that are not ours or not readable."""
    try:
        message = status_pb2.Status.FromString(raw)
        info = _detail(message, error_details_pb2.ErrorInfo)
        if info is None or info.domain != ERROR_DOMAIN:
            return None
        retry = _detail(message, error_details_pb2.RetryInfo)
    except DecodeError:
        return None
    error = _build(info, message.message, retry)
    error.refused_by = info.metadata.get("refused_by", "")
    error.refused_audience = info.metadata.get("audience", "")
    return error


def to_rpc_error(error: IdentityError) -> AioRpcError:
    """*error* as if the called service had raised it, for callers (threaded ones too) that expect what grpc raises."""
    from grpc import StatusCode
    from grpc.aio import AioRpcError, Metadata

    trailers = Metadata((STATUS_DETAILS_KEY, pack(error)))
    return AioRpcError(StatusCode[error.status], Metadata(), trailers, message_of(error))


def from_rpc_error(error: grpc.RpcError) -> IdentityError:
    """The class that the server raised, from the error that grpc raised here.

    Without our details the status alone decides; an unreachable server is DependencyDown.
    """
    call: Any = error
    ours = from_trailers(call.trailing_metadata())
    if ours is not None:
        return ours
    return _BY_STATUS.get(call.code().name, IdentityError)(call.details() or "")


def from_trailers(trailers: Iterable[tuple[str, str | bytes]] | None) -> IdentityError | None:
    """The error in a call's trailing metadata; None where there is none of ours."""
    for key, value in trailers or ():
        if key == STATUS_DETAILS_KEY and isinstance(value, bytes) and (ours := unpack(value)) is not None:
            return ours
    return None


def _extras(error: IdentityError) -> list[Any]:
    extras: list[Any] = []
    if isinstance(error, InvalidRequest) and error.field:
        violation = error_details_pb2.BadRequest.FieldViolation(field=error.field, description=str(error))
        extras.append(error_details_pb2.BadRequest(field_violations=[violation]))
    if isinstance(error, RetryLater):
        retry = error_details_pb2.RetryInfo()
        retry.retry_delay.FromMilliseconds(round(error.retry_after_seconds * 1000))
        extras.append(retry)
    return extras


def _build(info: error_details_pb2.ErrorInfo, message: str, retry: error_details_pb2.RetryInfo | None) -> IdentityError:
    kind = BY_REASON.get(info.reason, IdentityError)  # a reason of a later version
    sentence = message.removeprefix(f"{info.reason}: ")
    if issubclass(kind, InvalidRequest):
        field = info.metadata.get("field", "")
        return kind(sentence.removeprefix(f"{field}: "), field)
    error = kind(sentence)
    if isinstance(error, Internal):
        error.error_id = info.metadata.get("error_id", "")
    if isinstance(error, SecretAlreadyShown):
        error.resource_id = info.metadata.get("resource_id", "")
    if isinstance(error, RetryLater) and retry is not None:
        error.retry_after_seconds = retry.retry_delay.ToMilliseconds() / 1000
    return error


def _detail(message: status_pb2.Status, kind: type[Any]) -> Any:
    for packed in message.details:
        if packed.Is(kind.DESCRIPTOR):
            detail = kind()
            packed.Unpack(detail)
            return detail
    return None

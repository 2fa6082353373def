"""Errors on the wire: one table, read forwards by the server and backwards by its callers."""

from __future__ import annotations

from typing import Any

import grpc
import pytest

from identity.v1 import errors_pb2
from identity_client import errors, status
from identity_client.errors import BY_REASON, IdentityError


class FakeRpcError(grpc.RpcError):
    def __init__(self, code: grpc.StatusCode, details: str, trailers: tuple[tuple[str, str | bytes], ...] = ()) -> None:
        self._values = (code, details, trailers)

    def code(self) -> grpc.StatusCode:
        return self._values[0]

    def details(self) -> str:
        return self._values[1]

    def trailing_metadata(self) -> Any:
        return self._values[2]


def test_the_classes_and_the_contract_name_the_same_reasons() -> None:
    named = {name.removeprefix("ERROR_REASON_") for name in dict(errors_pb2.ErrorReason.items())} - {"UNSPECIFIED"}
    assert named == set(BY_REASON)


def test_every_reason_has_a_canonical_status_and_a_sentence() -> None:
    for reason, kind in BY_REASON.items():
        assert grpc.StatusCode[kind.status]
        assert kind.sentence.endswith("."), reason
        assert len(kind.sentence) > 20, reason
    assert len({kind.sentence for kind in BY_REASON.values()}) == len(BY_REASON)


@pytest.mark.parametrize("kind", BY_REASON.values(), ids=BY_REASON)
def test_the_caller_catches_the_class_that_the_server_raised(kind: type[IdentityError]) -> None:
    raised = kind()
    packed = status.pack(raised, refused_by="guard", audience="orders")
    wire_error = FakeRpcError(
        grpc.StatusCode[raised.status], status.message_of(raised), ((status.STATUS_DETAILS_KEY, packed),)
    )
    caught = status.from_rpc_error(wire_error)
    assert type(caught) is kind
    assert str(caught) == str(raised)
    assert (caught.refused_by, caught.refused_audience) == ("guard", "orders")


def test_fields_delays_and_error_ids_survive() -> None:
    field = status.unpack(status.pack(errors.InvalidRequest("too long", "username")))
    assert isinstance(field, errors.InvalidRequest)
    assert (field.field, str(field)) == ("username", "username: too long")
    delay = status.unpack(status.pack(errors.Overloaded("wait", 2.5)))
    assert isinstance(delay, errors.Overloaded)
    assert delay.retry_after_seconds == 2.5
    defect = status.unpack(status.pack(errors.Internal("oh", "abc")))
    assert isinstance(defect, errors.Internal)
    assert defect.error_id == "abc"


@pytest.mark.parametrize("raw", [b"", b"\xff\xff", b"\x08\x10\x12\x02hi", status.pack(IdentityError())[:-3]])
def test_foreign_or_broken_details_are_not_ours(raw: bytes) -> None:
    assert status.unpack(raw) is None


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (grpc.StatusCode.UNAVAILABLE, errors.DependencyDown),
        (grpc.StatusCode.DEADLINE_EXCEEDED, errors.DependencyDown),
        (grpc.StatusCode.UNAUTHENTICATED, errors.Unauthenticated),
        (grpc.StatusCode.PERMISSION_DENIED, errors.PermissionMissing),
        (grpc.StatusCode.DATA_LOSS, IdentityError),
    ],
)
def test_without_details_the_status_decides(code: grpc.StatusCode, kind: type[IdentityError]) -> None:
    caught = status.from_rpc_error(FakeRpcError(code, "someone else's words"))
    assert type(caught) is kind
    assert str(caught) == "someone else's words"
    assert caught.refused_by == ""

"""Hostile and mistaken bodies for every RPC: a documented status, a stable reason, a useful text, nothing stored."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.descriptor import FieldDescriptor, MethodDescriptor
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.message import Message

from identity.server import CONTRACT
from identity.v1 import (
    account_pb2,
    audit_pb2,
    authentication_pb2,
    credential_pb2,
    revocation_pb2,
    role_pb2,
    session_pb2,
    signing_key_pb2,
    token_pb2,
    trust_pb2,
)
from identity_client import errors, status
from identity_client.tokens import opaque
from tests.rpc.api import ADMIN_PASSWORD, Api, Metadata, bearer

METHODS: list[MethodDescriptor] = [
    method
    for module in CONTRACT
    for service in module.DESCRIPTOR.services_by_name.values()
    for method in service.methods
]
UNARY_METHODS = [method for method in METHODS if not method.server_streaming]

SOME_ID = "A" * 22
GOOD_REQUESTS: dict[str, Message] = {
    "Authenticate": authentication_pb2.AuthenticateRequest(
        password=authentication_pb2.PasswordCredential(username="root", password=ADMIN_PASSWORD)
    ),
    "AuthenticateClient": authentication_pb2.AuthenticateRequest(
        client_secret=authentication_pb2.ClientSecretCredential(client_id="orders", client_secret="idc_")
    ),
    "AuthenticateKey": authentication_pb2.AuthenticateRequest(
        api_key=authentication_pb2.ApiKeyCredential(api_key="idk_")
    ),
    "AuthenticateAssertion": authentication_pb2.AuthenticateRequest(
        client_assertion=authentication_pb2.ClientAssertionCredential(assertion="x.y.z")
    ),
    "ChangePassword": authentication_pb2.ChangePasswordRequest(
        username="root", current_password=ADMIN_PASSWORD, new_password="long enough to be one"
    ),
    "GetSession": session_pb2.GetSessionRequest(session_id=SOME_ID),
    "ListSessions": session_pb2.ListSessionsRequest(),
    "EndSession": session_pb2.EndSessionRequest(session_id=SOME_ID),
    "Logout": session_pb2.LogoutRequest(),
    "LogoutEverywhere": session_pb2.LogoutEverywhereRequest(),
    "CreateRole": role_pb2.CreateRoleRequest(name="new", scopes=["orders.read"]),
    "GetRole": role_pb2.GetRoleRequest(name="clerk"),
    "ListRoles": role_pb2.ListRolesRequest(),
    "UpdateRole": role_pb2.UpdateRoleRequest(
        role=role_pb2.Role(name="nothing"), update_mask=FieldMask(paths=["scopes", "description"])
    ),
    "DeleteRole": role_pb2.DeleteRoleRequest(name="nothing"),
    "CreateClientSecret": credential_pb2.CreateClientSecretRequest(username="orders"),
    "CreateApiKey": credential_pb2.CreateApiKeyRequest(username="orders", use=credential_pb2.API_KEY_USE_EXCHANGE),
    "CreatePublicKey": credential_pb2.CreatePublicKeyRequest(username="orders", public_key_pem="no PEM"),
    "CreateCertificateIdentity": credential_pb2.CreateCertificateIdentityRequest(username="nobody", dns_name="a.b"),
    "ListCredentials": credential_pb2.ListCredentialsRequest(username="orders"),
    "RevokeCredential": credential_pb2.RevokeCredentialRequest(credential_id=SOME_ID),
    "BatchIntrospect": token_pb2.BatchIntrospectRequest(),
    "Exchange": token_pb2.ExchangeRequest(subject_token="x"),
    "Refresh": token_pb2.RefreshRequest(),
    "Revoke": token_pb2.RevokeRequest(),
    "Introspect": token_pb2.IntrospectRequest(),
    "GetKeys": trust_pb2.GetKeysRequest(),
    "CheckRevocation": trust_pb2.CheckRevocationRequest(
        tokens=[trust_pb2.TokenIdentity(token_id=SOME_ID, grant_id=SOME_ID, account_id=SOME_ID)]
    ),
    "CreateUser": account_pb2.CreateUserRequest(username="mallory", password="long enough to be one"),
    "CreateServiceAccount": account_pb2.CreateServiceAccountRequest(username="mallory"),
    "GetAccount": account_pb2.GetAccountRequest(username="root"),
    "ListAccounts": account_pb2.ListAccountsRequest(),
    "SetRoles": account_pb2.SetRolesRequest(username="nobody"),
    "DisableAccount": account_pb2.DisableAccountRequest(username="nobody"),
    "EnableAccount": account_pb2.EnableAccountRequest(username="nobody"),
    "ListAuditEvents": audit_pb2.ListAuditEventsRequest(),
    "UpdateAccount": account_pb2.UpdateAccountRequest(
        username="nobody",
        change=account_pb2.AccountChange(username="somebody"),
        update_mask=FieldMask(paths=["username"]),
    ),
    "DeleteAccount": account_pb2.DeleteAccountRequest(username="nobody"),
    "SetPassword": account_pb2.SetPasswordRequest(username="nobody", password="long enough to be one"),
    "ListAccountSessions": account_pb2.ListAccountSessionsRequest(username="root"),
    "RevokeSessions": revocation_pb2.RevokeSessionsRequest(
        filter=revocation_pb2.SessionFilter(username="nobody", origin="192.0.2.7")
    ),
    "ListRevocations": revocation_pb2.ListRevocationsRequest(),
    "ExplainToken": revocation_pb2.ExplainTokenRequest(token="a.b.c"),
    "RevokeToken": revocation_pb2.RevokeTokenRequest(),
    "RevokeGrant": revocation_pb2.RevokeGrantRequest(grant_id=SOME_ID),
    "RevokeAccount": revocation_pb2.RevokeAccountRequest(username="nobody"),
    "ListSigningKeys": signing_key_pb2.ListSigningKeysRequest(),
    "PrepareSigningKey": signing_key_pb2.PrepareSigningKeyRequest(),
    "ActivateSigningKey": signing_key_pb2.ActivateSigningKeyRequest(key_id="none"),
    "RetireSigningKey": signing_key_pb2.RetireSigningKeyRequest(key_id="none"),
    "RevokeSigningKey": signing_key_pb2.RevokeSigningKeyRequest(key_id="none"),
}

MAY_BE_EMPTY = ("PrepareSigningKey",)
"""Methods that act on a request without any field."""

BODIES = {
    "empty": b"",
    "no message": b"\xff\xff\xff\xff",
    "cut short": b"\x0a\x7fabc",
    "not UTF-8": b"\x0a\x02\xff\xfe",
    "text as a number": b"\x08\x2a",
    "number as a text": b"\x0a\x03AB!\x10\x01\x18\x01",
    "unknown fields": b"\xf2\x3f\x04spam",
    "a message in a text": b"\x0a\x04\x0a\x02hi",
    "a huge varint": b"\x08" + b"\xff" * 9 + b"\x01",
}
OVERSIZED = b"\x0a\x80\x80\x08" + b"x" * (128 * 1024)


def method_of(name: str) -> MethodDescriptor:
    """Of a key of GOOD_REQUESTS: AuthenticateKey is another request of Authenticate."""
    return next(method for method in UNARY_METHODS if name in (method.name, *map(method.name.__add__, _VARIANTS)))


_VARIANTS = ("Client", "Key", "Assertion")


def path_of(method: MethodDescriptor) -> str:
    return f"/{method.containing_service.full_name}/{method.name}"


async def send(api: Api, method: MethodDescriptor, body: bytes, metadata: Metadata) -> grpc.aio.AioRpcError | None:
    """Send raw bytes; -> the refusal, or None for an OK."""
    channel: Any = api.channel
    try:
        if method.server_streaming:
            stream = channel.unary_stream(path_of(method))(body, metadata=metadata)
            await stream.read()
            stream.cancel()
        else:
            await channel.unary_unary(path_of(method))(body, metadata=metadata)
    except grpc.aio.AioRpcError as error:
        return error
    return None


def assert_useful(error: grpc.aio.AioRpcError) -> errors.IdentityError:
    refusal = status.from_rpc_error(error)
    assert type(refusal) in errors.BY_REASON.values(), error.details()
    assert type(refusal) is not errors.Internal
    assert error.code().name == refusal.status
    assert (error.details() or "").startswith(f"{refusal.reason}: ")
    assert len(str(refusal)) > 20
    return refusal


def stored_rows(database: Path) -> dict[str, int]:
    """Rows per table; refused log-ins are noted in the audit log, and counted by the throttle, alone."""
    with closing(sqlite3.connect(database)) as connection:
        tables = [name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        return {
            table: connection.execute(f'SELECT count(*) FROM "{table}"').fetchone()[0]
            for table in tables
            if table not in ("audit_events", "throttle_buckets")
            if not table.startswith(("audit_", "sqlite_"))
        }


@pytest.fixture
async def everyone(api: Api) -> Metadata:
    """A caller who may call everything, so that the body alone decides."""
    service = await api.create_service("orders", "peer", "admin")
    return bearer((await api.login_service("orders", service.client_secret)).access_token)


@pytest.mark.parametrize("body", BODIES)
@pytest.mark.parametrize("method", METHODS, ids=path_of)
async def test_a_bad_body_is_refused_usefully_or_harmless(
    api: Api, everyone: Metadata, tmp_path: Path, method: MethodDescriptor, body: str
) -> None:
    before = stored_rows(tmp_path / "identity.db")
    error = await send(api, method, BODIES[body], everyone)
    if error is not None:
        assert_useful(error)
    if method.input_type.fields and method.name not in MAY_BE_EMPTY:  # else every message is a good request
        assert stored_rows(tmp_path / "identity.db") == before


def test_every_method_has_a_good_request_to_spoil() -> None:
    assert {method.name for method in UNARY_METHODS} == {method_of(name).name for name in GOOD_REQUESTS}


@pytest.mark.parametrize("method", METHODS, ids=path_of)
async def test_bytes_that_are_no_message_are_named_so(api: Api, everyone: Metadata, method: MethodDescriptor) -> None:
    error = await send(api, method, BODIES["no message"], everyone)
    assert error is not None
    assert isinstance(assert_useful(error), errors.MalformedRequest)


@pytest.mark.parametrize("method", METHODS, ids=path_of)
async def test_an_oversized_body_is_refused_by_the_transport(
    api: Api, everyone: Metadata, method: MethodDescriptor
) -> None:
    error = await send(api, method, OVERSIZED, everyone)
    assert error is not None
    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


@pytest.mark.requirement("R24")
@pytest.mark.requirement("R45")
async def test_every_kind_of_token_in_every_text_field_of_every_rpc(
    api: Api, everyone: Metadata, tmp_path: Path
) -> None:
    await api.create_user("carol")
    tokens = await api.login("carol")
    spare = (await api.create_service("spare")).client_secret
    kinds = {
        "access": tokens.access_token,
        "refresh": tokens.refresh_token,
        "client_secret": spare,
        "session": opaque.encode_secret(opaque.Kind.SESSION, SOME_ID, bytes(32)),
        "api_key": opaque.encode_secret(opaque.Kind.API_KEY, SOME_ID, bytes(32)),
    }
    right_places = {
        ("Refresh", "refresh_token", "refresh"),
        ("AuthenticateClient", "client_secret.client_secret", "client_secret"),  # refused: another service's
    }
    before = stored_rows(tmp_path / "identity.db")
    tried = 0
    for name, good in GOOD_REQUESTS.items():
        method = method_of(name)
        for kind, text in kinds.items():
            for field, request in misplaced(good, text):
                takes_any_token = field in ("token", "tokens", "reason")
                if (name, field, kind) in right_places or takes_any_token:
                    continue
                error = await send(api, method, request.SerializeToString(), everyone)
                assert error is not None, (name, field, kind)
                assert_useful(error)
                assert text not in (error.details() or "")
                tried += 1
    assert tried > 100
    assert stored_rows(tmp_path / "identity.db") == before


def misplaced(good: Message, text: str) -> Iterator[tuple[str, Message]]:
    """Copies of *good*, each with *text* in another one of its text fields; -> field path, copy."""
    for path in text_fields(good.DESCRIPTOR):
        copy = type(good)()
        copy.CopyFrom(good)
        if put(copy, path, text):
            yield ".".join(path), copy


def text_fields(descriptor: Any, prefix: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for field in descriptor.fields:
        if field.type == FieldDescriptor.TYPE_STRING:
            yield (*prefix, field.name)
        elif field.type == FieldDescriptor.TYPE_MESSAGE:
            yield from text_fields(field.message_type, (*prefix, field.name))


def put(message: Any, path: tuple[str, ...], text: str) -> bool:
    """Set the field unless that would choose the other branch of a oneof that *message* has decided."""
    head, *rest = path
    field = message.DESCRIPTOR.fields_by_name[head]
    oneof = field.containing_oneof
    if rest and oneof is not None and message.WhichOneof(oneof.name) != head:
        return False
    if field.is_repeated:
        items = getattr(message, head)
        if rest:
            return put(items[0], tuple(rest), text)
        del items[:]
        items.append(text)
        return True
    if rest:
        return put(getattr(message, head), tuple(rest), text)
    setattr(message, head, text)
    return True

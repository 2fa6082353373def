"""Requests that act once however often they are sent, over the wire."""

from __future__ import annotations

from typing import Any

import grpc
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from google.protobuf.message import Message

from identity.server import CONTRACT
from identity.v1 import account_pb2, credential_pb2, role_pb2
from identity_client.errors import InvalidRequest, RequestIdReused, SecretAlreadyShown
from tests.rpc.api import USER_PASSWORD, Api, Metadata
from tests.rpc.refusals import refusal, refused

PEM = (
    ec.generate_private_key(ec.SECP256R1())
    .public_key()
    .public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    .decode()
)
REQUEST_ID = "5f0e8c9a-0d0e-4c53-9a0e-2f1d8f0d7b11"
CREATIONS: dict[str, Message] = {
    "AccountService/CreateUser": account_pb2.CreateUserRequest(username="carol", password=USER_PASSWORD),
    "AccountService/CreateServiceAccount": account_pb2.CreateServiceAccountRequest(username="billing"),
    "RoleService/CreateRole": role_pb2.CreateRoleRequest(name="seller", scopes=["orders.write"]),
    "CredentialService/CreateClientSecret": credential_pb2.CreateClientSecretRequest(username="orders"),
    "CredentialService/CreateApiKey": credential_pb2.CreateApiKeyRequest(
        username="orders", use=credential_pb2.API_KEY_USE_EXCHANGE
    ),
    "CredentialService/CreatePublicKey": credential_pb2.CreatePublicKeyRequest(username="orders", public_key_pem=PEM),
    "CredentialService/CreateCertificateIdentity": credential_pb2.CreateCertificateIdentityRequest(
        username="orders", dns_name="orders.example"
    ),
}
SHOWING = ("CreateServiceAccount", "CreateClientSecret", "CreateApiKey")


async def send(api: Api, name: str, request: Message, metadata: Metadata) -> bytes:
    """-> the answer's bytes."""
    channel: Any = api.channel
    answer: bytes = await channel.unary_unary(f"/identity.v1.{name}")(request.SerializeToString(), metadata=metadata)
    return answer


def named(name: str, **changes: Any) -> Message:
    request = CREATIONS[name]
    copy = type(request)()
    copy.CopyFrom(request)
    for field, value in ({"request_id": REQUEST_ID} | changes).items():
        setattr(copy, field, value)
    return copy


@pytest.fixture
async def admin(api: Api) -> Metadata:
    await api.create_service("orders", "peer")
    return await api.admin()


def test_every_creation_takes_a_request_id() -> None:
    creating = {
        f"{service.name}/{method.name}"
        for module in CONTRACT
        for service in module.DESCRIPTOR.services_by_name.values()
        for method in service.methods
        if "request_id" in method.input_type.fields_by_name and method.name.startswith("Create")
    }
    every = {
        f"{service.name}/{method.name}"
        for module in CONTRACT
        for service in module.DESCRIPTOR.services_by_name.values()
        for method in service.methods
        if method.name.startswith("Create")
    }
    assert creating == every == set(CREATIONS)


@pytest.mark.requirement("R60")
@pytest.mark.parametrize("name", CREATIONS)
async def test_a_repeat_creates_nothing_more_and_shows_no_secret_again(api: Api, admin: Metadata, name: str) -> None:
    first = await send(api, name, named(name), admin)
    if name.endswith(SHOWING):
        error = await refusal(send(api, name, named(name), admin))
        assert isinstance(error, SecretAlreadyShown)
        assert error.resource_id.encode() in first
    else:
        assert await send(api, name, named(name), admin) == first


@pytest.mark.parametrize("name", CREATIONS)
async def test_the_same_id_for_another_request_is_refused(api: Api, admin: Metadata, name: str) -> None:
    await send(api, name, named(name), admin)
    other = "CreateRole" if not name.endswith("CreateRole") else "CreateUser"
    [other_name] = [each for each in CREATIONS if each.endswith(other)]
    error = await refused(send(api, other_name, named(other_name), admin))
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert isinstance(await refusal(send(api, other_name, named(other_name), admin)), RequestIdReused)


async def test_another_password_under_the_same_id_is_another_request(api: Api, admin: Metadata) -> None:
    name = "AccountService/CreateUser"
    await send(api, name, named(name), admin)
    changed = named(name, password="not the same secret")
    assert isinstance(await refusal(send(api, name, changed, admin)), RequestIdReused)


async def test_without_an_id_each_sending_acts(api: Api, admin: Metadata) -> None:
    name = "CredentialService/CreateApiKey"
    assert await send(api, name, CREATIONS[name], admin) != await send(api, name, CREATIONS[name], admin)


@pytest.mark.parametrize("request_id", ["short", "x" * 65, "with a space", "ümlaute-ümlaute", "idk_" + "A" * 20])
async def test_an_id_that_is_none_is_refused_and_nothing_done(api: Api, admin: Metadata, request_id: str) -> None:
    name = "RoleService/CreateRole"
    error = await refusal(send(api, name, named(name, request_id=request_id), admin))
    assert isinstance(error, InvalidRequest)
    assert error.field == "request_id"
    assert await send(api, name, named(name), admin)

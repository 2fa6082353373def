"""One server's stubs, and the shortest way to a token."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import grpc
from google.protobuf.field_mask_pb2 import FieldMask

from identity.config import Settings
from identity.house import LOCAL_ACT, House
from identity.server import Server
from identity.v1 import (
    account_pb2,
    account_pb2_grpc,
    audit_pb2_grpc,
    authentication_pb2,
    authentication_pb2_grpc,
    credential_pb2,
    credential_pb2_grpc,
    revocation_pb2_grpc,
    role_pb2,
    role_pb2_grpc,
    session_pb2_grpc,
    signing_key_pb2_grpc,
    token_pb2,
    token_pb2_grpc,
    trust_pb2_grpc,
)

ADMIN_PASSWORD = "correct horse battery"
USER_PASSWORD = "a long enough secret"

MakeSettings = Callable[..., Settings]
ROLES = {"clerk": (), "manager": (), "auditor": ()}
"""Roles that tests may give, besides the service's own; they grant no scopes."""

Metadata = tuple[tuple[str, str], ...]


class MovableClock:
    """Wall and monotonic time that move when the test says so."""

    def __init__(self, now: float = 1_800_000_000.0) -> None:
        self.time = now

    def now(self) -> float:
        return self.time

    def monotonic(self) -> float:
        return self.time


def bearer(token: str) -> Metadata:
    return (("authorization", f"Bearer {token}"),)


async def prepare(house: House) -> None:
    """The roles, and an admin named root."""
    for name, scopes in ROLES.items():
        await house.roles.create(name, scopes, "", LOCAL_ACT)
    await house.accounts.create_user("root", ADMIN_PASSWORD, ("admin",), LOCAL_ACT)


@dataclass
class Api:
    """Every stub of one server, and the shortest way to a token."""

    server: Server
    address: str
    secure_by: grpc.ChannelCredentials | None = None
    channel: grpc.aio.Channel = field(init=False)

    def __post_init__(self) -> None:
        if self.secure_by is None:
            self.channel = grpc.aio.insecure_channel(self.address)
        else:
            self.channel = grpc.aio.secure_channel(self.address, self.secure_by)
        self.authentication = authentication_pb2_grpc.AuthenticationServiceStub(self.channel)
        self.tokens = token_pb2_grpc.TokenServiceStub(self.channel)
        self.trust = trust_pb2_grpc.TrustServiceStub(self.channel)
        self.accounts = account_pb2_grpc.AccountServiceStub(self.channel)
        self.revocations = revocation_pb2_grpc.RevocationServiceStub(self.channel)
        self.sessions = session_pb2_grpc.SessionServiceStub(self.channel)
        self.roles = role_pb2_grpc.RoleServiceStub(self.channel)
        self.audit = audit_pb2_grpc.AuditServiceStub(self.channel)
        self.signing_keys = signing_key_pb2_grpc.SigningKeyServiceStub(self.channel)
        self.credentials = credential_pb2_grpc.CredentialServiceStub(self.channel)

    async def login(
        self, username: str, password: str = USER_PASSWORD, audience: str = "", scopes: tuple[str, ...] = ()
    ) -> authentication_pb2.TokenSet:
        response = await self.authentication.Authenticate(
            authentication_pb2.AuthenticateRequest(
                password=authentication_pb2.PasswordCredential(username=username, password=password),
                audience=audience,
                scopes=scopes,
            )
        )
        return response.tokens

    async def login_service(
        self, client_id: str, secret: str, audience: str = "identity"
    ) -> authentication_pb2.AccessGrant:
        response = await self.authentication.Authenticate(
            authentication_pb2.AuthenticateRequest(
                client_secret=authentication_pb2.ClientSecretCredential(client_id=client_id, client_secret=secret),
                audience=audience,
            )
        )
        return response.access

    async def authenticate(self, **fields: Any) -> authentication_pb2.AuthenticateResponse:
        """Authenticate by whatever credential *fields* name."""
        request = authentication_pb2.AuthenticateRequest(**fields)
        return await self.authentication.Authenticate(request)

    async def open_session(
        self, username: str, *audiences: str, password: str = USER_PASSWORD
    ) -> authentication_pb2.SessionGrant:
        """A session token for *audiences*, or the default group."""
        credential = authentication_pb2.PasswordCredential(username=username, password=password)
        kind = authentication_pb2.GRANT_TYPE_SESSION
        return (await self.authenticate(password=credential, grant_type=kind, audiences=audiences)).session

    async def create_api_key(
        self,
        username: str,
        *audiences: str,
        use: credential_pb2.ApiKeyUse.ValueType = credential_pb2.API_KEY_USE_BEARER,
        **terms: Any,
    ) -> credential_pb2.CreateApiKeyResponse:
        request = credential_pb2.CreateApiKeyRequest(
            username=username, use=use, terms=credential_pb2.CredentialTerms(audiences=audiences, **terms)
        )
        return await self.credentials.CreateApiKey(request, metadata=await self.admin())

    async def create_client_secret(self, username: str, **terms: Any) -> credential_pb2.CreateClientSecretResponse:
        request = credential_pb2.CreateClientSecretRequest(
            username=username, terms=credential_pb2.CredentialTerms(**terms)
        )
        return await self.credentials.CreateClientSecret(request, metadata=await self.admin())

    async def create_public_key(self, username: str, pem: str, **terms: Any) -> credential_pb2.Credential:
        request = credential_pb2.CreatePublicKeyRequest(
            username=username, public_key_pem=pem, terms=credential_pb2.CredentialTerms(**terms)
        )
        return (await self.credentials.CreatePublicKey(request, metadata=await self.admin())).credential

    async def revoke_credential(self, credential_id: str) -> int:
        request = credential_pb2.RevokeCredentialRequest(credential_id=credential_id, reason="test")
        return (await self.credentials.RevokeCredential(request, metadata=await self.admin())).ended_grant_count

    async def create_role(self, name: str, *scopes: str) -> None:
        request = role_pb2.CreateRoleRequest(name=name, scopes=scopes)
        await self.roles.CreateRole(request, metadata=await self.admin())

    async def set_scopes(self, name: str, *scopes: str) -> None:
        role, mask = role_pb2.Role(name=name, scopes=scopes), FieldMask(paths=["scopes"])
        await self.roles.UpdateRole(
            role_pb2.UpdateRoleRequest(role=role, update_mask=mask), metadata=await self.admin()
        )

    async def introspect(self, token: str, peer: Metadata) -> token_pb2.IntrospectResponse:
        return await self.tokens.Introspect(token_pb2.IntrospectRequest(token=token), metadata=peer)

    async def refresh(self, token: str) -> authentication_pb2.TokenSet:
        return (await self.tokens.Refresh(token_pb2.RefreshRequest(refresh_token=token))).tokens

    async def peer(self, name: str = "orders", *more_roles: str) -> Metadata:
        """The credentials of a new service that may introspect."""
        service = await self.create_service(name, "peer", *more_roles)
        return bearer((await self.login_service(name, service.client_secret)).access_token)

    async def admin(self) -> Metadata:
        return bearer((await self.login("root", ADMIN_PASSWORD, audience="identity")).access_token)

    async def create_user(self, username: str, *roles: str) -> account_pb2.Account:
        request = account_pb2.CreateUserRequest(username=username, password=USER_PASSWORD, roles=roles)
        return (await self.accounts.CreateUser(request, metadata=await self.admin())).account

    async def create_service(self, username: str, *roles: str) -> account_pb2.CreateServiceAccountResponse:
        request = account_pb2.CreateServiceAccountRequest(username=username, roles=roles)
        return await self.accounts.CreateServiceAccount(request, metadata=await self.admin())

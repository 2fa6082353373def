"""One server's stubs, and the shortest way to a token."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import grpc

from identity.config import Settings
from identity.house import LOCAL_ACT, House
from identity.server import Server
from identity.v1 import (
    account_pb2,
    account_pb2_grpc,
    audit_pb2_grpc,
    authentication_pb2,
    authentication_pb2_grpc,
    credential_pb2_grpc,
    revocation_pb2_grpc,
    role_pb2_grpc,
    session_pb2_grpc,
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
    channel: grpc.aio.Channel = field(init=False)

    def __post_init__(self) -> None:
        self.channel = grpc.aio.insecure_channel(self.address)
        self.authentication = authentication_pb2_grpc.AuthenticationServiceStub(self.channel)
        self.tokens = token_pb2_grpc.TokenServiceStub(self.channel)
        self.trust = trust_pb2_grpc.TrustServiceStub(self.channel)
        self.accounts = account_pb2_grpc.AccountServiceStub(self.channel)
        self.revocations = revocation_pb2_grpc.RevocationServiceStub(self.channel)
        self.sessions = session_pb2_grpc.SessionServiceStub(self.channel)
        self.roles = role_pb2_grpc.RoleServiceStub(self.channel)
        self.audit = audit_pb2_grpc.AuditServiceStub(self.channel)
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

    async def admin(self) -> Metadata:
        return bearer((await self.login("root", ADMIN_PASSWORD, audience="identity")).access_token)

    async def create_user(self, username: str, *roles: str) -> account_pb2.Account:
        request = account_pb2.CreateUserRequest(username=username, password=USER_PASSWORD, roles=roles)
        return (await self.accounts.CreateUser(request, metadata=await self.admin())).account

    async def create_service(self, username: str, *roles: str) -> account_pb2.CreateServiceAccountResponse:
        request = account_pb2.CreateServiceAccountRequest(username=username, roles=roles)
        return await self.accounts.CreateServiceAccount(request, metadata=await self.admin())

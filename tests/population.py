"""The first accounts of a service that runs as a process: made over the wire, as an admin makes them."""

from __future__ import annotations

import grpc

from identity.v1 import (
    account_pb2,
    account_pb2_grpc,
    authentication_pb2,
    authentication_pb2_grpc,
    role_pb2,
    role_pb2_grpc,
)
from tests.replicas import Program
from tests.rpc.api import ADMIN_PASSWORD, USER_PASSWORD, Metadata, bearer

_ONE_TIME_PASSWORD = "a one-time password"


async def create_root(program: Program, settings: dict[str, str]) -> None:
    """The first admin, who has to replace the password."""
    command = ("identity.cli", "admin", "create", "root", "--password-file", "-")
    await program.run(*command, text=f"{_ONE_TIME_PASSWORD}\n", **settings)


async def populate(address: str) -> str:
    """The admin's work at a new service: alice, who may see orders, and the peer orders; -> its client secret."""
    async with grpc.aio.insecure_channel(address) as channel:
        change = authentication_pb2.ChangePasswordRequest(
            username="root", current_password=_ONE_TIME_PASSWORD, new_password=ADMIN_PASSWORD
        )
        await authentication_pb2_grpc.AuthenticationServiceStub(channel).ChangePassword(change)
        admin = await log_in_root(channel)
        await role_pb2_grpc.RoleServiceStub(channel).CreateRole(
            role_pb2.CreateRoleRequest(name="clerk"), metadata=admin
        )
        accounts = account_pb2_grpc.AccountServiceStub(channel)
        alice = account_pb2.CreateUserRequest(username="alice", password=USER_PASSWORD, roles=["clerk"])
        await accounts.CreateUser(alice, metadata=admin)
        orders = account_pb2.CreateServiceAccountRequest(username="orders", roles=["peer"])
        return (await accounts.CreateServiceAccount(orders, metadata=admin)).client_secret


async def log_in_root(channel: grpc.aio.Channel) -> Metadata:
    password = authentication_pb2.PasswordCredential(username="root", password=ADMIN_PASSWORD)
    request = authentication_pb2.AuthenticateRequest(password=password, audience="identity")
    response = await authentication_pb2_grpc.AuthenticationServiceStub(channel).Authenticate(request)
    return bearer(response.tokens.access_token)

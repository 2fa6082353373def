"""The service under test, in a process of its own, over a database with an admin, a service and a user in it."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import grpc

from identity.config import Settings
from identity.house import LOCAL_ACT, House, open_house
from identity.server import Server
from identity.storage.sealing import MasterKey
from identity.v1 import (
    account_pb2,
    account_pb2_grpc,
    authentication_pb2,
    authentication_pb2_grpc,
    token_pb2,
    token_pb2_grpc,
)
from identity_client.clock import SystemClock
from tests.bench import database
from tests.bench.harness import in_child
from tests.bench.load import Load, ended, serving

PEER, OPERATOR, USER = "orders", "operator", "alice"
PASSWORD = "a long enough secret"
CHEAP_HASH = {"hash_memory_kib": 64, "hash_iterations": 1}
"""For benches of anything but passwords: production refuses it."""

Metadata = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Place:
    """A database that is prepared: PEER has the role peer, OPERATOR the role admin, USER the PASSWORD."""

    settings: Settings
    peer_secret: str = field(repr=False)
    operator_secret: str = field(repr=False)
    durability: str


@dataclass(frozen=True)
class Service:
    """A service that runs, and its place."""

    place: Place
    address: str
    process_id: int

    def load(self, method: str, *requests: Any, metadata: Metadata = ()) -> Load:
        """Calls of *method*, which is written Service/Method."""
        texts = [request.SerializeToString() for request in requests]
        return Load(self.address, self.process_id, f"/identity.v1.{method}", texts, metadata)


@contextmanager
def placed(**settings: Any) -> Iterator[Place]:
    """A fresh database, prepared; *settings* differ from the defaults."""
    with tempfile.TemporaryDirectory() as folder, database.empty(Path(folder)) as url:
        key_file = Path(folder) / "master.key"
        MasterKey.generate(key_file)
        complete = Settings(
            listen="127.0.0.1:0", http_listen="", database=url, master_key_file=str(key_file), **settings
        )
        yield Place(complete, *in_child(prepare, complete), database.durability(url))


@contextmanager
def running(place: Place, port: int = 0, is_pinned: bool = True) -> Iterator[Service]:
    """A service at *place*, SERVING."""
    settings = replace(place.settings, listen=f"127.0.0.1:{port}")
    with serving(serve, settings, is_pinned=is_pinned) as (address, process_id):
        yield Service(place, address, process_id)


def prepare(settings: Settings) -> tuple[str, str]:
    """Make the accounts; -> the secrets of PEER and OPERATOR."""

    async def create() -> tuple[str, str]:
        house = await open_house(settings, SystemClock())
        try:
            return await _create_accounts(house)
        finally:
            await house.close()

    return asyncio.run(create())


async def _create_accounts(house: House) -> tuple[str, str]:
    await house.accounts.create_user(USER, PASSWORD, (), LOCAL_ACT)
    _, _, peer_secret = await house.accounts.create_service(PEER, ("peer",), LOCAL_ACT)
    _, _, operator_secret = await house.accounts.create_service(OPERATOR, ("admin",), LOCAL_ACT)
    return peer_secret, operator_secret


def serve(settings: Settings, pipe: Any) -> None:
    """A server until told to end; says its address once it is SERVING."""

    async def run() -> None:
        server = Server(settings)
        pipe.send(await server.start())
        await asyncio.to_thread(ended, pipe)
        await server.stop()

    asyncio.run(run())


class Caller:
    """Gets the texts that a load needs, by the calls that anyone would make."""

    def __init__(self, service: Service) -> None:
        self._place = service.place
        self._channel = grpc.insecure_channel(service.address)
        self._authentication = authentication_pb2_grpc.AuthenticationServiceStub(self._channel)
        self._accounts = account_pb2_grpc.AccountServiceStub(self._channel)
        self._tokens = token_pb2_grpc.TokenServiceStub(self._channel)

    def __enter__(self) -> Caller:
        return self

    def __exit__(self, *_: object) -> None:
        self._channel.close()

    def bearer(self, name: str = PEER, audience: str = "identity") -> Metadata:
        return (("authorization", f"Bearer {self.access_token(name, audience)}"),)

    def access_token(self, name: str = PEER, audience: str = "internal") -> str:
        secret = self._place.peer_secret if name == PEER else self._place.operator_secret
        return self._authentication.Authenticate(by_secret(name, secret, audience)).access.access_token

    def log_in(self) -> authentication_pb2.TokenSet:
        return self._authentication.Authenticate(by_password()).tokens

    def open_session(self) -> str:
        request = by_password(grant_type=authentication_pb2.GRANT_TYPE_SESSION)
        return self._authentication.Authenticate(request).session.session_token

    def create_users(self, count: int) -> list[str]:
        """-> the names of so many users with the PASSWORD."""
        names, own = [f"{USER}-{number}" for number in range(count)], self.bearer(OPERATOR)
        for name in names:
            self._accounts.CreateUser(account_pb2.CreateUserRequest(username=name, password=PASSWORD), metadata=own)
        return names

    def check_active(self, *texts: str) -> None:
        """Raises RuntimeError: a bench of refusals would measure nothing."""
        for text in texts:
            if not self._tokens.Introspect(token_pb2.IntrospectRequest(token=text), metadata=self.bearer()).active:
                raise RuntimeError("a text that should be active is not")


def by_secret(name: str, secret: str, audience: str = "internal") -> authentication_pb2.AuthenticateRequest:
    credential = authentication_pb2.ClientSecretCredential(client_id=name, client_secret=secret)
    return authentication_pb2.AuthenticateRequest(client_secret=credential, audience=audience)


def by_password(
    name: str = USER,
    grant_type: authentication_pb2.GrantType.ValueType = authentication_pb2.GRANT_TYPE_UNSPECIFIED,
) -> authentication_pb2.AuthenticateRequest:
    credential = authentication_pb2.PasswordCredential(username=name, password=PASSWORD)
    return authentication_pb2.AuthenticateRequest(password=credential, grant_type=grant_type)

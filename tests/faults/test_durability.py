"""SIGKILL while admins and users are at work: whatever was acknowledged still holds afterwards."""

from __future__ import annotations

import os
import random
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field

import grpc
import pytest

from identity.v1 import (
    account_pb2,
    account_pb2_grpc,
    authentication_pb2,
    authentication_pb2_grpc,
    revocation_pb2,
    revocation_pb2_grpc,
    token_pb2,
    token_pb2_grpc,
)
from identity_client import status
from identity_client.errors import DependencyDown, SessionEnded
from tests.faults.dev_server import DevServer
from tests.faults.test_refresh_crash import open_channel

ROUNDS = 3 * int(os.environ.get("IDENTITY_TEST_ROUNDS", "1"))
WORKERS = 4


@dataclass
class Acknowledged:
    """What clients were told."""

    live: dict[str, str] = field(default_factory=dict)  # session -> its newest refresh token
    ended: dict[str, str] = field(default_factory=dict)
    accounts: list[str] = field(default_factory=list)


class Client:
    """One user and the admin on one channel."""

    def __init__(self, server: DevServer, channel: grpc.Channel) -> None:
        self._user, self._admin = server.secrets["user"], server.secrets["admin"]
        self._authentication = authentication_pb2_grpc.AuthenticationServiceStub(channel)
        self._accounts = account_pb2_grpc.AccountServiceStub(channel)
        self._revocations = revocation_pb2_grpc.RevocationServiceStub(channel)
        self._tokens = token_pb2_grpc.TokenServiceStub(channel)
        token = self.log_in(self._admin, audience="identity").access_token
        self._metadata = (("authorization", f"Bearer {token}"),)

    def log_in(self, account: dict[str, str], audience: str = "") -> authentication_pb2.TokenSet:
        password = authentication_pb2.PasswordCredential(username=account["username"], password=account["password"])
        return self._authentication.Authenticate(
            authentication_pb2.AuthenticateRequest(password=password, audience=audience)
        ).tokens

    def work(self, told: Acknowledged, name: str) -> None:
        """Open a session, renew it, and end it, renew it again or make an account; note what was acknowledged."""
        tokens = self.log_in(self._user)
        told.live[tokens.session_id] = tokens.refresh_token
        told.live[tokens.session_id] = self._renewed(tokens.refresh_token)
        if random.random() < 0.5:
            request = revocation_pb2.RevokeGrantRequest(grant_id=tokens.session_id)
            told.live.pop(tokens.session_id)
            self._revocations.RevokeGrant(request, metadata=self._metadata)
            told.ended[tokens.session_id] = tokens.refresh_token
        else:
            request_account = account_pb2.CreateServiceAccountRequest(username=name)
            self._accounts.CreateServiceAccount(request_account, metadata=self._metadata)
            told.accounts.append(name)

    def _renewed(self, text: str) -> str:
        return self._tokens.Refresh(token_pb2.RefreshRequest(refresh_token=text)).tokens.refresh_token

    def check(self, told: Acknowledged) -> None:
        """All of it still holds."""
        for text in told.live.values():
            assert self._renewed(text)
        for session, text in told.ended.items():
            with pytest.raises(grpc.RpcError) as refused:
                self._renewed(text)
            assert isinstance(status.from_rpc_error(refused.value), SessionEnded), session
        for name in told.accounts:
            request = account_pb2.GetAccountRequest(username=name)
            assert self._accounts.GetAccount(request, metadata=self._metadata).account.username == name


@pytest.fixture
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DevServer]:
    server = DevServer(tmp_path_factory.mktemp("durability"))
    yield server
    server.stop()


@pytest.mark.requirement("R25")
@pytest.mark.timeout(300)
def test_what_was_acknowledged_survives_a_kill(server: DevServer) -> None:
    told = Acknowledged()
    for number in range(ROUNDS):
        server.start()
        with open_channel(server.address) as channel:
            clients = [Client(server, channel) for _ in range(WORKERS)]
            killer = threading.Timer(random.uniform(0.3, 1.0), server.kill)
            killer.start()
            workers = [
                threading.Thread(target=work_until_killed, args=(client, told, f"service-{number}-{at}"))
                for at, client in enumerate(clients)
            ]
            for worker in workers:
                worker.start()
            for worker in [*workers, killer]:
                worker.join()
        server.wait_killed()
    server.start()
    with open_channel(server.address) as channel:
        Client(server, channel).check(told)
    assert len(told.ended) > 0
    assert len(told.accounts) > 0


def work_until_killed(client: Client, told: Acknowledged, name: str) -> None:
    """Work without a pause; the end of the server ends it."""
    for number in range(10_000):
        try:
            client.work(told, f"{name}-{number}")
        except grpc.RpcError as error:
            assert isinstance(status.from_rpc_error(error), DependencyDown)
            return
    raise AssertionError("the server was never killed")

"""SIGKILL in the middle of a refresh: no session is lost, no chain forks, and theft is still found afterwards."""

from __future__ import annotations

import os
import random
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import grpc
import pytest

from identity.v1 import authentication_pb2, authentication_pb2_grpc, token_pb2, token_pb2_grpc
from identity_client import status
from identity_client.errors import IdentityError, RefreshReused, SessionEnded
from identity_client.tokens import opaque
from tests.faults.dev_server import DevServer

FAILPOINTS = ("rotate.before_commit", "rotate.after_commit", "refresh.after_answer")
KILLS_EACH = 7 * int(os.environ.get("IDENTITY_TEST_ROUNDS", "1"))
SESSIONS = 3
SEED = 20_260


class Chain:
    """One session's refresh tokens, oldest first, as its client received them."""

    def __init__(self, channel: grpc.Channel, username: str, password: str) -> None:
        request = authentication_pb2.AuthenticateRequest(
            password=authentication_pb2.PasswordCredential(username=username, password=password)
        )
        tokens = authentication_pb2_grpc.AuthenticationServiceStub(channel).Authenticate(request).tokens
        self.texts = [tokens.refresh_token]

    def advance(self, channel: grpc.Channel) -> None:
        """Use the newest text and keep its successor."""
        self.texts.append(refresh(channel, self.texts[-1]))


def open_channel(address: str) -> grpc.Channel:
    """A channel of its own: a shared one would remember that the server was dead, and wait."""
    return grpc.insecure_channel(address, options=[("grpc.use_local_subchannel_pool", 1)])


def refresh(channel: grpc.Channel, text: str) -> str:
    stub = token_pb2_grpc.TokenServiceStub(channel)
    return stub.Refresh(token_pb2.RefreshRequest(refresh_token=text), timeout=10).tokens.refresh_token


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DevServer]:
    server = DevServer(tmp_path_factory.mktemp("crash"))
    yield server
    server.stop()


@pytest.mark.requirement("R25")
@pytest.mark.timeout(300)
@pytest.mark.parametrize("failpoint", FAILPOINTS)
@pytest.mark.parametrize("kill", range(KILLS_EACH))
def test_a_kill_during_refresh_loses_no_session_and_forks_no_chain(
    server: DevServer, failpoint: str, kill: int
) -> None:
    nth = random.Random(f"{SEED} {failpoint} {kill}").randint(2 * SESSIONS, 5 * SESSIONS)
    server.start(IDENTITY_FAILPOINTS=f"{failpoint}=kill@{nth}")
    chains = run_until_killed(server)
    server.start()
    with open_channel(server.address) as channel:
        for chain in chains:
            retry_and_continue(channel, chain)
        for chain in chains:
            the_grace_text_repeats_and_older_ones_end_the_session(channel, chain, server.directory)
    server.stop()


def run_until_killed(server: DevServer) -> list[Chain]:
    """Advance all chains in turn until the server dies under one of them."""
    user = server.secrets["user"]
    with open_channel(server.address) as channel:
        chains = [Chain(channel, user["username"], user["password"]) for _ in range(SESSIONS)]
        for step in range(100 * SESSIONS):
            try:
                chains[step % SESSIONS].advance(channel)
            except grpc.RpcError:
                server.wait_killed()
                return chains
    raise AssertionError("the failpoint never struck")


def retry_and_continue(channel: grpc.Channel, chain: Chain) -> None:
    """The client repeats what it did not see answered, then goes on."""
    newest = chain.texts[-1]
    successor = refresh(channel, newest)
    assert refresh(channel, newest) == successor, "a second retry got another successor: the chain forked"
    chain.texts.append(successor)
    chain.advance(channel)


def the_grace_text_repeats_and_older_ones_end_the_session(channel: grpc.Channel, chain: Chain, home: Path) -> None:
    *older, grace, newest = chain.texts
    assert refresh(channel, grace) == newest
    for text in older:
        assert refusal_of(channel, text) is RefreshReused
        assert {refusal_of(channel, every) for every in chain.texts} == {SessionEnded}
        revive(home, chain.texts[0])
    assert refresh(channel, newest)


def refusal_of(channel: grpc.Channel, text: str) -> type[IdentityError]:
    with pytest.raises(grpc.RpcError) as refused:
        refresh(channel, text)
    return type(status.from_rpc_error(refused.value))


def revive(home: Path, text: str) -> None:
    """Undo the end of the session behind *text* in the database, so that the next old text finds it live, and its
    account's share of the feed is not used up."""
    with closing(sqlite3.connect(home / "identity.db", timeout=10)) as connection, connection:
        grant_id = opaque.split_refresh(text)[0]
        connection.execute("UPDATE grants SET end_time = NULL WHERE grant_id = ?", (grant_id,))
        connection.execute("UPDATE revocations SET account_id = NULL")

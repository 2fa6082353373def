"""An old backup is restored, by the very commands of identity/README.md, and a fence drawn.

Invariants, at both databases:
- a backup that is taken under load fails no call, and has all that was acknowledged before it began;
- a token whose revocation was acknowledged is accepted no more, by no peer, whether it was connected before or comes
  after, and by no replica, though the restored database knows nothing of the revocation;
- after the fence every session is over, and services log in again with the credentials that they have.
"""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from itertools import count, product
from pathlib import Path

import pytest

from identity.config import Settings
from identity.server import Server
from identity.v1 import authentication_pb2, revocation_pb2
from identity_client import aio
from identity_client.clock import SystemClock
from identity_client.errors import RefreshInvalid, SessionEnded, StoreSetBack, TokenError
from identity_client.tokens.verifier import Verifier
from tests.databases import KINDS, is_postgres, path_of, query
from tests.postgres_server import Databases, PostgresServer, executable
from tests.rpc.api import Api, MakeSettings, bearer, prepare
from tests.rpc.refusals import refusal

pytestmark = [pytest.mark.requirement("R26"), pytest.mark.timeout(240)]

MANUAL = (Path(__file__).parents[2] / "identity" / "README.md").read_text()
MORE = 20
"""So many log-ins at least come before the backup, and after it began."""


def commands(name: str) -> str:
    """The commands of the manual that are marked with *name*."""
    [block] = re.findall(rf"<!-- run: {name} -->\n```bash\n(.*?)```", MANUAL, re.DOTALL)
    return str(block)


@dataclass
class Place:
    """A database, its backup, and where it is restored."""

    settings: Settings
    backup: Path
    restored: str

    @property
    def kind(self) -> str:
        return "postgresql" if is_postgres(self.settings.database) else "sqlite"

    @property
    def replica_count(self) -> int:
        return 2 if self.kind == "postgresql" else 1

    async def run(self, name: str, database: str = "") -> str:
        """Run the commands marked with *name*, as an operator would; -> what they print."""
        return await asyncio.to_thread(self._run, commands(name), database or self.settings.database)

    def _run(self, script: str, database: str) -> str:
        tools = [str(Path(sys.executable).parent)]
        if self.kind == "postgresql":
            tools.append(str(executable("pg_dump").parent))
        variables = {
            "PATH": os.pathsep.join([*tools, os.environ["PATH"]]),
            "BACKUP": str(self.backup),
            "DATABASE": self.settings.database,
            "FILE": str(path_of(self.settings.database)),
            "RESTORED": self.restored,
            "IDENTITY_DATABASE": database,
            "IDENTITY_MASTER_KEY_FILE": self.settings.master_key_file,
            "IDENTITY_ISSUER": self.settings.issuer,
        }
        command = ["bash", "-e", "-u", "-o", "pipefail", "-c", script]
        done = subprocess.run(command, env=os.environ | variables, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout


@pytest.fixture
def databases(postgres: PostgresServer) -> Databases:
    """Of a server that keeps what it acknowledges: the doctor, whom the manual asks, finds fault with any other."""
    return Databases(postgres)


@pytest.fixture
def place(
    request: pytest.FixtureRequest, make_settings: MakeSettings, service_database: str, tmp_path: Path
) -> Iterator[Place]:
    backup = tmp_path / "backup"
    if not is_postgres(service_database):
        yield Place(make_settings(), backup, service_database)
        return
    place = Place(make_settings(), backup, f"{service_database}_restored")
    yield place
    request.getfixturevalue("databases").drop(place.restored)


@asynccontextmanager
async def serving(settings: Settings, *addresses: str) -> AsyncIterator[list[Api]]:
    """Replicas over one database, each at its address."""
    async with AsyncExitStack() as stack:
        replicas = []
        for address in addresses:
            server = Server(replace(settings, listen=address))
            api = Api(server, await server.start())
            stack.push_async_callback(server.stop)
            stack.push_async_callback(api.channel.close)
            replicas.append(api)
        yield replicas


@dataclass
class Peer:
    """A service that verifies tokens by itself."""

    identity: aio.Identity

    def __post_init__(self) -> None:
        trust = self.identity.trust
        self._verifier = Verifier(audiences=frozenset({"internal"}), trust=trust, clock=SystemClock())

    def accepts(self, token: str) -> bool:
        try:
            self._verifier.verify(token)
        except TokenError:
            return False
        return True


@asynccontextmanager
async def watching(replicas: list[Api], secret: str) -> AsyncIterator[list[Peer]]:
    """A peer at each replica; they outlive these."""
    async with AsyncExitStack() as stack:
        connections = [aio.Connection(api.address, "shop", secret) for api in replicas]
        yield [Peer(await stack.enter_async_context(aio.Identity(connection))) for connection in connections]


@dataclass
class History:
    """What was issued, and what was taken back by an acknowledged call."""

    issued: list[authentication_pb2.TokenSet] = field(default_factory=list)
    revoked: list[str] = field(default_factory=list)
    accepted_again: list[str] = field(default_factory=list)

    async def load(self, replicas: list[Api], stop: asyncio.Event) -> None:
        """Log in here and there, and take every second token back, until it is over. No call may fail."""
        admin = await replicas[0].admin()
        for number in count():
            if stop.is_set():
                return
            tokens = await replicas[number % len(replicas)].login("carol")
            self.issued.append(tokens)
            if number % 4 < 2:
                request = revocation_pb2.RevokeTokenRequest(token=tokens.access_token)
                await replicas[-1].revocations.RevokeToken(request, metadata=admin)
                self.revoked.append(tokens.access_token)

    async def judge(self, peers: list[Peer]) -> None:
        """Ask *peers* again and again about what was revoked; a peer that has refused a token must not take it."""
        refused: set[tuple[int, str]] = set()
        while True:
            for (number, peer), token in product(enumerate(peers), list(self.revoked)):
                if not peer.accepts(token):
                    refused.add((number, token))
                elif (number, token) in refused:
                    self.accepted_again.append(token)
            await asyncio.sleep(0.05)

    async def grew(self) -> None:
        """Return when more was issued, and more revoked."""
        least = len(self.issued) + MORE
        await until(lambda: len(self.issued) >= least)


async def until(is_so: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not is_so():
            await asyncio.sleep(0.02)


async def live_a_day(place: Place, replicas: list[Api], history: History) -> set[str]:
    """Issue and revoke, take the backup meanwhile, and go on; -> the sessions acknowledged before it began."""
    stop = asyncio.Event()
    async with asyncio.TaskGroup() as group:
        group.create_task(history.load(replicas, stop))
        try:
            await history.grew()
            before = {tokens.session_id for tokens in history.issued}
            await place.run(f"{place.kind} backup")
            await history.grew()
        finally:
            stop.set()
    assert place.backup.stat().st_mode & 0o077 == 0
    return before


@pytest.mark.parametrize("service_database", KINDS, indirect=True)
async def test_after_a_restore_and_a_fence_nothing_that_was_issued_or_revoked_before_is_accepted(place: Place) -> None:
    history = History()
    async with AsyncExitStack() as stack:
        async with serving(place.settings, *["127.0.0.1:0"] * place.replica_count) as replicas:
            first = replicas[0]
            assert first.server.house is not None
            await prepare(first.server.house)
            await first.create_user("carol")
            secret = (await first.create_service("shop", "peer")).client_secret
            session = await first.open_session("carol", "shop")
            before = await stack.enter_async_context(watching(replicas, secret))
            judging = asyncio.create_task(history.judge(before))
            stack.callback(judging.cancel)
            acknowledged = await live_a_day(place, replicas, history)
            request = revocation_pb2.RevokeTokenRequest(token=session.session_token)
            await first.revocations.RevokeToken(request, metadata=await first.admin())
        await place.run(f"{place.kind} restore")
        kept = {grant_id for (grant_id,) in query(place.restored, "SELECT grant_id FROM grants")}
        assert acknowledged <= kept
        assert not {tokens.session_id for tokens in history.issued} <= kept, "the backup is not old"
        assert "nothing that was issued before is accepted" in await place.run("after a restore", place.restored)
        addresses = [api.address for api in replicas]
        async with serving(replace(place.settings, database=place.restored), *addresses) as replicas:
            after = await stack.enter_async_context(watching(replicas, secret))
            epoch = after[0].identity.trust.epoch
            await until(lambda: all(peer.identity.trust.epoch == epoch for peer in before))
            await nothing_is_accepted(history, replicas, before + after)
            shop = bearer((await replicas[0].login_service("shop", secret)).access_token)
            for api in replicas:
                assert not (await api.introspect(session.session_token, shop)).active
                token = (await api.login("carol")).access_token
                assert all(peer.accepts(token) for peer in before + after)
        assert not judging.done()
    assert history.accepted_again == []


async def nothing_is_accepted(history: History, replicas: list[Api], peers: list[Peer]) -> None:
    """Neither an access token, by peers and replicas, nor a refresh token."""
    for tokens in history.issued:
        assert not any(peer.accepts(tokens.access_token) for peer in peers)
        for api in replicas:
            assert api.server.house is not None
            with pytest.raises(TokenError):
                api.server.house.verifier.verify_any_audience(tokens.access_token)
    for number, tokens in enumerate(history.issued):
        error = await refusal(replicas[number % len(replicas)].refresh(tokens.refresh_token))
        assert isinstance(error, SessionEnded | RefreshInvalid | StoreSetBack)

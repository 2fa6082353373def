"""Clients of a cluster: each call goes to whichever replica, and into the history."""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Awaitable
from dataclasses import dataclass, field
from typing import Any

import grpc
import grpc.aio
from google.rpc import error_details_pb2, status_pb2

from identity.v1 import (
    authentication_pb2,
    authentication_pb2_grpc,
    revocation_pb2,
    revocation_pb2_grpc,
    session_pb2_grpc,
    token_pb2,
    token_pb2_grpc,
)
from identity_client import status
from tests.faults.harness.cluster import Cluster, Opened
from tests.faults.harness.history import OK, History, Issued, Refresh, Revoke, Use, expiry, now
from tests.rpc.api import ADMIN_PASSWORD, Metadata, bearer

CALL_SECONDS = 10.0
PAUSE_SECONDS = 0.01
KEPT_TOKENS = 200
"""So many access tokens of a session stay with its client, who shows expired ones, too."""

_CHANNEL_OPTIONS = (
    ("grpc.use_local_subchannel_pool", 1),  # a shared one would remember for long that a replica was dead
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.min_reconnect_backoff_ms", 1_000),
    ("grpc.max_reconnect_backoff_ms", 100),
)


class Door:
    """The stubs of one replica."""

    def __init__(self, name: str, address: str) -> None:
        self.name = name
        self.channel = grpc.aio.insecure_channel(address, options=_CHANNEL_OPTIONS)
        self.authentication: Any = authentication_pb2_grpc.AuthenticationServiceStub(self.channel)
        self.tokens: Any = token_pb2_grpc.TokenServiceStub(self.channel)
        self.sessions: Any = session_pb2_grpc.SessionServiceStub(self.channel)
        self.revocations: Any = revocation_pb2_grpc.RevocationServiceStub(self.channel)


@dataclass
class Answers:
    """How calls ended that got an answer from the service itself, and how long the slowest took."""

    counts: dict[str, int] = field(default_factory=dict)
    without_delay: int = 0
    """UNAVAILABLE and RESOURCE_EXHAUSTED that do not say when to repeat the call."""

    slowest: float = 0.0

    def note(self, outcome: str) -> None:
        self.counts[outcome] = self.counts.get(outcome, 0) + 1


class Crowd:
    """Every client of a run, their doors to the replicas, and what they saw."""

    def __init__(self, cluster: Cluster, seed: int) -> None:
        print(f"seed {seed}: IDENTITY_TEST_SEED={seed} replays it")
        self.seed = seed
        self.history = History()
        self.answers = Answers()
        self.doors = [Door(replica.name, replica.address) for replica in cluster.replicas]
        for door in self.doors:
            self.history.audiences[door.name] = frozenset({"identity", "internal", "orders"})
        self.admin: Metadata = ()

    def chance(self, who: object) -> random.Random:
        """The decisions of one client: the same for the same seed, whatever the others do."""
        return random.Random(f"{self.seed} {who}")

    async def log_in_admin(self) -> None:
        """Have the admin's token at hand, from the first replica."""
        password = authentication_pb2.PasswordCredential(username="root", password=ADMIN_PASSWORD)
        request = authentication_pb2.AuthenticateRequest(password=password, audience="identity")
        answer = await self.doors[0].authentication.Authenticate(request, timeout=CALL_SECONDS)
        self.admin = bearer(answer.tokens.access_token)

    async def ask(self, call: Any, cancel_after: float | None = None) -> tuple[str, Any]:
        """-> OK and the answer, or why there is none. *cancel_after*: seconds until the caller gives up."""
        timer = asyncio.get_running_loop().call_later(cancel_after, call.cancel) if cancel_after is not None else None
        try:
            outcome, answer = OK, await call
        except grpc.aio.AioRpcError as error:
            outcome, answer = self._outcome(error), None
        except asyncio.CancelledError:
            if timer is None or not call.cancelled():
                raise
            outcome, answer = "CANCELLED", None
        finally:
            if timer is not None:
                timer.cancel()
        self.answers.note(outcome)
        return outcome, answer

    def _outcome(self, error: grpc.aio.AioRpcError) -> str:
        ours = status.from_trailers(error.trailing_metadata())
        if ours is None:
            return error.code().name
        if ours.status in ("UNAVAILABLE", "RESOURCE_EXHAUSTED") and not _says_when(error):
            self.answers.without_delay += 1
        return ours.reason

    async def revoke(self, session_id: str, door: Door) -> str:
        """Have the admin end a session."""
        request = revocation_pb2.RevokeGrantRequest(grant_id=session_id)
        start = now()
        outcome, _ = await self.ask(door.revocations.RevokeGrant(request, metadata=self.admin, timeout=CALL_SECONDS))
        self.history.revokes.append(Revoke(session_id, start, now(), outcome))
        return outcome

    async def close(self) -> None:
        for door in self.doors:
            await door.channel.close()


class Client:
    """The holder of one session. It repeats what got no answer, and never presents but its newest refresh token."""

    def __init__(self, crowd: Crowd, opened: Opened, number: int) -> None:
        self.session_id = opened.session_id
        self.newest = opened.refresh_token
        self.count = 0
        self.received: deque[str] = deque(maxlen=KEPT_TOKENS)
        self._audience = opened.audience
        self._crowd = crowd
        self.chance = crowd.chance(f"client {number}")

    @classmethod
    def of(cls, crowd: Crowd, tokens: authentication_pb2.TokenSet, number: int) -> Client:
        """The holder of what a log-in brought."""
        client = cls(crowd, Opened(tokens.session_id, "", "internal", tokens.refresh_token), number)
        client._keep(tokens, 0)
        return client

    def successor(self, opened: Opened) -> Client:
        """Another session of the same client."""
        client = Client(self._crowd, opened, 0)
        client.chance = self.chance
        return client

    @property
    def access(self) -> str:
        """The newest access token."""
        return self.received[-1]

    @property
    def door(self) -> Door:
        return self.chance.choice(self._crowd.doors)

    async def refresh(self, *, twice: bool = False) -> str:
        """Present the newest token, to one replica or to two at once; -> how it ended."""
        token, count = self.newest, self.count
        outcomes = await asyncio.gather(*(self._refresh(token, count, self.door) for _ in range(1 + twice)))
        return OK if OK in outcomes else outcomes[0]

    async def _refresh(self, token: str, count: int, door: Door, cancel_after: float | None = None) -> str:
        request = token_pb2.RefreshRequest(refresh_token=token)
        start = now()
        outcome, answer = await self._crowd.ask(door.tokens.Refresh(request, timeout=CALL_SECONDS), cancel_after)
        successor = answer.tokens.refresh_token if answer else ""
        self._crowd.history.refreshes.append(Refresh(self.session_id, start, now(), outcome, count, successor))
        if answer is not None:
            self._keep(answer.tokens, count + 1)
        return outcome

    def _keep(self, tokens: authentication_pb2.TokenSet, count: int) -> None:
        issued = Issued(self._audience, expiry(tokens.access_token_expire_time.seconds))
        self._crowd.history.issued[tokens.access_token] = issued
        self.newest, self.count = tokens.refresh_token, count
        self.received.append(tokens.access_token)

    async def refresh_at(self, door: Door, cancel_after: float | None = None) -> str:
        """Present the newest token to one replica."""
        return await self._refresh(self.newest, self.count, door, cancel_after)

    async def refresh_until_answered(self) -> str:
        """Go on, by the next replica if one does not answer, as clients do."""
        async with asyncio.timeout(60):
            while (outcome := await self.refresh()) in _SILENCE:
                await asyncio.sleep(PAUSE_SECONDS)
        return outcome

    async def revoke(self, cancel_after: float | None = None) -> str:
        """Log out, by the refresh token."""
        request = token_pb2.RevokeRequest(token=self.newest)
        start = now()
        outcome, _ = await self._crowd.ask(self.door.tokens.Revoke(request, timeout=CALL_SECONDS), cancel_after)
        self._crowd.history.revokes.append(Revoke(self.session_id, start, now(), outcome))
        return outcome

    async def show(self, place: str, token: str, call: Awaitable[str], bound: float = 0.0) -> str:
        """Show *token* to *place* by *call*; -> how it ended."""
        start = now()
        outcome = await call
        self._crowd.history.uses.append(Use(self.session_id, start, now(), outcome, token, place, bound))
        return outcome


_SILENCE = ("DEPENDENCY_DOWN", "UNAVAILABLE", "DEADLINE_EXCEEDED", "OVERLOADED", "STATE_CONFLICT")


def _says_when(error: grpc.aio.AioRpcError) -> bool:
    for key, value in error.trailing_metadata() or ():
        if key == status.STATUS_DETAILS_KEY and isinstance(value, bytes):
            details = status_pb2.Status.FromString(value).details
            return any(detail.Is(error_details_pb2.RetryInfo.DESCRIPTOR) for detail in details)
    return False

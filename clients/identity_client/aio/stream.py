"""The peer's end of WatchTrust: keeps a TrustState fresh, through cuts, gaps and renewals of its own token."""

from __future__ import annotations

import asyncio
import logging
import random
from typing import TYPE_CHECKING, TypeAlias

import grpc
import grpc.aio

from identity.v1 import trust_pb2 as pb
from identity_client import status
from identity_client.aio.token_source import AccessToken, TokenSource
from identity_client.clock import Clock
from identity_client.errors import IdentityError
from identity_client.trust import wire
from identity_client.trust.state import TrustDiverged, TrustGap, TrustState

if TYPE_CHECKING:  # the asyncio stubs exist as types only
    from identity.v1.trust_pb2_grpc import TrustServiceAsyncStub

SILENCE_SECONDS = 3.0
"""Heartbeats come each second: a stream that is silent for so long is dead."""

_FIRST_DELAY_SECONDS = 0.1
_LONGEST_DELAY_SECONDS = 5.0
_SOUND_SECONDS = 1.0  # a stream that lasted so long was no failure
_DIVERGED_SNAPSHOT_SECONDS = 60.0
_LOG_SECONDS = 60.0

_log = logging.getLogger(__name__)
_random = random.SystemRandom()


_Call: TypeAlias = "grpc.aio.UnaryStreamCall[pb.WatchTrustRequest, pb.WatchTrustResponse]"


class Silence(Exception):
    """The stream brought nothing, or nothing new, for longer than a few heartbeats."""


class TrustStream:
    """Applies WatchTrust to *trust*, for ever.

    A cut stream is resumed from the held epoch and version; the first attempt is immediate, later ones wait with
    exponential back-off and full jitter, 0.1 to 5 s. After a gap a whole snapshot is asked for; after a digest that
    differs too, but at most once a minute: meanwhile the heartbeats do not count, so that the state grows stale and
    the guard closes rather than judges by it. The stream is opened anew before its own token expires, and taken for
    dead after SILENCE_SECONDS without a message.
    """

    def __init__(
        self,
        stub: TrustServiceAsyncStub,
        *,
        trust: TrustState,
        tokens: TokenSource,
        clock: Clock,
    ) -> None:
        self._stub = stub
        self._trust = trust
        self._tokens = tokens
        self._clock = clock
        self._needs_snapshot = False
        self._diverged_at = float("-inf")
        self._logged_at = float("-inf")
        self._logged_reason = ""
        self.ready = asyncio.Event()
        """Set once the keys and a whole snapshot are held."""
        self.problem: Exception | None = None
        """Why the stream last ended."""

    async def run(self) -> None:
        """Follows the stream until cancelled; no failure ends it."""
        loop = asyncio.get_running_loop()
        failures = 0
        while True:
            start = loop.time()
            self.problem = await self._follow()
            failures = 0 if loop.time() - start >= _SOUND_SECONDS else failures + 1
            self._log_problem()
            await asyncio.sleep(delay_seconds(failures))

    def _log_problem(self) -> None:
        """One line for each new reason, and for a lasting one a line a minute."""
        now = asyncio.get_running_loop().time()
        reason = _describe(self.problem) if self.problem is not None else ""
        if reason and (reason != self._logged_reason or now - self._logged_at >= _LOG_SECONDS):
            _log.warning("the trust stream ended and is opened again: %s", reason)
            self._logged_at = now
        self._logged_reason = reason

    async def _follow(self) -> Exception | None:
        """Follows one stream to its end. Answers what ended it, None if it is merely to be renewed."""
        try:
            await self._read(await self._tokens.get())
        except (IdentityError, Silence) as error:
            return error
        except TrustGap as error:
            self._needs_snapshot = True
            return error
        except Exception as error:
            # A message that makes no sense, or a defect of ours: begin again rather than grow stale for ever.
            _log.exception("the trust stream met something unforeseen")
            self._needs_snapshot = True
            return error
        return None

    async def _read(self, token: AccessToken) -> None:
        transit = wire.Transit(self._clock)
        call = self._stub.WatchTrust(self._request(), metadata=token.metadata)
        try:
            while not self._tokens.is_due(token):
                message = await self._next(call)
                if message is None:
                    return
                self._apply(message, transit)
                if transit.has_slipped:
                    raise Silence("messages take ever longer, or the sender's clock was set back")
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.UNAUTHENTICATED:
                self._tokens.discard(token)
            raise status.from_rpc_error(error) from error
        finally:
            call.cancel()

    async def _next(self, call: _Call) -> pb.WatchTrustResponse | None:
        """The next message; None at a regular end."""
        try:
            async with asyncio.timeout(SILENCE_SECONDS):
                message = await call.read()
        except TimeoutError:
            raise Silence(f"no message for {SILENCE_SECONDS:g} s") from None
        return message if isinstance(message, pb.WatchTrustResponse) else None

    def _request(self) -> pb.WatchTrustRequest:
        if self._needs_snapshot or not self._trust.is_ready:
            return pb.WatchTrustRequest()
        return pb.WatchTrustRequest(epoch=self._trust.epoch, version=self._trust.version)

    def _apply(self, message: pb.WatchTrustResponse, transit: wire.Transit) -> None:
        try:
            wire.apply_event(self._trust, message, transit)
        except TrustDiverged:
            now = self._clock.monotonic()
            if now - self._diverged_at < _DIVERGED_SNAPSHOT_SECONDS:
                return
            self._diverged_at = now
            raise
        if message.HasField("heartbeat"):
            self._needs_snapshot = False
        if self._trust.is_ready:
            self.ready.set()


def delay_seconds(failures: int) -> float:
    """How long to wait before the next attempt after so many failures in a row: not at all after the first."""
    if failures <= 1:
        return 0.0
    return _random.uniform(0.0, min(_LONGEST_DELAY_SECONDS, _FIRST_DELAY_SECONDS * 2.0 ** min(failures - 2, 16)))


def _describe(problem: Exception) -> str:
    return problem.reason if isinstance(problem, IdentityError) else str(problem)

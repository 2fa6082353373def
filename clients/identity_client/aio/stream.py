"""The peer's end of WatchTrust: keeps a TrustState fresh, through cuts, gaps and renewals of its own token."""

from __future__ import annotations

import asyncio
import logging
import random
from typing import Never, TypeAlias

import grpc
import grpc.aio

from identity.v1 import trust_pb2 as pb
from identity_client import status
from identity_client.aio.endpoints import Endpoint, Endpoints
from identity_client.aio.token_source import AccessToken, TokenSource
from identity_client.clock import Clock
from identity_client.errors import IdentityError, PermissionMissing, Unauthenticated
from identity_client.trust import wire
from identity_client.trust.metrics import TrustMetrics
from identity_client.trust.state import LONGEST_SKEW_SECONDS, TrustDiverged, TrustGap, TrustState

SILENCE_SECONDS = 3.0
"""Heartbeats come each second: a stream that is silent for so long is dead."""

ALARMING_SKEW_SECONDS = 30.0

_FIRST_DELAY_SECONDS = 0.1
_LONGEST_DELAY_SECONDS = 1.0  # with that of the channel, normal again two seconds after the service is back
_SOUND_SECONDS = 1.0  # a stream that lasted so long was no failure
_DIVERGED_SNAPSHOT_SECONDS = 60.0
_LOG_SECONDS = 60.0
_SUCCESSOR_SECONDS = 10.0  # how long a successor's opening may take
_SUCCESSOR_RETRY_SECONDS = 5.0

_log = logging.getLogger(__name__)
_random = random.SystemRandom()


_Call: TypeAlias = "grpc.aio.UnaryStreamCall[pb.WatchTrustRequest, pb.WatchTrustResponse]"


class Silence(Exception):
    """The stream brought nothing, or nothing new, for longer than a few heartbeats."""


class ClocksApart(Exception):
    """The service's clock and ours are too far apart to judge expiry."""


class _Stream:
    """One call of WatchTrust. Reading raises Silence, IdentityError."""

    def __init__(self, endpoint: Endpoint, token: AccessToken, request: pb.WatchTrustRequest, clock: Clock) -> None:
        self.endpoint = endpoint
        self.token = token
        self.transit = wire.Transit(clock)
        self.unapplied: list[pb.WatchTrustResponse] = []
        """What a successor has brought before it takes over."""
        self._call: _Call = endpoint.trust.WatchTrust(request, metadata=token.metadata)

    async def next(self) -> pb.WatchTrustResponse:
        """The next message."""
        try:
            async with asyncio.timeout(SILENCE_SECONDS):
                message = await self._call.read()
        except TimeoutError:
            raise Silence(f"no message for {SILENCE_SECONDS:g} s") from None
        except grpc.aio.AioRpcError as error:
            raise status.from_rpc_error(error) from error
        if not isinstance(message, pb.WatchTrustResponse):
            raise Silence("the service ended the stream")
        return message

    def close(self) -> None:
        """End the call."""
        self._call.cancel()


class TrustStream:
    """Applies WatchTrust to *trust*, for ever. Runs on one event loop, whichever that is.

    A cut stream is resumed from the held epoch and version, at the next endpoint if there is one; an attempt at each
    is immediate, later ones wait with exponential back-off and full jitter, 0.1 to 1 s. After a gap a whole snapshot
    is asked for; after a digest that differs too, but at most once a minute: meanwhile the heartbeats do not count, so
    that the state grows stale and the guard closes rather than judges by it. A stream is taken for dead after
    SILENCE_SECONDS without a message.

    Before its own token expires, or once its connection is to be closed for its age, a successor is opened; it takes
    over when it has brought its first heartbeat, so that the state stays fresh throughout.
    """

    def __init__(
        self,
        endpoints: Endpoints,
        *,
        trust: TrustState,
        tokens: TokenSource,
        clock: Clock,
        metrics: TrustMetrics | None = None,
    ) -> None:
        self._endpoints = endpoints
        self._trust = trust
        self._tokens = tokens
        self._clock = clock
        self._metrics = metrics or TrustMetrics()
        self._needs_snapshot = False
        self._is_snapshot_new = False
        self._diverged_at = float("-inf")
        self._next_successor_at = float("-inf")
        self._logged_at = float("-inf")
        self._logged_reason = ""
        self._skew_logged_at = float("-inf")
        self.ready = asyncio.Event()
        """Set once the keys and a whole snapshot are held."""
        self.problem: Exception | None = None
        """Why the stream last ended, or does not count."""

    async def run(self) -> None:
        """Follows the stream until cancelled; no failure ends it."""
        loop = asyncio.get_running_loop()
        failures = 0
        while True:
            start = loop.time()
            self.problem = await self._follow()
            failures = 1 if loop.time() - start >= _SOUND_SECONDS else failures + 1
            self._report(self.problem)
            await asyncio.sleep(delay_seconds(failures - len(self._endpoints) + 1))

    async def _follow(self) -> Exception:
        """Follows a stream and its successors until one breaks off. Answers why."""
        try:
            stream = self._open(await self._tokens.fresh())
            self._trust.drop_snapshot()
            await self._read(stream)
        except (IdentityError, Silence, TrustGap) as error:
            self._needs_snapshot |= isinstance(error, TrustGap)
            return error
        except Exception as error:
            # A message that makes no sense, or a defect of ours: begin again rather than grow stale for ever.
            _log.exception("the trust stream met something unforeseen")
            self._needs_snapshot = True
            return error

    async def _read(self, stream: _Stream) -> Never:
        successor: asyncio.Task[_Stream | None] | None = None
        try:
            while True:
                message = await self._next(stream)
                self._apply(message, stream.transit)
                if stream.transit.has_slipped:
                    raise Silence("messages take ever longer, or the sender's clock was set back")
                if successor is None and self._is_due(stream):
                    successor = asyncio.create_task(self._succeed())
                if successor is not None and successor.done():
                    stream, successor = self._hand_over(stream, successor.result()), None
        finally:
            stream.close()
            if successor is not None:
                await _discard(successor)

    async def _next(self, stream: _Stream) -> pb.WatchTrustResponse:
        """The stream's next message. What a failure says about its token or its endpoint is noted."""
        try:
            return await stream.next()
        except Unauthenticated:
            self._tokens.discard(stream.token)
            raise
        except PermissionMissing:
            raise  # another endpoint would say the same
        except (IdentityError, Silence):
            self._endpoints.leave(stream.endpoint)
            raise

    def _open(self, token: AccessToken) -> _Stream:
        request = pb.WatchTrustRequest()
        if self._trust.is_ready and not self._needs_snapshot:
            request = pb.WatchTrustRequest(epoch=self._trust.epoch, version=self._trust.version)
        return _Stream(self._endpoints.current, token, request, self._clock)

    # -- the successor -----------------------------------------------------------------------------------------

    def _is_due(self, stream: _Stream) -> bool:
        is_old = self._tokens.is_due(stream.token) or not stream.endpoint.is_connected
        return is_old and asyncio.get_running_loop().time() >= self._next_successor_at

    async def _succeed(self) -> _Stream | None:
        """A stream that has proved itself: it resumed and brought a heartbeat, or begins with a snapshot.

        None where that failed: the old one goes on meanwhile, and another attempt follows.
        """
        try:
            stream = self._open(await self._tokens.fresh())
            try:
                async with asyncio.timeout(_SUCCESSOR_SECONDS):
                    await self._collect(stream)
            except BaseException:
                stream.close()
                raise
        except (IdentityError, Silence, TimeoutError) as error:
            _log.warning("the trust stream could not be renewed yet: %s", _describe(error))
            delay = _random.uniform(0.5, 1.0) * _SUCCESSOR_RETRY_SECONDS
            self._next_successor_at = asyncio.get_running_loop().time() + delay
            return None
        return stream

    async def _collect(self, stream: _Stream) -> None:
        while True:
            message = await self._next(stream)
            kind = message.WhichOneof("event")
            if kind == "heartbeat":
                # Only the way it took is noted: by the time of the change-over the old stream may know more.
                stream.transit.delay_seconds(message.heartbeat)
                return
            stream.unapplied.append(message)
            if kind == "snapshot_start":
                return

    def _hand_over(self, stream: _Stream, successor: _Stream | None) -> _Stream:
        if successor is None:
            return stream
        stream.close()
        self._trust.drop_snapshot()
        for message in successor.unapplied:
            self._apply(message, successor.transit)
        self._metrics.stream_renewed()
        return successor

    # -- messages ----------------------------------------------------------------------------------------------

    def _apply(self, message: pb.WatchTrustResponse, transit: wire.Transit) -> None:
        before = self._trust.version
        try:
            wire.apply_event(self._trust, message, transit)
        except TrustDiverged:
            now = self._clock.monotonic()
            if now - self._diverged_at < _DIVERGED_SNAPSHOT_SECONDS:
                return
            self._diverged_at = now
            self._needs_snapshot = True
            raise
        match message.WhichOneof("event"):
            case "heartbeat":
                self._needs_snapshot = False
                self._watch_clocks()
                if self._is_snapshot_new and not self._trust.is_arriving:
                    self._is_snapshot_new = False
                    self._metrics.snapshot_applied(self._trust.entry_count())
            case "snapshot_start":
                self._is_snapshot_new = True
            case "changes":
                self._metrics.changes_applied(self._trust.version - before)
        if self._trust.is_ready:
            self.ready.set()

    def _watch_clocks(self) -> None:
        """Alarms once a minute while the clocks are far apart."""
        skew, now = self._trust.clock_skew_seconds, asyncio.get_running_loop().time()
        if abs(skew) <= ALARMING_SKEW_SECONDS:
            return
        self.problem = ClocksApart(f"the identity service's clock is {skew:+.0f} s from ours: set both by NTP")
        if now - self._skew_logged_at >= _LOG_SECONDS:
            self._skew_logged_at = now
            consequence = "no call is admitted" if abs(skew) > LONGEST_SKEW_SECONDS else "expiry is judged wrongly"
            _log.error("%s; until then %s", self.problem, consequence)

    def _report(self, problem: Exception) -> None:
        """One line for each new reason, and for a lasting one a line a minute."""
        now, reason = asyncio.get_running_loop().time(), _describe(problem)
        self._metrics.stream_ended(reason)
        if reason != self._logged_reason or now - self._logged_at >= _LOG_SECONDS:
            _log.warning("the trust stream ended and is opened again: %s", reason)
            self._logged_at = now
        self._logged_reason = reason


async def _discard(successor: asyncio.Task[_Stream | None]) -> None:
    """Ends a successor that is no longer wanted, whether it is on its way or ready."""
    successor.cancel()
    [stream] = await asyncio.gather(successor, return_exceptions=True)
    if isinstance(stream, _Stream):
        stream.close()


def delay_seconds(failures: int) -> float:
    """How long to wait before the next attempt after so many failures in a row: not at all after the first."""
    if failures <= 1:
        return 0.0
    return _random.uniform(0.0, min(_LONGEST_DELAY_SECONDS, _FIRST_DELAY_SECONDS * 2.0 ** min(failures - 2, 16)))


def _describe(problem: Exception) -> str:
    return problem.reason if isinstance(problem, IdentityError) else str(problem)

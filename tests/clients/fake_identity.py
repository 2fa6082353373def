"""An identity service that does as it is told: the real contract on a real port, its events written by the test."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
import grpc.aio

from identity.v1 import (
    authentication_pb2,
    authentication_pb2_grpc,
    token_pb2,
    token_pb2_grpc,
    trust_pb2,
    trust_pb2_grpc,
)
from identity_client.tokens import opaque
from identity_client.tokens.claims import NO_END
from identity_client.trust import wire
from identity_client.trust.entries import Entry
from identity_client.trust.state import TrustState

from .issuer import ISSUER, FixedClock, Issuer, opaque_text

CLIENT_ID = "orders"
CLIENT_SECRET = "idc_a-secret-that-no-log-may-show"
_CUT = object()


class FakeIdentity(
    authentication_pb2_grpc.AuthenticationServiceServicer,
    token_pb2_grpc.TokenServiceServicer,
    trust_pb2_grpc.TrustServiceServicer,
    grpc.aio.ServerInterceptor,
):
    """Counts every RPC by name, keeps every WatchTrust request, and streams what `revoke` and the like order."""

    def __init__(
        self, clock: FixedClock, heartbeat_seconds: float = 0.05, options: tuple[tuple[str, int], ...] = ()
    ) -> None:
        self.clock = clock
        self._options = options
        self.issuer = Issuer(clock)
        self.calls: Counter[str] = Counter()
        self.resumes: list[tuple[str, int]] = []
        self.standing = trust_pb2.TOKEN_STANDING_LIVE
        self.grants: dict[str, token_pb2.IntrospectResponse] = {}
        self.refuses_introspection = False
        self.answers_introspection = asyncio.Event()
        self.answers_introspection.set()
        self.token_lifetime_seconds = 600
        self.refuses_watchers = False
        self.refusal = grpc.StatusCode.UNAUTHENTICATED
        self.admits_watchers = asyncio.Event()
        """While it is not set, a new stream is sent its opening, and no heartbeat."""
        self.admits_watchers.set()
        self.resumes_streams = True
        self.skew_seconds = 0.0
        self.sends_snapshots = True
        self.heartbeat_digest = ""
        self.heartbeats = 0
        self.keys = [self.issuer.public_key]
        self.state = TrustState(clock)
        self.state.set_keys(ISSUER, self.keys)
        self.state.begin_snapshot("epoch-1", 7, 0)
        self._heartbeat_seconds = heartbeat_seconds
        self._streams: list[asyncio.Queue[Any]] = []
        self._server: grpc.aio.Server | None = None
        self.address = "127.0.0.1:0"

    # -- what tests order --------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Listens, on the same port as before if there was one."""
        self._server = grpc.aio.server(interceptors=[self], options=[("grpc.so_reuseport", 0), *self._options])
        authentication_pb2_grpc.add_AuthenticationServiceServicer_to_server(self, self._server)
        token_pb2_grpc.add_TokenServiceServicer_to_server(self, self._server)
        trust_pb2_grpc.add_TrustServiceServicer_to_server(self, self._server)
        self.address = f"127.0.0.1:{self._server.add_insecure_port(self.address)}"
        await self._server.start()

    async def stop(self) -> None:
        if self._server is not None:
            await self._server.stop(0)
            self._server = None

    @property
    def stream_count(self) -> int:
        return len(self._streams)

    def replica(self) -> FakeIdentity:
        """Another server of the same service: what is committed here is known there; its streams are its own."""
        other = FakeIdentity(self.clock, self._heartbeat_seconds)
        other.issuer, other.keys, other.state = self.issuer, self.keys, self.state
        return other

    def revoke(self, *entries: Entry) -> None:
        """Commits *entries* as the next version and streams it."""
        version = self.state.version + 1
        self.state.apply(version, version, entries)
        self._send(_changes(version, entries))

    def open_grant(self, kind: opaque.Kind, **changes: object) -> str:
        """Creates a session or API key of a clerk; -> its text."""
        claims = self.issuer.claims(**changes)  # type: ignore[arg-type]
        raw_token = opaque_text(kind, claims.grant_id)
        answer = token_pb2.IntrospectResponse(
            active=True,
            grant_id=claims.grant_id,
            account_id=claims.account_id,
            client_id=claims.client_id,
            audience=claims.audience,
            scopes=claims.scopes,
            roles=claims.roles,
            kind=token_pb2.TOKEN_KIND_SESSION if kind is opaque.Kind.SESSION else token_pb2.TOKEN_KIND_API_KEY,
            generation=claims.generation,
            policy_version=claims.policy_version,
            authentication_methods=claims.authentication_methods,
            certificate_thumbprint=claims.certificate_thumbprint,
        )
        answer.issue_time.FromSeconds(claims.issue_time)
        if claims.expire_time != NO_END:
            answer.expire_time.FromSeconds(claims.expire_time)
        if claims.authentication_time is not None:
            answer.authentication_time.FromSeconds(claims.authentication_time)
        self.grants[raw_token] = answer
        return raw_token

    def lose(self, *entries: Entry) -> None:
        """Commits *entries* as the next version and streams nothing: the following change shows the gap."""
        self.state.apply(self.state.version + 1, self.state.version + 1, entries)

    def publish_keys(self) -> None:
        self._send(trust_pb2.WatchTrustResponse(keys=wire.key_set_message(ISSUER, self.keys)))

    def cut(self) -> None:
        """Ends every stream as a lost connection would."""
        self._send(_CUT)

    def cut_oldest(self) -> None:
        """Ends the oldest stream alone."""
        self._streams[0].put_nowait(_CUT)

    def fall_silent(self) -> None:
        """Keeps the streams open and sends nothing more on them."""
        self._streams.clear()

    def _send(self, event: object) -> None:
        for queue in self._streams:
            queue.put_nowait(event)

    # -- the contract ------------------------------------------------------------------------------------------

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        self.calls[handler_call_details.method.rpartition("/")[2]] += 1
        return await continuation(handler_call_details)

    async def Authenticate(self, request: Any, context: Any) -> authentication_pb2.AuthenticateResponse:
        secret = request.client_secret
        if (secret.client_id, secret.client_secret) != (CLIENT_ID, CLIENT_SECRET):
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, "The credentials are not valid.")
        claims = self.issuer.claims(self.token_lifetime_seconds, audience=request.audience, client_id=CLIENT_ID)
        access = authentication_pb2.AccessGrant(access_token=self.issuer.sign(claims), grant_id=claims.grant_id)
        access.access_token_expire_time.FromSeconds(claims.expire_time)
        return authentication_pb2.AuthenticateResponse(access=access)

    async def ChangePassword(self, request: Any, context: Any) -> authentication_pb2.ChangePasswordResponse:
        await context.abort(grpc.StatusCode.UNIMPLEMENTED, "No peer changes passwords.")
        return authentication_pb2.ChangePasswordResponse()

    async def GetKeys(self, request: Any, context: Any) -> trust_pb2.GetKeysResponse:
        return trust_pb2.GetKeysResponse(key_set=wire.key_set_message(ISSUER, self.keys))

    async def CheckRevocation(self, request: Any, context: Any) -> trust_pb2.CheckRevocationResponse:
        return trust_pb2.CheckRevocationResponse(standings=[self.standing] * len(request.tokens))

    async def Introspect(self, request: Any, context: Any) -> token_pb2.IntrospectResponse:
        if self.refuses_introspection:
            await context.abort(grpc.StatusCode.PERMISSION_DENIED, "The caller lacks a scope.")
        await self.answers_introspection.wait()
        return self.grants.get(request.token, token_pb2.IntrospectResponse())

    async def BatchIntrospect(self, request: Any, context: Any) -> token_pb2.BatchIntrospectResponse:
        raise NotImplementedError

    async def Exchange(self, request: Any, context: Any) -> token_pb2.ExchangeResponse:
        raise NotImplementedError

    async def Refresh(self, request: Any, context: Any) -> token_pb2.RefreshResponse:
        raise NotImplementedError

    async def Revoke(self, request: Any, context: Any) -> token_pb2.RevokeResponse:
        raise NotImplementedError

    async def WatchTrust(self, request: Any, context: Any) -> AsyncIterator[trust_pb2.WatchTrustResponse]:
        self.resumes.append((request.epoch, request.version))
        if self.refuses_watchers:
            await context.abort(self.refusal, "The token was revoked: log in again.")
        queue: asyncio.Queue[Any] = asyncio.Queue()
        self._streams.append(queue)
        opening = self._opening(request)  # of this very moment: whatever comes later is queued
        try:
            yield trust_pb2.WatchTrustResponse(keys=wire.key_set_message(ISSUER, self.keys))
            for event in opening:
                yield event
            await self.admits_watchers.wait()
            async for event in self._following(queue):
                if event is _CUT:
                    await context.abort(grpc.StatusCode.UNAVAILABLE, "cut")
                yield event
        finally:
            if queue in self._streams:
                self._streams.remove(queue)

    def _opening(self, request: Any) -> list[trust_pb2.WatchTrustResponse]:
        """Nothing where the resume point is where we are, or a snapshot."""
        is_held = (request.epoch, request.version) == (self.state.epoch, self.state.version)
        if not self.sends_snapshots or (is_held and self.resumes_streams):
            return []
        entries = list(self.state.entries())
        count, digest = self.state.digest()
        start = trust_pb2.SnapshotStart(
            epoch=self.state.epoch, version=self.state.version, entry_count=count, digest=digest
        )
        opening = [trust_pb2.WatchTrustResponse(snapshot_start=start)]
        if entries:
            opening.append(trust_pb2.WatchTrustResponse(snapshot_part=wire.pack(entries)))
        return opening

    async def _following(self, queue: asyncio.Queue[Any]) -> AsyncIterator[Any]:
        while True:
            try:
                yield await asyncio.wait_for(queue.get(), self._heartbeat_seconds)
            except TimeoutError:
                # Not while a change waits to be sent: a heartbeat announces only what went before it.
                if queue in self._streams and self.sends_snapshots and queue.empty():
                    yield trust_pb2.WatchTrustResponse(heartbeat=self._heartbeat())

    def _heartbeat(self) -> trust_pb2.Heartbeat:
        self.heartbeats += 1
        count, digest = self.state.digest()
        heartbeat = trust_pb2.Heartbeat(
            epoch=self.state.epoch,
            version=self.state.version,
            entry_count=count,
            digest=self.heartbeat_digest or digest,
        )
        heartbeat.server_time.FromSeconds(int(self.clock.now() + self.skew_seconds))
        heartbeat.expired_through.FromSeconds(self.state.expired_through)
        return heartbeat


def _changes(version: int, entries: tuple[Entry, ...]) -> trust_pb2.WatchTrustResponse:
    return trust_pb2.WatchTrustResponse(
        changes=trust_pb2.RevocationChanges(first_version=version, last_version=version, entries=wire.pack(entries))
    )

"""The service on the wire: one grpc.aio server around the house, from the first byte to the last."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import Any

import grpc
from grpc_health.v1 import health, health_pb2_grpc
from grpc_health.v1.health_pb2 import HealthCheckResponse
from grpc_reflection.v1alpha import reflection

from identity_client.access.judge import Judge
from identity_client.access.rules import HEALTH_RULES, Rule, Rules
from identity_client.aio.guard import Guard
from identity_client.clock import Clock, SystemClock
from identity_client.errors import TokenOutdated, TokenRevoked
from identity_client.principal import Principal
from identity_client.tokens.claims import Claims

from .config import Settings
from .domain.introspect import Asker
from .domain.revoke import token_identity
from .domain.values import Standing
from .house import House, open_house
from .metrics import Metrics
from .operations import Operations, Readiness
from .rpc import trust_service
from .rpc.account_service import AccountServicer
from .rpc.audit_service import AuditServicer
from .rpc.authentication_service import AuthenticationServicer
from .rpc.call_log import CallLog
from .rpc.credential_service import CredentialServicer
from .rpc.firewall import Firewall
from .rpc.observing import Observing
from .rpc.open_streams import OpenStreams, StreamLimit
from .rpc.refused_calls import RefusedCalls
from .rpc.revocation_service import RevocationServicer
from .rpc.role_service import RoleServicer
from .rpc.session_service import SessionServicer
from .rpc.signing_key_service import SigningKeyServicer
from .rpc.token_service import TokenServicer
from .rpc.unregistered import Unregistered
from .tls import server_credentials
from .v1 import (
    account_pb2,
    account_pb2_grpc,
    audit_pb2,
    audit_pb2_grpc,
    authentication_pb2,
    authentication_pb2_grpc,
    credential_pb2,
    credential_pb2_grpc,
    revocation_pb2,
    revocation_pb2_grpc,
    role_pb2,
    role_pb2_grpc,
    session_pb2,
    session_pb2_grpc,
    signing_key_pb2,
    signing_key_pb2_grpc,
    token_pb2,
    token_pb2_grpc,
    trust_pb2,
)

_log = logging.getLogger(__name__)

CONTRACT = (
    account_pb2,
    audit_pb2,
    authentication_pb2,
    credential_pb2,
    revocation_pb2,
    role_pb2,
    session_pb2,
    signing_key_pb2,
    token_pb2,
    trust_pb2,
)
"""The modules whose services are served; each of their methods carries its access rule."""

_REFLECTION = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"

_OPTIONS = (
    ("grpc.max_receive_message_length", 64 * 1024),
    ("grpc.max_send_message_length", 1024 * 1024),
    ("grpc.max_metadata_size", 8 * 1024),
    ("grpc.max_concurrent_streams", 1024),  # a connection; beyond it calls are refused, not queued, by grpc's C core
    ("grpc.max_connection_idle_ms", 15 * 60_000),
    ("grpc.max_connection_age_grace_ms", 60_000),
    ("grpc.keepalive_time_ms", 60_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 10_000),
    ("grpc.server_handshake_timeout_ms", 10_000),
)


class Server:
    """Starts, serves and stops. Health is NOT_SERVING until the trust state is loaded, and from the first of stop().

    *interceptors* are those of an embedding program; they stand behind the guard, next to the handlers.
    With *is_sharing_port* other processes may listen on the same port.
    """

    def __init__(
        self,
        settings: Settings,
        clock: Clock | None = None,
        interceptors: Sequence[grpc.aio.ServerInterceptor] = (),
        *,
        is_sharing_port: bool = False,
    ) -> None:
        self._is_sharing_port = is_sharing_port
        self._settings = settings
        self._interceptors = interceptors
        self._clock = clock or SystemClock()
        self._health = health.aio.HealthServicer()
        self._grpc: grpc.aio.Server | None = None
        self.streams = OpenStreams(_trust_limit(settings))
        self.metrics = Metrics()
        self._readiness = Readiness()
        self._operations = Operations(settings, self.metrics, self._readiness)
        self.house: House | None = None
        self.refused_calls: RefusedCalls | None = None

    @property
    def listen(self) -> str:
        """The address that was asked for."""
        return self._settings.listen

    @property
    def http_address(self) -> str:
        """Where /metrics and the other pages are; empty for nowhere."""
        return self._operations.address

    async def start(self) -> str:
        """Serve; -> the bound address, host:port. Raises DependencyDown, RuntimeError (the port is taken)."""
        await self._set_health(HealthCheckResponse.NOT_SERVING)
        await self._operations.start()
        self.house = await open_house(self._settings, self._clock, self.metrics)
        await self._operations.opened(self.house)
        self.refused_calls = RefusedCalls(self.house.stores.audit)
        if self._is_sharing_port:  # connections that came to us before we are ready would be served by none
            await self.house.open_feed()
        self._grpc = self._build(self.house, self.refused_calls)
        address = self._bind(self._grpc)
        await self._grpc.start()
        if not self._is_sharing_port:
            await self.house.open_feed()
        await self._set_health(HealthCheckResponse.SERVING)
        self._readiness.is_serving = True
        return address

    async def wait(self) -> None:
        """Return when the server has stopped."""
        if self._grpc is not None:
            await self._grpc.wait_for_termination()

    async def stop(self, grace_seconds: float = 0) -> None:
        """Say NOT_SERVING, let running calls finish for at most *grace_seconds*, close the stores."""
        self._readiness.is_serving = False
        await self._health.enter_graceful_shutdown()
        if self.house is not None:
            self.house.hub.streams.end()  # else every peer's stream would hold the drain to its last second
            self.house.audit.end_streams()
        if self._grpc is not None:
            await self._grpc.stop(grace_seconds)
        if self.refused_calls is not None:
            await self.refused_calls.written()
        if self.house is not None:
            await self.house.close()
        await self._operations.stop()

    async def _set_health(self, status: Any) -> None:
        for service in ("", *_service_names()):
            await self._health.set(service, status)

    def _build(self, house: House, refused_calls: RefusedCalls) -> grpc.aio.Server:
        firewall = Firewall(refused_calls, self.streams)
        server = grpc.aio.server(
            interceptors=[Observing(self.metrics, CallLog()), firewall, self._guard(house), *self._interceptors],
            options=self._options(),
        )
        handlers: Any = Unregistered(server)
        authentication_pb2_grpc.add_AuthenticationServiceServicer_to_server(
            AuthenticationServicer(house.authenticator, house.machines, self.metrics), handlers
        )
        token_pb2_grpc.add_TokenServiceServicer_to_server(
            TokenServicer(house.refresher, house.revoker, house.exchanger, house.introspector), handlers
        )
        account_pb2_grpc.add_AccountServiceServicer_to_server(
            AccountServicer(house.accounts, house.request_ids), handlers
        )
        session_pb2_grpc.add_SessionServiceServicer_to_server(SessionServicer(house.sessions), handlers)
        role_pb2_grpc.add_RoleServiceServicer_to_server(RoleServicer(house.roles, house.request_ids), handlers)
        credential_pb2_grpc.add_CredentialServiceServicer_to_server(
            CredentialServicer(house.credentials, house.request_ids), handlers
        )
        revocation_pb2_grpc.add_RevocationServiceServicer_to_server(
            RevocationServicer(house.revoker, house.session_revoker, house.explainer, house.stores.revocations),
            handlers,
        )
        signing_key_pb2_grpc.add_SigningKeyServiceServicer_to_server(
            SigningKeyServicer(house.signing_keys, house.request_ids), handlers
        )
        audit_pb2_grpc.add_AuditServiceServicer_to_server(AuditServicer(house.audit), handlers)
        trust_service.add_to_server(trust_service.TrustServicer(house.hub, house.stores.revocations), handlers)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, handlers)
        if self._settings.reflection != "off":
            names = (*_service_names(), health.SERVICE_NAME, reflection.SERVICE_NAME)
            reflection.enable_server_reflection(names, server)
        return server

    def _options(self) -> tuple[tuple[str, int], ...]:
        age_ms = self._settings.connection_age_seconds * 1_000  # grpc itself spreads it by a tenth either way
        # Unless it is meant so, a second server on the port must fail, not share it silently.
        return (*_OPTIONS, ("grpc.so_reuseport", int(self._is_sharing_port)), ("grpc.max_connection_age_ms", age_ms))

    def _guard(self, house: House) -> Guard:
        judge = Judge(rules=self._rules(), verifier=house.verifier, trust=house.hub.state)

        async def confirm(principal: Principal) -> None:
            [standing] = await house.stores.revocations.standings([token_identity(principal.claims)])
            if standing is Standing.REVOKED:
                raise TokenRevoked()
            if standing is Standing.OUTDATED:
                raise TokenOutdated()

        async def introspect(raw_token: str, _: bool) -> Claims:  # always anew: the database is at hand
            return await house.introspector.claims_for(raw_token, Asker(self._settings.service_name))

        return Guard(judge, audience=self._settings.service_name, confirm=confirm, introspect=introspect)

    def _rules(self) -> Rules:
        rules = Rules.from_modules(*CONTRACT) | HEALTH_RULES
        match self._settings.reflection:
            case "open":
                return rules | Rules.from_table({_REFLECTION: Rule(public=True)})
            case "admin":
                admin = Rule(scopes=frozenset({"identity.admin"}), is_confirmed=True)
                return rules | Rules.from_table({_REFLECTION: admin})
            case _:
                return rules

    def _bind(self, server: grpc.aio.Server) -> str:
        listen = self._settings.listen
        credentials = server_credentials(self._settings)
        port = server.add_secure_port(listen, credentials) if credentials else server.add_insecure_port(listen)
        return f"{listen.rpartition(':')[0]}:{port}"


def _trust_limit(settings: Settings) -> StreamLimit:
    return StreamLimit(settings.trust_streams, settings.trust_streams_per_grant, settings.trust_streams_per_grant)


def _service_names() -> tuple[str, ...]:
    return tuple(service.full_name for module in CONTRACT for service in _descriptor(module).services_by_name.values())


def _descriptor(module: Any) -> Any:
    return module.DESCRIPTOR


async def serve_until(server: Server, stop: asyncio.Event, drain_seconds: float) -> None:
    """Serve until *stop* is set, then drain."""
    await stop.wait()
    _log.info("draining for at most %s seconds", drain_seconds)
    await server.stop(drain_seconds)

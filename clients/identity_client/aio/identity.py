"""A peer's connection to the identity service: from it come the guards of the peer's own servers."""

from __future__ import annotations

import asyncio
import contextvars
import logging
import os
from collections.abc import Awaitable, Callable, Collection, Coroutine, Mapping
from types import ModuleType, TracebackType
from typing import Self, TypeVar

import grpc
import grpc.aio

from identity.v1 import token_pb2
from identity.v1 import trust_pb2 as pb
from identity.v1.authentication_pb2_grpc import AuthenticationServiceStub
from identity.v1.token_pb2_grpc import TokenServiceStub
from identity.v1.trust_pb2_grpc import TrustServiceStub
from identity_client import status
from identity_client.access.gate import Process
from identity_client.access.hooks import Hooks
from identity_client.access.options import MethodOptions, OnStale
from identity_client.access.rules import Rule
from identity_client.access.setup import DEFAULT_GROUP, make_judge
from identity_client.aio.environment import Connection
from identity_client.aio.guard import Guard
from identity_client.aio.introspection import Introspections
from identity_client.aio.stream import TrustStream
from identity_client.aio.token_source import TokenSource
from identity_client.clock import Clock, SystemClock
from identity_client.errors import (
    DependencyDown,
    IdentityError,
    PermissionMissing,
    RetryLater,
    TokenError,
    TokenOutdated,
    TokenRevoked,
)
from identity_client.principal import Principal
from identity_client.tokens.claims import NO_END, Claims
from identity_client.tokens.opaque import Kind
from identity_client.trust import wire
from identity_client.trust.state import TrustState

_KEY_FETCH_SECONDS = 5.0
_CALL_SECONDS = 5.0
_CHANNEL_OPTIONS = (
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 2_000),  # how long one attempt to connect may take
    ("grpc.max_reconnect_backoff_ms", 1_000),  # the stream has its own back-off; the default would wait minutes
    ("grpc.enable_http_proxy", 0),  # a proxy out of the environment would read plain text meant for loopback
)

_TOKEN_KINDS = {Kind.SESSION.value: token_pb2.TOKEN_KIND_SESSION, Kind.API_KEY.value: token_pb2.TOKEN_KIND_API_KEY}
_NOT_CONFIRMED = "The identity service did not confirm the token: repeat the call later."
_Response = TypeVar("_Response")

_log = logging.getLogger(__name__)


class StartError(RuntimeError):
    """The trust state did not arrive within the time allowed for the start."""


class Identity:
    """Use it as `async with Identity.from_env() as identity:`; entering waits for keys and the first snapshot.

    Entering raises BadCredentials or another IdentityError if the service refuses us, StartError after
    *start_timeout_seconds*. Leaving ends the trust stream: guards close once *max_staleness_seconds* have passed.
    """

    def __init__(
        self, connection: Connection, *, clock: Clock | None = None, start_timeout_seconds: float = 30.0
    ) -> None:
        self._connection = connection
        self._clock = clock or SystemClock()
        self._start_timeout_seconds = start_timeout_seconds
        self.trust = TrustState(self._clock)
        self._keys_fetched_at = float("-inf")
        self._tasks: set[asyncio.Task[None]] = set()
        self._process = Process("Identity")
        self.introspections = Introspections(self._look, trust=self.trust, clock=self._clock)

    @classmethod
    def from_env(cls, environ: Mapping[str, str] | None = None) -> Self:
        """Reads IDENTITY_ADDRESS, IDENTITY_CA_FILE, IDENTITY_CLIENT_ID and IDENTITY_CLIENT_SECRET_FILE.
        Raises: ConfigurationError, with every problem at once."""
        return cls(Connection.from_env(os.environ if environ is None else environ))

    async def __aenter__(self) -> Self:
        self._process.check()
        self._channel = _open_channel(self._connection)
        self._trust_stub = TrustServiceStub(self._channel)
        self._token_stub = TokenServiceStub(self._channel)
        self._tokens = TokenSource(
            AuthenticationServiceStub(self._channel),
            client_id=self._connection.client_id,
            client_secret=self._connection.client_secret,
            clock=self._clock,
        )
        self._stream = TrustStream(self._trust_stub, trust=self.trust, tokens=self._tokens, clock=self._clock)
        try:
            await self._start()
        except BaseException:
            await self._stop()
            raise
        return self

    async def __aexit__(
        self, _type: type[BaseException] | None, _error: BaseException | None, _traceback: TracebackType | None
    ) -> None:
        await self._stop()

    @property
    def is_ready(self) -> bool:
        """Whether keys and a whole snapshot are held; until then no call is admitted."""
        return self.trust.is_ready

    def guard(
        self,
        name: str,
        *modules: ModuleType,
        rules: Mapping[str, Rule] | None = None,
        groups: Collection[str] = (DEFAULT_GROUP,),
        max_staleness_seconds: float = 30.0,
        on_stale: OnStale = "reject",
        enforce: bool = True,
        methods: Mapping[str, MethodOptions] | None = None,
        hooks: Hooks | None = None,
    ) -> Guard:
        """The interceptor of a service *name*: it accepts tokens for that name and for *groups*.

        *modules* are the generated `_pb2` modules of every service that the server registers. Each method needs the
        option `identity.v1.access` or a row in *rules*, by full name (/package.Service/Method); RuleError names those
        that have neither. The health service is open unless *rules* say otherwise, reflection is closed.

        *on_stale* says what happens to a call while the trust state is older than *max_staleness_seconds*. Without
        *enforce* nothing is refused: the call goes through without a principal, and `report` of the guard says what
        would have been. *methods* changes these three for single methods. *hooks* is told of every judgement.
        """
        self._process.check()
        judge = make_judge(
            name,
            modules,
            trust=self.trust,
            clock=self._clock,
            rules=rules,
            groups=groups,
            max_staleness_seconds=max_staleness_seconds,
            on_stale=on_stale,
            enforce=enforce,
            methods=methods,
        )
        return Guard(
            judge,
            audience=name,
            confirm=self.confirm,
            introspect=self.introspections.introspect,
            on_unknown_key=self.note_unknown_key,
            hooks=hooks,
        )

    async def confirm(self, principal: Principal) -> None:
        """Asks the service's database whether the grant behind *principal* is live. Raises: TokenRevoked,
        TokenOutdated, DependencyDown (no answer)."""
        standing = await self._standing(principal)
        if standing == pb.TOKEN_STANDING_REVOKED:
            raise TokenRevoked
        if standing == pb.TOKEN_STANDING_OUTDATED:
            raise TokenOutdated
        if standing != pb.TOKEN_STANDING_LIVE:
            raise DependencyDown("The identity service gave no standing for the token: repeat the call later.")

    def note_unknown_key(self) -> None:
        """Fetches the keys in the background, at most once in 5 s; the keys held are kept whatever comes."""
        now = self._clock.monotonic()
        if now - self._keys_fetched_at < _KEY_FETCH_SECONDS:
            return
        self._keys_fetched_at = now
        self._spawn(self._fetch_keys())

    async def _start(self) -> None:
        try:
            async with asyncio.timeout(self._start_timeout_seconds):
                await self._authenticate_first()
                self._spawn(self._stream.run())
                await self._stream.ready.wait()
        except TimeoutError:
            problem = f": {self._stream.problem}" if self._stream.problem else ""
            if isinstance(self._stream.problem, PermissionMissing):
                problem += f" Give the account {self._connection.client_id} the role peer."
            raise StartError(
                f"no trust state from {self._connection.address} within {self._start_timeout_seconds:g} s{problem}"
            ) from None

    async def _authenticate_first(self) -> None:
        """Fails at once on a refusal that waiting does not mend; leaves the rest to the stream's repeats."""
        try:
            await self._tokens.get()
        except RetryLater as error:
            _log.warning("the identity service does not answer yet: %s", error)

    async def _stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await self.introspections.close()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._channel.close()

    async def _standing(self, principal: Principal) -> pb.TokenStanding.ValueType:
        request = pb.CheckRevocationRequest(tokens=[_token_identity(principal)])
        response = await self._ask(self._trust_stub.CheckRevocation, request)
        return response.standings[0] if len(response.standings) == 1 else pb.TOKEN_STANDING_UNSPECIFIED

    async def _look(self, raw_token: str) -> Claims | None:
        request = token_pb2.IntrospectRequest(token=raw_token)
        response = await self._ask(self._token_stub.Introspect, request)
        if not response.active:
            return None
        if response.kind != _TOKEN_KINDS[raw_token[:4]]:
            raise DependencyDown("The identity service took the token for one of another kind: repeat the call later.")
        return _introspected(response, self.trust.issuer)

    async def _ask(self, method: Callable[..., Awaitable[_Response]], request: object) -> _Response:
        """Calls the service with our own token. Raises DependencyDown: whatever is wrong between the service and us,
        the caller's token is not to blame."""
        try:
            token = await self._tokens.get()
        except IdentityError as error:
            raise DependencyDown(_NOT_CONFIRMED) from error
        try:
            return await method(request, metadata=token.metadata, timeout=_CALL_SECONDS)
        except grpc.aio.AioRpcError as error:
            refusal = status.from_rpc_error(error)
            if isinstance(refusal, TokenError):
                self._tokens.discard(token)
            if not isinstance(refusal, RetryLater):
                _log.warning("the identity service refused to judge a token for us: %s", refusal.reason)
            raise DependencyDown(_NOT_CONFIRMED) from error

    async def _fetch_keys(self) -> None:
        try:
            response = await self._trust_stub.GetKeys(pb.GetKeysRequest(), timeout=_CALL_SECONDS)
            issuer, keys = wire.keys_from_message(response.key_set)
        except (grpc.aio.AioRpcError, IdentityError, ValueError) as error:
            _log.warning("the keys could not be fetched; those held are kept: %s", type(error).__name__)
            return
        self.trust.set_keys(issuer, keys)

    def _spawn(self, coroutine: Coroutine[None, None, None]) -> None:
        # In an empty context: a task started while a call is judged must not keep that caller's principal.
        task = asyncio.get_running_loop().create_task(coroutine, context=contextvars.Context())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _open_channel(connection: Connection) -> grpc.aio.Channel:
    if connection.ca_certificates is None:
        return grpc.aio.insecure_channel(connection.address, options=_CHANNEL_OPTIONS)
    credentials = grpc.ssl_channel_credentials(root_certificates=connection.ca_certificates)
    return grpc.aio.secure_channel(connection.address, credentials, options=_CHANNEL_OPTIONS)


def _introspected(response: token_pb2.IntrospectResponse, issuer: str) -> Claims:
    has_person = response.HasField("authentication_time")
    return Claims(
        issuer=issuer,
        account_id=response.account_id,
        audience=response.audience,
        expire_time=response.expire_time.seconds if response.HasField("expire_time") else NO_END,
        issue_time=response.issue_time.seconds,
        token_id=response.token_id,
        client_id=response.client_id,
        grant_id=response.grant_id,
        generation=response.generation,
        policy_version=response.policy_version,
        key_id=response.key_id,
        scopes=tuple(response.scopes),
        roles=tuple(response.roles),
        authentication_time=response.authentication_time.seconds if has_person else None,
        authentication_methods=tuple(response.authentication_methods),
        certificate_thumbprint=response.certificate_thumbprint,
    )


def _token_identity(principal: Principal) -> pb.TokenIdentity:
    claims = principal.claims
    return pb.TokenIdentity(
        token_id=claims.token_id,
        grant_id=claims.grant_id,
        account_id=claims.account_id,
        generation=claims.generation,
        policy_version=claims.policy_version,
        key_id=claims.key_id,
        roles=claims.roles,
    )

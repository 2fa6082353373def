"""A peer's connection to the identity service: from it come the guards of the peer's own servers."""

from __future__ import annotations

import asyncio
import contextvars
import logging
import os
from collections.abc import Collection, Coroutine, Mapping
from types import ModuleType, TracebackType
from typing import Any, Self

import grpc.aio

from identity_client.access.gate import Process
from identity_client.access.hooks import Hooks
from identity_client.access.options import MethodOptions, OnStale
from identity_client.access.rules import Rule
from identity_client.access.setup import DEFAULT_GROUP, make_judge
from identity_client.aio import logins
from identity_client.aio.behalf import Exchanges, FindCaller
from identity_client.aio.channel import FindSource, interceptors
from identity_client.aio.endpoints import CHANNEL_OPTIONS, Endpoints, open_channel
from identity_client.aio.environment import Connection, read_environment
from identity_client.aio.guard import Guard
from identity_client.aio.inquiries import Inquiries
from identity_client.aio.introspection import Introspections
from identity_client.aio.logins import Wish
from identity_client.aio.lookups import Lookups
from identity_client.aio.readiness import OnReady, Readiness
from identity_client.aio.stream import TrustStream
from identity_client.aio.token_source import IDENTITY_AUDIENCE, TokenSource
from identity_client.clock import Clock, SystemClock
from identity_client.errors import PermissionMissing, RetryLater
from identity_client.principal import Principal
from identity_client.tls_files import TlsFiles
from identity_client.tokens.claims import Claims
from identity_client.trust.metrics import TrustMetrics
from identity_client.trust.source import RevocationSource
from identity_client.trust.state import TrustState

_KEY_FETCH_SECONDS = 5.0
_KEY_REFRESH_SECONDS = 30.0  # without a stream nobody tells of new keys
_KEY_RETRY_SECONDS = 0.25

_log = logging.getLogger(__name__)


class StartError(RuntimeError):
    """The trust state did not arrive within the time allowed for the start."""


class Identity:
    """Use it as `async with Identity.from_env() as identity:`; entering waits for keys and the first snapshot.

    Entering raises BadCredentials or another IdentityError if the service refuses us, StartError after
    *start_timeout_seconds*. Leaving ends the trust stream: guards close once *max_staleness_seconds* have passed.

    *on_ready* is told True once the trust state is fresh enough to serve (at most *ready_staleness_seconds* old), False
    when it no longer is, and at the end: hand that on to your health service. *metrics* counts what happens to it.

    With *revocations* (`identity_client.redis.RedisRevocations`) no stream is followed: that source is asked about each
    call, and entering waits until it vouches for what it holds. The trust state holds the keys alone then.
    """

    def __init__(
        self,
        connection: Connection,
        *,
        clock: Clock | None = None,
        start_timeout_seconds: float = 30.0,
        on_ready: OnReady | None = None,
        ready_staleness_seconds: float = 30.0,
        metrics: TrustMetrics | None = None,
        revocations: RevocationSource | None = None,
    ) -> None:
        connection.check_service()
        self._connection = connection
        self._clock = clock or SystemClock()
        self._start_timeout_seconds = start_timeout_seconds
        self._metrics = metrics or TrustMetrics()
        self.trust = TrustState(self._clock)
        self.lookups = Lookups(revocations, self._clock) if revocations is not None else None
        self._readiness = Readiness(self.lookups or self.trust, ready_staleness_seconds, on_ready, self._metrics)
        self._keys_fetched_at = float("-inf")
        self._tasks: set[asyncio.Task[None]] = set()
        self._sources: set[TokenSource] = set()
        self._process = Process("Identity")
        self.introspections = Introspections(self._look, trust=self.trust, clock=self._clock)

    @classmethod
    def from_env(
        cls,
        environ: Mapping[str, str] | None = None,
        *,
        on_ready: OnReady | None = None,
        metrics: TrustMetrics | None = None,
    ) -> Self:
        """Reads IDENTITY_ADDRESS, IDENTITY_CA_FILE, IDENTITY_CLIENT_ID and IDENTITY_CLIENT_SECRET_FILE; with
        IDENTITY_REDIS_URL (and IDENTITY_REDIS_PREFIX) that Redis is asked about each call, and no stream is followed.
        Raises: ConfigurationError, with every problem at once."""
        connection, revocations = read_environment(os.environ if environ is None else environ)
        return cls(connection, on_ready=on_ready, metrics=metrics, revocations=revocations)

    async def __aenter__(self) -> Self:
        self._process.check()
        self._endpoints = Endpoints(self._connection)
        self._tokens = self.token_source(IDENTITY_AUDIENCE)
        self._inquiries = Inquiries(self._endpoints, self._tokens)
        self._stream = TrustStream(
            self._endpoints, trust=self.trust, tokens=self._tokens, clock=self._clock, metrics=self._metrics
        )
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
        """Whether keys and a whole snapshot are held, or a source of revocations vouches for what it holds; until then
        no call is admitted."""
        if self.lookups is not None:
            return self.lookups.is_ready and bool(self.trust.keys)
        return self.trust.is_ready

    @property
    def clock(self) -> Clock:
        """What everything that hangs off this connection tells the time by."""
        return self._clock

    @property
    def endpoints(self) -> Endpoints:
        """Where the identity service itself is; open between entering and leaving."""
        return self._endpoints

    @property
    def tokens(self) -> TokenSource:
        """Our own access token for the identity service."""
        return self._tokens

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
            recollection=self.lookups,
        )
        return Guard(
            judge,
            audience=name,
            confirm=self.confirm,
            introspect=self.introspections.introspect,
            look_up=self.lookups.look if self.lookups is not None else None,
            on_unknown_key=self.note_unknown_key,
            hooks=hooks,
        )

    def token_source(self, audience: str, scopes: Collection[str] = ()) -> TokenSource:
        """Our own access token for *audience*, always at hand; it ends with this object."""
        name, secret = self._connection.client_id, self._connection.client_secret
        wish = Wish(audience, tuple(scopes))
        if secret:
            obtain = logins.by_client_secret(self._endpoints, name, secret, wish)
        else:
            obtain = logins.by_certificate(self._endpoints, wish)
        source = TokenSource(obtain, name=f"{name} for {audience}", clock=self._clock)
        self._sources.add(source)
        return source

    def exchanges(self, audience: str, scopes: Collection[str] = ()) -> Exchanges:
        """Tokens that we received, exchanged for ones for *audience*."""
        wish = Wish(audience, tuple(scopes))

        def open_source(raw_token: str) -> TokenSource:
            obtain = logins.by_exchange(self._endpoints, raw_token, self._tokens, wish)
            return TokenSource(obtain, name=f"a caller for {audience}", clock=self._clock)

        return Exchanges(open_source)

    def channel(
        self,
        target: str,
        *,
        audience: str,
        scopes: Collection[str] = (),
        on_behalf_of: FindCaller | None = None,
        tls: TlsFiles | None = None,
        options: Collection[tuple[str, Any]] = (),
    ) -> grpc.aio.Channel:
        """A channel to the service *audience* at *target*, whose calls carry a token and renew it by themselves.

        By default we call as ourselves. With *on_behalf_of* (`current_principal`) each call is made for that caller:
        the token that we received is exchanged for one for *audience*, with no more than *scopes*, and our account
        stands in it as the actor; our account needs the scope identity.exchange. TLS as to the identity service, or by
        the files *tls*, which are read again when they change.
        Raises ConfigurationError: tokens would leave the machine in plain text. Calls raise grpc.RpcError where no
        token can be had, like any refusal, and NoPrincipal where there is nobody to act for.
        """
        self._process.check()
        if tls is None:
            self._connection.check_plain_text(target)
        chain = interceptors(self._find_source(audience, tuple(scopes), on_behalf_of), audience)
        return open_channel(target, tls or self._connection.tls, chain, [*CHANNEL_OPTIONS, *options])

    async def confirm(self, principal: Principal) -> None:
        """Asks the service's database whether the grant behind *principal* is live. Raises: TokenRevoked,
        TokenOutdated, DependencyDown (no answer)."""
        await self._inquiries.confirm(principal)

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
                if self.lookups is not None:
                    await self._start_looking(self.lookups)
                else:
                    self._spawn(self._stream.run())
                    await self._stream.ready.wait()
            await self._readiness.look()
            self._spawn(self._readiness.run())
        except TimeoutError:
            cause = self._stream.problem if self.lookups is None else self.lookups.problem
            problem = f": {cause}" if cause else ""
            if isinstance(self._stream.problem, PermissionMissing):
                problem += f" Give the account {self._connection.client_id} the role peer."
            raise StartError(
                f"no trust state from {self._connection.address} within {self._start_timeout_seconds:g} s{problem}"
            ) from None

    async def _start_looking(self, lookups: Lookups) -> None:
        """Have the keys, and a source that vouches; then ask for both again and again."""
        self._spawn(lookups.run())
        await self._fetch_keys()
        while not self.trust.keys:
            await asyncio.sleep(_KEY_RETRY_SECONDS)
            await self._fetch_keys()
        self._spawn(self._refresh_keys())
        await lookups.ready.wait()

    async def _authenticate_first(self) -> None:
        """Fails at once on a refusal that waiting does not mend; leaves the rest to the stream's repeats."""
        try:
            await self._tokens.get()
        except RetryLater as error:
            _log.warning("the identity service does not answer yet: %s", error)

    async def _stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        for source in self._sources:
            await source.close()
        await self.introspections.close()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._readiness.end()
        if self.lookups is not None:
            await self.lookups.close()
        await self._endpoints.close()

    async def _look(self, raw_token: str) -> Claims | None:
        return await self._inquiries.look(raw_token, self.trust.issuer)

    async def _refresh_keys(self) -> None:
        while True:
            await asyncio.sleep(_KEY_REFRESH_SECONDS)
            await self._fetch_keys()

    async def _fetch_keys(self) -> None:
        found = await self._inquiries.keys()
        if found is not None:
            self.trust.set_keys(*found)

    def _find_source(self, audience: str, scopes: tuple[str, ...], on_behalf_of: FindCaller | None) -> FindSource:
        if on_behalf_of is None:
            source = self.token_source(audience, scopes)
            return lambda: source
        exchanges = self.exchanges(audience, scopes)
        return lambda: exchanges.source(on_behalf_of().raw_token)

    def _spawn(self, coroutine: Coroutine[None, None, None]) -> None:
        # In an empty context: a task started while a call is judged must not keep that caller's principal.
        task = asyncio.get_running_loop().create_task(coroutine, context=contextvars.Context())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

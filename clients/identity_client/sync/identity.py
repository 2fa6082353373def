"""The threaded twin of `identity_client.aio.Identity`, for services on grpc.server.

Calls are judged in the threads that serve them, from one trust state. What goes over the wire (the trust stream, our
own token, look-ups) is the asyncio Identity's work, in an event loop on a thread of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
from collections.abc import Callable, Collection, Coroutine, Mapping
from types import ModuleType, TracebackType
from typing import Any, Self, TypeVar

import grpc

from identity_client.access.gate import Process
from identity_client.access.hooks import Hooks
from identity_client.access.options import MethodOptions, OnStale
from identity_client.access.rules import Rule
from identity_client.access.setup import DEFAULT_GROUP, make_judge
from identity_client.aio.behalf import FindCaller
from identity_client.aio.endpoints import CHANNEL_OPTIONS
from identity_client.aio.environment import Connection, read_environment
from identity_client.aio.identity import Identity as AsyncIdentity
from identity_client.aio.readiness import OnReady
from identity_client.aio.token_source import AccessToken, TokenSource
from identity_client.clock import Clock, SystemClock
from identity_client.errors import DependencyDown
from identity_client.principal import Principal
from identity_client.sync.channel import FindSource, Interceptor
from identity_client.sync.guard import Guard
from identity_client.sync.reloading import ReloadingChannel
from identity_client.sync.waits import Waits
from identity_client.tls_files import TlsFiles
from identity_client.tokens.claims import Claims
from identity_client.trust.metrics import TrustMetrics
from identity_client.trust.source import Answer, RevocationSource
from identity_client.trust.state import TrustState

_WAIT_SECONDS = 15.0  # longer than any look-up of the asyncio twin takes
_Result = TypeVar("_Result")


class Identity:
    """Use it as `with Identity.from_env() as identity:`; entering waits for keys and the first snapshot.

    Entering raises BadCredentials or another IdentityError if the service refuses us, StartError after
    *start_timeout_seconds*. Leaving ends the trust stream: guards close once *max_staleness_seconds* have passed.
    Enter it in the process that serves: after a fork neither it nor its guards can be used (ForkedError).

    *on_ready* and *metrics* are those of `aio.Identity`, called on a thread of the Identity's own; so is what
    *revocations* does.
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
        self._clock = clock or SystemClock()
        self._connection = connection
        self._twin = AsyncIdentity(
            connection,
            clock=self._clock,
            start_timeout_seconds=start_timeout_seconds,
            on_ready=on_ready,
            ready_staleness_seconds=ready_staleness_seconds,
            metrics=metrics,
            revocations=revocations,
        )
        self._process = Process("Identity")
        self._waits = Waits(self._clock)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None

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

    def __enter__(self) -> Self:
        self._process.check()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=_run, args=(self._loop,), name="identity", daemon=True)
        self._thread.start()
        try:
            self._result(self._twin.__aenter__(), None)
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self, _type: type[BaseException] | None, _error: BaseException | None, _traceback: TracebackType | None
    ) -> None:
        self._process.check()
        try:
            self._result(self._twin.__aexit__(None, None, None), None)
        finally:
            self._end()

    @property
    def trust(self) -> TrustState:
        """The keys and revocations held."""
        return self._twin.trust

    @property
    def is_ready(self) -> bool:
        """As `aio.Identity.is_ready`; until then no call is admitted."""
        return self._twin.is_ready

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
        """The interceptor of a service *name* on grpc.server. The parameters are those of `aio.Identity.guard`."""
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
            recollection=self._twin.lookups,
        )
        return Guard(
            judge,
            audience=name,
            confirm=self.confirm,
            introspect=self.introspect,
            look_up=self._look_up if self._twin.lookups is not None else None,
            on_unknown_key=self.note_unknown_key,
            hooks=hooks,
        )

    def channel(
        self,
        target: str,
        *,
        audience: str,
        scopes: Collection[str] = (),
        on_behalf_of: FindCaller | None = None,
        tls: TlsFiles | None = None,
        options: Collection[tuple[str, Any]] = (),
    ) -> grpc.Channel:
        """A channel of grpc to the service *audience*. The parameters are those of `aio.Identity.channel`."""
        self._process.check()
        find_source = self._find_source(audience, tuple(scopes), on_behalf_of)
        if tls is None:
            self._connection.check_plain_text(target)
        channel = _open_channel(target, tls or self._connection.tls, [*CHANNEL_OPTIONS, *options])
        return grpc.intercept_channel(channel, Interceptor(find_source, audience))

    def _find_source(self, audience: str, scopes: tuple[str, ...], on_behalf_of: FindCaller | None) -> FindSource:
        if on_behalf_of is None:
            source = _Source(self._twin.token_source(audience, scopes), self._result)
            return lambda: source
        exchanges = self._twin.exchanges(audience, scopes)
        return lambda: _Source(exchanges.source(on_behalf_of().raw_token), self._result)

    def confirm(self, principal: Principal) -> None:
        """Asks the service's database whether the grant behind *principal* is live. Raises: TokenRevoked,
        TokenOutdated, DependencyDown (no answer)."""
        self._result(self._twin.confirm(principal), _WAIT_SECONDS)

    def introspect(self, raw_token: str, is_anew: bool) -> Claims:
        """What a session token or API key stands for; remembered briefly, unless it is to be asked *is_anew*.
        Raises: TokenRevoked (not active here), DependencyDown (no answer, or too many wait for one), Overloaded."""
        held = None if is_anew else self._twin.introspections.find(raw_token)
        if held is not None:
            return held
        with self._waits.waiting(_WAIT_SECONDS) as seconds:
            return self._result(self._twin.introspections.introspect(raw_token, is_anew), seconds)

    def note_unknown_key(self) -> None:
        """Fetches the keys in the background, at most once in 5 s; the keys held are kept whatever comes."""
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):  # closed in the meantime
                self._loop.call_soon_threadsafe(self._twin.note_unknown_key)

    def _look_up(self, claims: Claims) -> Answer:
        if self._twin.lookups is None:
            return Answer()
        return self._result(self._twin.lookups.look(claims), _WAIT_SECONDS)

    def _result(self, coroutine: Coroutine[Any, Any, _Result], timeout_seconds: float | None) -> _Result:
        """Runs *coroutine* in the loop. Raises what it raises, DependencyDown if the loop does not answer."""
        if self._loop is None:
            coroutine.close()
            raise DependencyDown("The connection to the identity service is closed.")
        future = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        try:
            return future.result(timeout_seconds)
        except BaseException as error:
            future.cancel()
            if isinstance(error, TimeoutError):
                raise DependencyDown("The identity service does not answer: repeat the call later.") from error
            raise

    def _end(self) -> None:
        loop, self._loop = self._loop, None
        if loop is not None and self._thread is not None:
            loop.call_soon_threadsafe(loop.stop)
            self._thread.join()


class _Source:
    """A token source of the twin's loop, for other threads: one step across only where the token must be renewed."""

    def __init__(self, source: TokenSource, result: Callable[[Coroutine[Any, Any, Any], float | None], Any]) -> None:
        self._source = source
        self._result = result

    def get(self) -> AccessToken:
        token: AccessToken = self._source.held or self._result(self._source.get(), _WAIT_SECONDS)
        return token

    def discard(self, token: AccessToken) -> None:
        self._source.discard(token)


def _open_channel(target: str, tls: TlsFiles | None, options: list[tuple[str, Any]]) -> grpc.Channel:
    if tls is None:
        return grpc.insecure_channel(target, options=options)
    return ReloadingChannel(tls, lambda made: grpc.secure_channel(target, made, options=options))


def _run(loop: asyncio.AbstractEventLoop) -> None:
    asyncio.set_event_loop(loop)
    try:
        loop.run_forever()
        loop.run_until_complete(loop.shutdown_asyncgens())
    finally:
        loop.close()

"""Stand-ins for a peer's connection to the identity service: the same guards and channels, fed and answered by an
Issuer."""

from __future__ import annotations

from collections.abc import Collection
from types import TracebackType
from typing import Self

from identity_client import aio
from identity_client.aio.behalf import Exchanges
from identity_client.aio.environment import Connection
from identity_client.aio.introspection import Introspections
from identity_client.aio.token_source import AccessToken, TokenSource
from identity_client.principal import Principal
from identity_client.sync.identity import Identity as SyncIdentity
from identity_client.testing.credential import Credential
from identity_client.testing.issuer import Issuer
from identity_client.tokens.claims import Claims

DEFAULT_NAME = "test"


class AioIdentity(aio.Identity):
    """Stands in for `aio.Identity`: entering it connects to nothing, and its guards trust *issuer*. *name* is the
    service account that its channels call as; its roles are those of `issuer.set_roles`."""

    def __init__(self, issuer: Issuer, name: str = DEFAULT_NAME) -> None:
        super().__init__(_connection(name), clock=issuer.clock)
        self._issuer = issuer
        self._name = name
        self.trust = issuer.trust
        self.introspections = Introspections(self._look, trust=self.trust, clock=issuer.clock)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, _type: type[BaseException] | None, _error: BaseException | None, _traceback: TracebackType | None
    ) -> None:
        for source in self._sources:
            await source.close()
        await self.introspections.close()

    def token_source(self, audience: str, scopes: Collection[str] = ()) -> TokenSource:
        async def obtain() -> AccessToken:
            return _access_token(
                self._issuer.mint(
                    self._name,
                    scopes=tuple(scopes),
                    audience=audience,
                    client_id=self._name,
                    authentication_age_seconds=None,
                )
            )

        source = TokenSource(obtain, name=self._name, clock=self._issuer.clock)
        self._sources.add(source)
        return source

    def exchanges(self, audience: str, scopes: Collection[str] = ()) -> Exchanges:
        def open_source(raw_token: str) -> TokenSource:
            async def obtain() -> AccessToken:
                exchanged = self._issuer.exchange(raw_token, audience=audience, actor=self._name, scopes=tuple(scopes))
                return _access_token(exchanged)

            return TokenSource(obtain, name=self._name, clock=self._issuer.clock)

        return Exchanges(open_source)

    async def confirm(self, principal: Principal) -> None:
        self._issuer.confirm(principal)

    def note_unknown_key(self) -> None:
        """New keys are pushed: there is nothing to fetch."""

    async def _look(self, raw_token: str) -> Claims | None:
        return self._issuer.introspect(raw_token)


class ThreadedIdentity(SyncIdentity):
    """Stands in for `identity_client.Identity`, in the same way. Enter it, as one would the other."""

    def __init__(self, issuer: Issuer, name: str = DEFAULT_NAME) -> None:
        super().__init__(_connection(name), clock=issuer.clock)
        self._twin = AioIdentity(issuer, name)


def _connection(name: str) -> Connection:
    return Connection(address="unix:/nonexistent", client_id=name, client_secret=name, is_insecure_allowed=True)


def _access_token(minted: Credential) -> AccessToken:
    return AccessToken(minted.raw_token, minted.claims.expire_time)

"""Stand-ins for a peer's connection to the identity service: the same guards, fed and answered by an Issuer."""

from __future__ import annotations

from types import TracebackType
from typing import Self

from identity_client import aio
from identity_client.aio.environment import Connection
from identity_client.aio.introspection import Introspections
from identity_client.principal import Principal
from identity_client.sync.identity import Identity as SyncIdentity
from identity_client.testing.issuer import Issuer
from identity_client.tokens.claims import Claims

_NOWHERE = Connection(address="unix:/nonexistent", client_id="test", client_secret="")


class AioIdentity(aio.Identity):
    """Stands in for `aio.Identity`: entering it connects to nothing, and its guards trust *issuer*."""

    def __init__(self, issuer: Issuer) -> None:
        super().__init__(_NOWHERE, clock=issuer.clock)
        self._issuer = issuer
        self.trust = issuer.trust
        self.introspections = Introspections(self._look, trust=self.trust, clock=issuer.clock)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, _type: type[BaseException] | None, _error: BaseException | None, _traceback: TracebackType | None
    ) -> None:
        await self.introspections.close()

    async def confirm(self, principal: Principal) -> None:
        self._issuer.confirm(principal)

    def note_unknown_key(self) -> None:
        """New keys are pushed: there is nothing to fetch."""

    async def _look(self, raw_token: str) -> Claims | None:
        return self._issuer.introspect(raw_token)


class ThreadedIdentity(SyncIdentity):
    """Stands in for `identity_client.Identity`, in the same way. Enter it, as one would the other."""

    def __init__(self, issuer: Issuer) -> None:
        super().__init__(_NOWHERE, clock=issuer.clock)
        self._twin = AioIdentity(issuer)

"""Whom a token may be for: a service account, a configured group, or this service."""

from __future__ import annotations

from identity_client.errors import UnknownAudience

from .ports import AccountStore


class Audiences:
    """The known names."""

    def __init__(self, accounts: AccountStore, service_name: str, groups: frozenset[str], default: str) -> None:
        self._accounts = accounts
        self._fixed = groups | {service_name}
        self._default = default

    async def resolve(self, name: str) -> str:
        """The audience to issue for; the default where none is named. Raises UnknownAudience."""
        if not name:
            return self._default
        if name in self._fixed or await self._accounts.is_audience(name):
            return name
        raise UnknownAudience()

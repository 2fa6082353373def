"""Who calls. Set by the guard for the duration of one call, read by its handler."""

from __future__ import annotations

import contextvars
from dataclasses import dataclass, field

from identity_client.tokens.claims import Claims


class NoPrincipal(LookupError):
    """There is no caller: outside a call, or in a public method that was called without a token."""


@dataclass(frozen=True, slots=True)
class Principal:
    """A caller whose token has been verified. The token's text is kept out of repr, and so out of logs."""

    claims: Claims
    raw_token: str = field(repr=False, compare=False)

    @classmethod
    def from_claims(cls, claims: Claims, raw_token: str) -> Principal:
        """The caller behind a verified token."""
        return cls(claims, raw_token)

    @property
    def account_id(self) -> str:
        """The account that the token speaks for (sub)."""
        return self.claims.account_id

    @property
    def subject(self) -> str:
        """The same, in the token's own word."""
        return self.claims.account_id

    @property
    def client_id(self) -> str:
        """The service that the token was issued to; `first-party` for a person's own log-in."""
        return self.claims.client_id

    @property
    def grant_id(self) -> str:
        """The session or credential that the token hangs off (sid)."""
        return self.claims.grant_id

    @property
    def token_id(self) -> str:
        """The token (jti)."""
        return self.claims.token_id

    @property
    def generation(self) -> int:
        """The account's generation at issue (gen)."""
        return self.claims.generation

    @property
    def scopes(self) -> tuple[str, ...]:
        """What the token may be used for."""
        return self.claims.scopes

    @property
    def roles(self) -> tuple[str, ...]:
        """What the account is."""
        return self.claims.roles


_current: contextvars.ContextVar[Principal | None] = contextvars.ContextVar("identity_principal", default=None)


def set_principal(principal: Principal | None) -> None:
    """Say who calls, for the current context. For guards."""
    _current.set(principal)


def find_principal() -> Principal | None:
    """Who calls, or None."""
    return _current.get()


def current_principal() -> Principal:
    """Who calls. Raises NoPrincipal: in a method that is open to all, use find_principal."""
    principal = _current.get()
    if principal is None:
        raise NoPrincipal("no verified caller here: is the method public, or not behind a guard?")
    return principal

"""Who calls. Set by the guard for the duration of one call, read by its handler."""

from __future__ import annotations

import contextvars
import enum
from dataclasses import dataclass, field

from identity_client.tokens.claims import Claims


class NoPrincipal(LookupError):
    """There is no caller: outside a call, or in a public method that was called without a token."""


class BearerKind(enum.StrEnum):
    """What a caller presented."""

    ACCESS_TOKEN = "access_token"  # noqa: S105 - the name of a kind, not a secret
    SESSION = "session"
    API_KEY = "api_key"


@dataclass(frozen=True, slots=True)
class Principal:
    """A caller whose token has been verified: here (access token) or by the identity service (session token, API key).

    What a handler decides by reads the same for every kind. The token's text is kept out of repr, and so out of logs.
    """

    claims: Claims
    raw_token: str = field(repr=False, compare=False)
    kind: BearerKind = BearerKind.ACCESS_TOKEN

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
        """The access token (jti); empty for a session token or API key, which is its grant's own text."""
        return self.claims.token_id

    @property
    def audience(self) -> str:
        """This service's name, or the group of it that the token is meant for (aud)."""
        return self.claims.audience

    @property
    def generation(self) -> int:
        """The account's generation when the roles and scopes were read (gen)."""
        return self.claims.generation

    @property
    def policy_version(self) -> int:
        """The policy version when the roles and scopes were read (pol)."""
        return self.claims.policy_version

    @property
    def scopes(self) -> tuple[str, ...]:
        """What the token may be used for."""
        return self.claims.scopes

    @property
    def roles(self) -> tuple[str, ...]:
        """What the account is; empty for a token that is limited to its scopes, which no role is to widen."""
        return () if self.claims.is_limited else self.claims.roles

    @property
    def actors(self) -> tuple[str, ...]:
        """The accounts that act for this one, the nearest first (act, RFC 8693); empty for a caller of their own."""
        return self.claims.actors

    @property
    def actor(self) -> str:
        """The nearest of them: the service that made this call on the account's behalf; empty for none."""
        return self.claims.actors[0] if self.claims.actors else ""

    @property
    def expire_time(self) -> int:
        """When the access token, session or API key expires, in Unix seconds (exp); NO_END for a key without an end."""
        return self.claims.expire_time

    @property
    def authentication_time(self) -> int | None:
        """When a person last proved who they are, in Unix seconds (auth_time); None for machines."""
        return self.claims.authentication_time

    @property
    def authentication_methods(self) -> tuple[str, ...]:
        """How they proved it (amr)."""
        return self.claims.authentication_methods

    @property
    def certificate_thumbprint(self) -> str:
        """The client certificate that the token is bound to (cnf x5t#S256); empty for a token that is not bound."""
        return self.claims.certificate_thumbprint


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

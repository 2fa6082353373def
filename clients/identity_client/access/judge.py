"""From a method and a call's metadata to a principal or a refusal. Pure: the guards of every kind share it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from identity_client.access.rules import Rule, Rules
from identity_client.clock import Clock, SystemClock
from identity_client.errors import (
    AuthenticationTooOld,
    CredentialsMalformed,
    CredentialsMissing,
    MethodNotGuarded,
    PermissionMissing,
    TrustStale,
)
from identity_client.principal import Principal
from identity_client.tokens.claims import Claims
from identity_client.tokens.verifier import Verifier
from identity_client.trust.state import TrustState

Metadata = Iterable[tuple[str, str | bytes]]

_KEY = "authorization"
_SCHEME = "bearer "  # compared without regard to case (RFC 9110 section 11.1)


@dataclass(frozen=True, slots=True)
class Judgement:
    """An admitted call: its caller (None for a public method without a token) and the rule that admitted it."""

    principal: Principal | None
    rule: Rule


class Judge:
    """Judges calls by *rules*. Order: rule, credential, age of the trust state, token, rule's conditions."""

    def __init__(
        self,
        *,
        rules: Rules,
        verifier: Verifier,
        trust: TrustState,
        max_staleness_seconds: float = 30.0,
        clock: Clock | None = None,
    ) -> None:
        self.rules = rules
        self._verifier = verifier
        self._trust = trust
        self._max_staleness = max_staleness_seconds
        self._clock = clock or SystemClock()

    def judge(self, method: str, metadata: Metadata | None) -> Judgement:
        """Raises MethodNotGuarded, CredentialsMissing, CredentialsMalformed, TrustStale, a TokenError,
        PermissionMissing, AuthenticationTooOld. On a public method a credential, if there is one, must hold."""
        rule = self.rules.find(method)
        if rule is None:
            raise MethodNotGuarded()
        raw_token = _bearer(metadata or ())
        if raw_token is None:
            if rule.public:
                return Judgement(None, rule)
            raise CredentialsMissing()
        self._check_fresh()
        claims = self._verifier.verify(raw_token)
        self._check(rule, claims)
        return Judgement(Principal.from_claims(claims, raw_token), rule)

    def recheck(self, claims: Claims) -> None:
        """Whether the token behind a running stream still holds. Raises a TokenError, TrustStale."""
        self._verifier.recheck(claims)
        self._check_fresh()

    def _check_fresh(self) -> None:
        if self._trust.staleness() > self._max_staleness:
            raise TrustStale()

    def _check(self, rule: Rule, claims: Claims) -> None:
        if not rule.scopes.issubset(claims.scopes):
            raise PermissionMissing()
        if rule.any_roles and rule.any_roles.isdisjoint(claims.roles):
            raise PermissionMissing()
        if rule.max_authentication_age_seconds is not None:
            self._check_authentication_age(rule.max_authentication_age_seconds, claims.authentication_time)

    def _check_authentication_age(self, limit: float, authentication_time: int | None) -> None:
        if authentication_time is None or self._clock.now() - authentication_time > limit:
            raise AuthenticationTooOld()


def _bearer(metadata: Metadata) -> str | None:
    """The text after `Bearer `; None without an authorization entry. Raises CredentialsMalformed."""
    values = [value for key, value in metadata if key == _KEY]
    if not values:
        return None
    [value, *others] = values
    if others or not isinstance(value, str) or value[: len(_SCHEME)].lower() != _SCHEME:
        raise CredentialsMalformed()
    return value[len(_SCHEME) :]

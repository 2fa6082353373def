"""From a method and a call's metadata to a principal or a refusal. Pure: the guards of every kind share it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

from identity_client.access.options import Options, Terms
from identity_client.access.rules import Rule, Rules
from identity_client.clock import Clock, SystemClock
from identity_client.errors import (
    AuthenticationTooOld,
    CredentialsMalformed,
    CredentialsMissing,
    IdentityError,
    MethodNotGuarded,
    PermissionMissing,
    TrustStale,
)
from identity_client.principal import BearerKind, Principal
from identity_client.tokens import opaque
from identity_client.tokens.claims import Claims
from identity_client.tokens.verifier import Verifier
from identity_client.trust.source import Answer
from identity_client.trust.state import TrustState

Metadata = Iterable[tuple[str, str | bytes]]

_KEY = "authorization"
_SCHEME = "bearer "  # compared without regard to case (RFC 9110 section 11.1)
OPAQUE_BEARERS = {opaque.Kind.SESSION: BearerKind.SESSION, opaque.Kind.API_KEY: BearerKind.API_KEY}
OPAQUE_PREFIXES = tuple(kind.value for kind in OPAQUE_BEARERS)


class Judgement(NamedTuple):
    """An admitted call: its caller (None for a public method without a token), whether the identity service is still to
    confirm that the caller's grant is live, and whether it was judged from a trust state older than allowed."""

    principal: Principal | None
    must_confirm: bool = False
    is_stale: bool = False


@dataclass(frozen=True, slots=True)
class Ask:
    """An opaque bearer: only the identity service knows what it is worth. Its answer goes to `Judge.admit`.

    *is_anew*: an answer that was given before will not do.
    """

    rule: Rule
    kind: BearerKind
    raw_token: str = field(repr=False)
    is_anew: bool
    is_stale: bool = False
    method: str = ""


@dataclass(frozen=True, slots=True)
class Look:
    """A caller who is genuine; a source of revocations is still to be asked about *claims*. Its answer goes to
    *decide*, which raises TrustStale, a TokenError, PermissionMissing, AuthenticationTooOld."""

    claims: Claims = field(repr=False)
    decide: Callable[[Answer], Judgement | Ask]


Step = Judgement | Ask | Look
"""A judgement, or what is missing for one."""


@dataclass(frozen=True, slots=True, eq=False)
class _Method:
    """What holds for calls of one method. Each equals itself alone: judges may share a verifier and its memory."""

    rule: Rule
    terms: Terms


class Judge:
    """Judges calls by *rules*. Order: rule, credential, age of the trust state, token, rule's conditions."""

    def __init__(
        self,
        *,
        rules: Rules,
        verifier: Verifier,
        trust: TrustState,
        options: Options | None = None,
        clock: Clock | None = None,
    ) -> None:
        self.rules = rules
        self.options = options or Options()
        self.clock = clock or SystemClock()
        self._verifier = verifier
        self._trust = trust
        self._known = {method: _Method(rule, self.options.find(method)) for method, rule in rules.items()}

    def confirmed_methods(self) -> list[str]:
        """The methods for whose callers the identity service may have to be asked."""
        confirmed = set(self.rules.confirmed_methods())
        confirmed.update(method for method in self.rules.methods() if self.options.find(method).on_stale == "confirm")
        return sorted(confirmed)

    def judge(self, method: str, metadata: Metadata | None) -> Step:
        """Raises MethodNotGuarded, CredentialsMissing, CredentialsMalformed, TrustStale, a TokenError,
        PermissionMissing, AuthenticationTooOld. On a public method a credential, if there is one, must hold."""
        known = self._known.get(method)
        if known is None:
            raise MethodNotGuarded()
        rule, terms = known.rule, known.terms
        raw_token = bearer_of(metadata or ())
        if raw_token is None:
            if rule.public:
                return Judgement(None)
            raise CredentialsMissing()
        is_stale = self._trust.staleness() > terms.max_staleness_seconds and self._is_borne(terms)
        must_confirm = rule.is_confirmed or (is_stale and terms.on_stale == "confirm")
        is_accepted_stale = is_stale and not must_confirm
        if raw_token.startswith(OPAQUE_PREFIXES) and (kind := opaque.kind_of(raw_token)):
            opaque.split_secret(raw_token, kind)  # a typing error costs no call
            return Ask(rule, OPAQUE_BEARERS[kind], raw_token, must_confirm, is_accepted_stale)
        proved = self._verifier.prove(raw_token)
        if known not in proved.met:
            self._verifier.check_audience(proved.claims)
            self._check(rule, proved.claims)
            if rule.max_authentication_age_seconds is None:  # an age grows: it is to be checked at each call
                proved.met += (known,)
        return Judgement(Principal(proved.claims, raw_token), must_confirm, is_accepted_stale)

    def admit(self, ask: Ask, claims: Claims) -> Judgement | Look:
        """The judgement of an opaque bearer of which the identity service said *claims*: trust state and rule apply as
        to any other. Raises a TokenError, PermissionMissing, AuthenticationTooOld."""
        self._verifier.check_introspected(claims)
        self._check(ask.rule, claims)
        return Judgement(Principal(claims, ask.raw_token, ask.kind), is_stale=ask.is_stale)

    def recheck(self, method: str, principal: Principal) -> None:
        """Whether the token behind a running call of *method* still holds. Raises a TokenError, TrustStale.

        A running call is not confirmed: beyond the staleness allowed it ends, unless on_stale is `accept`.
        """
        if principal.kind is BearerKind.ACCESS_TOKEN:
            self._verifier.recheck(principal.claims)
        else:
            self._verifier.check_introspected(principal.claims)
        terms = self.options.find(method)
        is_stale = self._trust.staleness() > terms.max_staleness_seconds and self._is_borne(terms)
        if is_stale and terms.on_stale == "confirm":
            raise TrustStale()

    def _is_borne(self, terms: Terms) -> bool:
        """True: a trust state older than allowed does not refuse by itself. Raises TrustStale where it does, or where
        there is none."""
        if terms.on_stale == "reject" or not self._trust.is_ready:
            raise TrustStale()
        return True

    def _check(self, rule: Rule, claims: Claims) -> None:
        try:
            if not rule.scopes.issubset(claims.scopes):
                raise PermissionMissing()
            if rule.any_roles and (claims.is_limited or rule.any_roles.isdisjoint(claims.roles)):
                raise PermissionMissing()
            if rule.max_authentication_age_seconds is not None:
                self._check_authentication_age(rule.max_authentication_age_seconds, claims.authentication_time)
        except IdentityError as error:
            error.account_id, error.grant_id = claims.account_id, claims.grant_id
            raise

    def _check_authentication_age(self, limit: float, authentication_time: int | None) -> None:
        if authentication_time is None or self.clock.now() - authentication_time > limit:
            raise AuthenticationTooOld()


def bearer_of(metadata: Metadata) -> str | None:
    """The text after `Bearer `; None without an authorization entry. Raises CredentialsMalformed."""
    found = None
    for key, value in metadata:
        if key == _KEY:
            if found is not None or not isinstance(value, str):
                raise CredentialsMalformed()
            found = value
    if found is None:
        return None
    if found[: len(_SCHEME)].lower() != _SCHEME:
        raise CredentialsMalformed()
    return found[len(_SCHEME) :]

"""The judge of a peer that asks a source of revocations about each call, in place of following the stream.

The same checks in the same words; but as it takes the token itself to know what to ask, the order is: rule, credential,
token, age of what the source answered, revocation, rule's conditions.
"""

from __future__ import annotations

from typing import Protocol

from identity_client.access.judge import (
    OPAQUE_BEARERS,
    OPAQUE_PREFIXES,
    Ask,
    Judge,
    Judgement,
    Look,
    Metadata,
    bearer_of,
)
from identity_client.access.options import Options
from identity_client.access.rules import Rule, Rules
from identity_client.clock import Clock
from identity_client.errors import CredentialsMissing, MethodNotGuarded, TokenError, TrustStale
from identity_client.principal import BearerKind, Principal
from identity_client.tokens import opaque
from identity_client.tokens.claims import Claims
from identity_client.tokens.verifier import Verifier
from identity_client.trust.source import Answer
from identity_client.trust.state import TrustState


class Recollection(Protocol):
    """What the last answers said."""

    @property
    def is_ready(self) -> bool:
        """Whether the source has vouched for its revocations at all; until then no call is admitted."""

    def recall(self, claims: Claims) -> Answer:
        """The newest answer about the token of a running call, which is asked about again and again; any thread."""


class RemoteJudge(Judge):
    """*trust* and *verifier* know the keys alone."""

    def __init__(
        self,
        *,
        rules: Rules,
        verifier: Verifier,
        trust: TrustState,
        recollection: Recollection,
        options: Options | None = None,
        clock: Clock | None = None,
    ) -> None:
        super().__init__(rules=rules, verifier=verifier, trust=trust, options=options, clock=clock)
        self._recollection = recollection

    def judge(self, method: str, metadata: Metadata | None) -> Judgement | Ask | Look:
        rule = self.rules.find(method)
        if rule is None:
            raise MethodNotGuarded()
        raw_token = bearer_of(metadata or ())
        if raw_token is None:
            if rule.public:
                return Judgement(None)
            raise CredentialsMissing()
        if raw_token.startswith(OPAQUE_PREFIXES) and (kind := opaque.kind_of(raw_token)):
            opaque.split_secret(raw_token, kind)
            return Ask(rule, OPAQUE_BEARERS[kind], raw_token, rule.is_confirmed, method=method)
        return self._look(method, rule, Principal(self._verifier.verify(raw_token), raw_token), is_anew=False)

    def admit(self, ask: Ask, claims: Claims) -> Look:
        """An opaque bearer of which the identity service said *claims*; the source may know better by now."""
        self._verifier.check_introspected(claims)
        return self._look(ask.method, ask.rule, Principal(claims, ask.raw_token, ask.kind), ask.is_anew)

    def recheck(self, method: str, principal: Principal) -> None:
        if principal.kind is BearerKind.ACCESS_TOKEN:
            self._verifier.recheck(principal.claims)
        else:
            self._verifier.check_introspected(principal.claims)
        answer = self._recollection.recall(principal.claims)
        answer.check()
        if self._is_answer_stale(method, answer) and self.options.find(method).on_stale == "confirm":
            raise TrustStale()

    def _look(self, method: str, rule: Rule, principal: Principal, is_anew: bool) -> Look:
        return Look(principal.claims, lambda answer: self._decide(method, rule, principal, is_anew, answer))

    def _decide(self, method: str, rule: Rule, principal: Principal, is_anew: bool, answer: Answer) -> Judgement | Ask:
        is_stale = self._is_answer_stale(method, answer)
        must_confirm = rule.is_confirmed or (is_stale and self.options.find(method).on_stale == "confirm")
        is_opaque = principal.kind is not BearerKind.ACCESS_TOKEN
        is_doubtful = must_confirm or (answer.is_outdated and not answer.is_revoked)
        if is_opaque and is_doubtful and not is_anew:
            # Its roles and scopes are read live: what was answered before is old, and not the bearer.
            return Ask(rule, principal.kind, principal.raw_token, True, method=method)
        try:
            answer.check()
        except TokenError as error:
            error.account_id, error.grant_id = principal.account_id, principal.grant_id
            raise
        self._check(rule, principal.claims)
        return Judgement(principal, must_confirm and not is_opaque, is_stale and not must_confirm)

    def _is_answer_stale(self, method: str, answer: Answer) -> bool:
        """Raises TrustStale where the age, or that nothing was ever known, refuses."""
        terms = self.options.find(method)
        if answer.age_seconds <= terms.max_staleness_seconds:
            return False
        if terms.on_stale == "reject" or not self._recollection.is_ready:
            raise TrustStale()
        return True


def build_judge(
    *,
    rules: Rules,
    verifier: Verifier,
    trust: TrustState,
    recollection: Recollection | None,
    options: Options,
    clock: Clock,
) -> Judge:
    """The judge for a peer that follows the stream, or, with a *recollection*, for one that asks."""
    if recollection is None:
        return Judge(rules=rules, verifier=verifier, trust=trust, options=options, clock=clock)
    return RemoteJudge(
        rules=rules, verifier=verifier, trust=trust, recollection=recollection, options=options, clock=clock
    )

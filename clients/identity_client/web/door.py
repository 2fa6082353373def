"""Who a request is from: the judge that guards of peers use, asked for a cookie or an Authorization header."""

from __future__ import annotations

import enum
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from identity_client.access.judge import Ask, Judgement, Look
from identity_client.access.options import Options, Terms
from identity_client.access.remote import build_judge
from identity_client.access.rules import Rule, RuleError, Rules
from identity_client.aio.identity import Identity
from identity_client.errors import (
    CertificateMismatch,
    IdentityError,
    RetryLater,
    TokenError,
    TokenMalformed,
    TokenOutdated,
    UnknownKey,
)
from identity_client.principal import Principal
from identity_client.tokens import opaque
from identity_client.tokens.verifier import Verifier
from identity_client.trust.source import Answer
from identity_client.web import cookies
from identity_client.web.asgi import Request
from identity_client.web.cookies import Cookie
from identity_client.web.origins import Origins
from identity_client.web.refusals import CredentialsAmbiguous


class Carrier(enum.Enum):
    """What brought a credential here: a cookie comes by itself, a header only from code that means it."""

    COOKIE = "cookie"
    HEADER = "header"


@dataclass(frozen=True, slots=True)
class Visitor:
    """Who a request is from, None for anyone, and by which carrier. *cookie_error* is why a cookie was not taken."""

    principal: Principal | None = None
    carrier: Carrier | None = None
    cookie_error: IdentityError | None = None


class Door:
    """Judges requests by *rules*, a Rule for each path and all below it; the longest that fits counts.

    *cookie* is the session cookie or the access cookie. Raises RuleError.
    """

    def __init__(
        self,
        identity: Identity,
        *,
        name: str,
        groups: Collection[str],
        rules: Mapping[str, Rule],
        origins: Origins,
        cookie: Cookie,
        max_staleness_seconds: float,
    ) -> None:
        _check_paths(rules)
        self._identity = identity
        self._rules = dict(rules)
        self._origins = origins
        self._cookie = cookie
        self._verifier = Verifier(audiences=frozenset({name, *groups}), trust=identity.trust, clock=identity.clock)
        self.judge = build_judge(
            rules=Rules(rules),
            verifier=self._verifier,
            trust=identity.trust,
            recollection=identity.lookups,
            options=Options(Terms(max_staleness_seconds)),
            clock=identity.clock,
        )

    def rule_of(self, path: str) -> Rule:
        """The rule for *path*."""
        return self._rules[self.rule_path(path)]

    def rule_path(self, path: str) -> str:
        """The path that the rule for *path* is written for."""
        while path not in self._rules:
            path = path.rpartition("/")[0] or "/"
        return path

    async def admit(self, request: Request) -> Visitor:
        """Who asks. Raises WebRefusal, IdentityError.

        Where anyone may come in, a cookie that is not good, or cannot be judged now, makes nobody of its bearer; an
        Authorization header must hold everywhere.
        """
        rule_path = self.rule_path(request.path)
        headers = request.values(b"authorization")
        cookie = self._cookie.find(request)
        if headers:
            if cookie is not None:
                raise CredentialsAmbiguous()
            return Visitor(await self._principal(rule_path, headers), Carrier.HEADER)
        if cookie is None:
            return Visitor(await self._principal(rule_path, []))
        if request.is_websocket or not request.is_safe:
            self._origins.check(request)
        return await self._by_cookie(rule_path, cookie)

    def check_own(self, raw_token: str) -> None:
        """Whether an access token fresh from the service holds here. Raises a TokenError."""
        self._verifier.verify(raw_token)

    async def _by_cookie(self, rule_path: str, cookie: str) -> Visitor:
        try:
            self._check_kind(cookie)
            return Visitor(await self._principal(rule_path, [f"Bearer {cookie}"]), Carrier.COOKIE)
        except (TokenError, RetryLater) as error:
            if not self._rules[rule_path].public:
                raise
            return Visitor(None, Carrier.COOKIE, error)

    async def _principal(self, rule_path: str, authorization: list[str]) -> Principal | None:
        try:
            step = self.judge.judge(rule_path, [("authorization", value) for value in authorization])
            while not isinstance(step, Judgement):
                step = await self._look(step) if isinstance(step, Look) else await self._ask(step)
            if step.must_confirm and step.principal is not None:
                await self._identity.confirm(step.principal)
        except UnknownKey:
            self._identity.note_unknown_key()
            raise
        principal = step.principal
        if principal is not None and principal.certificate_thumbprint:
            raise CertificateMismatch()  # HTTP does not show us the connection's certificate
        return principal

    async def _look(self, look: Look) -> Judgement | Ask:
        lookups = self._identity.lookups
        return look.decide(Answer() if lookups is None else await lookups.look(look.claims))

    async def _ask(self, ask: Ask) -> Judgement | Look:
        introspect = self._identity.introspections.introspect
        claims = await introspect(ask.raw_token, ask.is_anew)
        try:
            return self.judge.admit(ask, claims)
        except TokenOutdated:
            # The account changed while the answer was on its way; roles of a session are read live.
            return self.judge.admit(ask, await introspect(ask.raw_token, True))

    def _check_kind(self, cookie: str) -> None:
        """Nothing but what a log-in puts into the cookie: no API key, no token of the other mode."""
        if opaque.kind_of(cookie) is not (opaque.Kind.SESSION if self._cookie is cookies.SESSION else None):
            raise TokenMalformed()


def _check_paths(rules: Mapping[str, Rule]) -> None:
    if "/" not in rules:
        raise RuleError("the rules need one for the path '/': what holds where no other rule does")
    for path in rules:
        if not path.startswith("/") or (path != "/" and path.endswith("/")) or "//" in path:
            raise RuleError(f"{path!r}: rules are for a path and all below it, such as '/account'")

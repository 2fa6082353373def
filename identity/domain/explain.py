"""Why a text is good or not, for administrators: every check by name. Nothing is written, and no text is repeated.

The checks are the house's own parts, asked one by one. Whether an access token is good the house's verifier says in
the end, so that an explanation can never admit what a guard refuses.
"""

from __future__ import annotations

import datetime
import enum
from dataclasses import dataclass, field

from identity_client.clock import Clock
from identity_client.errors import (
    BadCredentials,
    BadSignature,
    IdentityError,
    RefreshInvalid,
    SessionEnded,
    SessionExpired,
    TokenError,
    TokenExpired,
    TokenMalformed,
    TokenNotYetValid,
    TokenOutdated,
    TokenRevoked,
    UnknownKey,
    WrongIssuer,
)
from identity_client.tokens import compact, opaque
from identity_client.tokens.claims import Claims
from identity_client.tokens.payload import read_claims
from identity_client.tokens.verifier import TrustView, Verifier

from .grants import ApiKeyUse, GrantKind, GrantStatus, SessionRecord, TokenStatus
from .ports import GrantStore, RevocationStore, SessionStore
from .refresh import End, Refuse, Repeat, decide
from .refresh_tokens import RefreshTokens, parse_refresh
from .revoke import token_identity
from .secrets import is_secret


class Outcome(enum.Enum):
    """How a check ended."""

    PASSED = "passed"
    FAILED = "failed"
    SKIPPED = "skipped"


@dataclass(frozen=True, slots=True)
class Check:
    """One check; *reason* and *explanation* where it failed, or where there is more to say."""

    name: str
    outcome: Outcome
    reason: str = ""
    explanation: str = ""


@dataclass(slots=True)
class Explanation:
    """What a text is, and what became of each check. What it says stands here only once it is proved."""

    kind: opaque.Kind | None
    is_jwt: bool = False
    checks: list[Check] = field(default_factory=list)
    claims: Claims | None = None
    grant: GrantStatus | None = None

    @property
    def is_good(self) -> bool:
        """Whether nothing speaks against it."""
        return all(check.outcome is Outcome.PASSED for check in self.checks)

    def note(self, name: str, error: IdentityError | None, explanation: str = "") -> bool:
        """Add a check; -> whether it was passed."""
        if error is None:
            self.checks.append(Check(name, Outcome.PASSED, explanation=explanation))
        else:
            self.checks.append(Check(name, Outcome.FAILED, error.reason, explanation or str(error)))
        return error is None

    def skip(self, *names: str) -> None:
        """Add checks for which there was nothing to go by."""
        self.checks += [Check(name, Outcome.SKIPPED) for name in names]


class Explainer:
    """Judges a text of any kind, check by check."""

    def __init__(
        self,
        grants: GrantStore,
        sessions: SessionStore,
        revocations: RevocationStore,
        verifier: Verifier,
        trust: TrustView,
        refresh_tokens: RefreshTokens,
        leeway_seconds: int,
        clock: Clock,
    ) -> None:
        self._grants = grants
        self._sessions = sessions
        self._revocations = revocations
        self._verifier = verifier
        self._trust = trust
        self._refresh_tokens = refresh_tokens
        self._leeway = leeway_seconds
        self._clock = clock

    async def explain(self, raw_token: str) -> Explanation:
        """Every check of *raw_token*. Raises DependencyDown."""
        match opaque.kind_of(raw_token):
            case None:
                return await self._access_token(raw_token)
            case opaque.Kind.REFRESH:
                return await self._refresh_token(raw_token)
            case kind:
                return await self._secret(raw_token, kind)

    # -- access tokens -----------------------------------------------------------------------------------------

    async def _access_token(self, raw_token: str) -> Explanation:
        told = Explanation(None, is_jwt=raw_token.count(".") == 2)
        claims = self._proved(raw_token, told)
        if claims is None:
            told.skip("issuer", "time", "revocation", "grant", "account", "roles")
            return told
        told.claims = claims
        told.note("issuer", None if claims.issuer == self._trust.issuer else WrongIssuer())
        told.note("time", self._time_error(claims))
        status = await self._revocations.find_status(token_identity(claims))
        told.note("revocation", *_taken_back(status))
        grant = await self._grants.find_status(claims.grant_id)
        self._note_grant(told, grant, TokenRevoked(), TokenRevoked())
        self._note_generation(told, grant, claims)
        told.note("roles", *_outdated(status))
        self._agree(raw_token, told)
        return told

    def _proved(self, raw_token: str, told: Explanation) -> Claims | None:
        try:
            parts = compact.split(raw_token)
            claims = read_claims(compact.parse_payload(parts.payload), parts.key_id)
        except TokenMalformed as error:
            told.note("form", error)
            told.skip("key", "signature")
            return None
        told.note("form", None)
        key = self._trust.find_key(parts.key_id)
        if not told.note("key", None if key else UnknownKey()) or key is None:
            told.skip("signature")
            return None
        is_ours = compact.check_signature(key, parts.signing_input, parts.signature)
        return claims if told.note("signature", None if is_ours else BadSignature()) else None

    def _time_error(self, claims: Claims) -> IdentityError | None:
        now = self._clock.now()
        if claims.issue_time > now + self._leeway:
            return TokenNotYetValid()
        return TokenExpired() if now >= claims.expire_time + self._leeway else None

    def _note_generation(self, told: Explanation, grant: GrantStatus | None, claims: Claims) -> None:
        if grant is None:
            told.skip("account")
        elif grant.is_account_disabled:
            told.note("account", TokenRevoked(), "the account is disabled")
        elif grant.snapshot.generation != claims.generation:
            now = grant.snapshot.generation
            told.note("account", TokenOutdated(), f"issued at generation {claims.generation}, the account is at {now}")
        else:
            told.note("account", None)

    def _agree(self, raw_token: str, told: Explanation) -> None:
        """The verifier has the last word."""
        try:
            self._verifier.verify_any_audience(raw_token)
        except TokenError as error:
            if told.is_good:
                told.note("verifier", error)

    # -- refresh tokens ----------------------------------------------------------------------------------------

    async def _refresh_token(self, raw_token: str) -> Explanation:
        told = Explanation(opaque.Kind.REFRESH)
        try:
            presented = parse_refresh(raw_token)
        except TokenMalformed:
            told.note("form", RefreshInvalid(), "not the form of a refresh token, or mistyped")
            told.skip("secret", "use", "grant", "account")
            return told
        told.note("form", None)
        held = await self._sessions.find(presented.grant_id)
        is_ours = held is not None and self._refresh_tokens.is_genuine(presented, held)
        if not told.note("secret", None if is_ours else RefreshInvalid()) or held is None:
            told.skip("use", "grant", "account")
            return told
        self._note_use(told, held, presented.count)
        told.grant = await self._grants.find_status(presented.grant_id)
        self._note_grant(told, told.grant, SessionEnded(), SessionExpired())
        self._note_enabled(told, told.grant, SessionEnded())
        return told

    def _note_use(self, told: Explanation, held: SessionRecord, count: int) -> None:
        match decide(held, count, self._clock.now()):
            case End(error):
                told.note("use", error, "spent: to use it once more would end the session")
            case Refuse(error) if not isinstance(error, SessionEnded | SessionExpired):
                told.note("use", error)
            case Repeat():
                told.note("use", None, "the newest but one: a repeat would be answered with the newest")
            case _:
                told.note("use", None)

    # -- session tokens, API keys, client secrets --------------------------------------------------------------

    async def _secret(self, raw_token: str, kind: opaque.Kind) -> Explanation:
        told = Explanation(kind)
        wrong: IdentityError = BadCredentials() if kind is opaque.Kind.CLIENT_SECRET else TokenRevoked()
        try:
            grant_id, secret = opaque.split_secret(raw_token, kind)
        except TokenMalformed as error:
            told.note("form", error, "not the form of such a text, or mistyped")
            told.skip("secret", "grant", "account")
            return told
        told.note("form", None)
        grant = await self._grants.find_status(grant_id)
        if grant is None or grant.kind is not _GRANT_KINDS[kind] or not is_secret(secret, grant.secret_hash or b""):
            told.note("secret", wrong, "unknown: never issued, long over, or its random part is wrong")
            told.skip("grant", "account")
            return told
        told.note("secret", None, _use_text(grant))
        told.grant = grant
        self._note_grant(told, grant, wrong, wrong)
        self._note_enabled(told, grant, wrong)
        return told

    # -- what is common ----------------------------------------------------------------------------------------

    def _note_grant(
        self, told: Explanation, grant: GrantStatus | None, ended: IdentityError, expired: IdentityError
    ) -> None:
        if grant is None:
            told.note("grant", ended, "there is no such session or credential, or it is long over")
        elif grant.end_time is not None:
            told.note("grant", ended, f"it ended at {_utc(grant.end_time)}: {grant.end_reason}")
        elif grant.expire_time is not None and self._clock.now() >= grant.expire_time:
            told.note("grant", expired, f"it expired at {_utc(grant.expire_time)}")
        else:
            told.note("grant", None)

    def _note_enabled(self, told: Explanation, grant: GrantStatus | None, error: IdentityError) -> None:
        is_disabled = grant is not None and grant.is_account_disabled
        told.note("account", error if is_disabled else None, "the account is disabled" if is_disabled else "")


_GRANT_KINDS = {
    opaque.Kind.SESSION: GrantKind.SESSION,
    opaque.Kind.API_KEY: GrantKind.API_KEY,
    opaque.Kind.CLIENT_SECRET: GrantKind.CLIENT_SECRET,
}


def _taken_back(status: TokenStatus) -> tuple[IdentityError | None, str]:
    if status.is_revoked:
        return TokenRevoked(), "this very token was revoked"
    return (TokenRevoked(), "the key that signed it was revoked") if status.is_key_revoked else (None, "")


def _outdated(status: TokenStatus) -> tuple[IdentityError | None, str]:
    roles = ", ".join(status.outdated_roles)
    return (TokenOutdated(), f"roles that grant less since, or are gone: {roles}") if roles else (None, "")


def _utc(seconds: int) -> str:
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC).isoformat()


def _use_text(grant: GrantStatus) -> str:
    match grant.use:
        case ApiKeyUse.EXCHANGE:
            return "for exchange: Authenticate takes it, services refuse it"
        case ApiKeyUse.BEARER:
            return "for bearer use: services take it, Authenticate refuses it"
        case None:
            return ""

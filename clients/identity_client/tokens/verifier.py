"""Whether an access token holds, here and now: every check, in one visible order.

length -> shape -> header -> key -> payload -> signature -> issuer -> times -> revocation -> audience. No claim is used
before the signature holds, and no option switches a check off. A token that passed is remembered by the SHA-256 of its
text; each later use checks expiry, and revocation again whenever the trust state has moved. Several
threads may verify at once: what they remember for each other is replaced whole, and at worst proved twice.
"""

from __future__ import annotations

import hashlib
from typing import Protocol

from identity_client.clock import Clock
from identity_client.errors import (
    BadSignature,
    TokenError,
    TokenExpired,
    TokenMalformed,
    TokenNotYetValid,
    UnknownKey,
    WrongAudience,
    WrongIssuer,
)
from identity_client.tokens import compact
from identity_client.tokens.claims import Claims
from identity_client.tokens.keys import PublicKey
from identity_client.tokens.payload import claims_of

MAXIMUM_LEEWAY_SECONDS = 30


class TrustView(Protocol):
    """What a verifier needs to know of the trust state."""

    issuer: str
    revision: int  # moves whenever a judgement could change
    expired_through: int  # Unix seconds that have certainly passed, whatever the local clock says

    def find_key(self, key_id: str) -> PublicKey | None:
        """The published key of this name."""

    def check(self, claims: Claims) -> None:
        """Raises TokenRevoked, TokenOutdated."""


class Proved:
    """A token that held when the trust state was at *revision*.

    *met*: what else its claims, which never change, were found to meet; whoever judges by them may add to it.
    """

    __slots__ = ("claims", "met", "revision")

    def __init__(self, claims: Claims, revision: int) -> None:
        self.claims = claims
        self.revision = revision
        self.met: tuple[object, ...] = ()


class Verifier:
    """Verifies access tokens of one issuer for some *audiences* (this service's name and its groups).

    *leeway_seconds* (0-30) is granted to exp and iat for clocks that differ. *max_lifetime_seconds* bounds exp - iat.
    At most *cache_size* tokens are remembered.
    """

    def __init__(
        self,
        *,
        audiences: frozenset[str],
        trust: TrustView,
        clock: Clock,
        leeway_seconds: int = 5,
        max_lifetime_seconds: int = 3600,
        cache_size: int = 20_000,
    ) -> None:
        if not 0 <= leeway_seconds <= MAXIMUM_LEEWAY_SECONDS:
            raise ValueError(f"leeway_seconds is 0-{MAXIMUM_LEEWAY_SECONDS}")
        self._audiences = audiences
        self._trust = trust
        self._clock = clock
        self._leeway = leeway_seconds
        self._max_lifetime = max_lifetime_seconds
        # Two generations in place of one list of uses: a use moves a token to the young one, a full young one
        # becomes the old one. Bounded, and each step costs the same.
        self._generation_size = max(1, cache_size // 2)
        self._young: dict[bytes, Proved] = {}
        self._old: dict[bytes, Proved] = {}

    def verify(self, raw_token: str) -> Claims:
        """The claims of a token that holds for one of our audiences. Raises a TokenError that says why not."""
        claims = self.prove(raw_token).claims
        self.check_audience(claims)
        return claims

    def verify_any_audience(self, raw_token: str) -> Claims:
        """The same whoever the token is meant for: for the issuer, which judges tokens for others."""
        return self.prove(raw_token).claims

    def check_audience(self, claims: Claims) -> None:
        """Raises WrongAudience: they are meant for others."""
        if claims.audience not in self._audiences:
            raise _of(claims, WrongAudience())

    def prove(self, raw_token: str) -> Proved:
        """Every check but that of the audience, with what is remembered of the token: for whoever checks the audience,
        like other conditions, once for a token and not once for a call. Raises a TokenError."""
        if len(raw_token) > compact.MAXIMUM_BYTES:
            raise TokenMalformed()
        name = hashlib.sha256(raw_token.encode("utf-8", "surrogatepass")).digest()
        remembered = self._young.get(name)
        if remembered is None:
            remembered = self._old.get(name)
            if remembered is None:
                return self._verify_anew(raw_token, name)
            self._remember(name, remembered)
        if remembered.revision == self._trust.revision:
            self._check_expiry(remembered.claims)
        else:
            self._judge_again(remembered)
        return remembered

    def recheck(self, claims: Claims) -> None:
        """Whether verified *claims* still hold. Raises TokenExpired, UnknownKey, TokenRevoked, TokenOutdated."""
        self._check_expiry(claims)
        if self._trust.find_key(claims.key_id) is None:
            raise UnknownKey()
        self._check_trust(claims)

    def check_introspected(self, claims: Claims) -> None:
        """Whether what the identity service answered about an opaque text holds here, and still. The answer may be
        some seconds old, so the trust state is asked all the same. No leeway: the service itself said when it ends.
        Raises TokenExpired, TokenRevoked, TokenOutdated, WrongAudience."""
        if max(self._clock.now(), self._trust.expired_through) >= claims.expire_time:
            raise _of(claims, TokenExpired())
        self._check_trust(claims)
        self.check_audience(claims)

    def _judge_again(self, remembered: Proved) -> None:
        revision = self._trust.revision  # read first: a change in between is then judged at the next use
        self.recheck(remembered.claims)
        remembered.revision = revision

    def _verify_anew(self, raw_token: str, name: bytes) -> Proved:
        revision = self._trust.revision
        claims = self._proved_claims(compact.split(raw_token))
        self._check_issuer_and_times(claims)
        self._check_trust(claims)
        proved = Proved(claims, revision)
        self._remember(name, proved)
        return proved

    def _proved_claims(self, parts: compact.Parts) -> Claims:
        key = self._trust.find_key(parts.key_id)
        if key is None:
            raise UnknownKey()
        claims = claims_of(parts.payload, parts.key_id)
        if not compact.check_signature(key, parts.signing_input, parts.signature):
            raise BadSignature()
        return claims

    def _check_issuer_and_times(self, claims: Claims) -> None:
        if claims.issuer != self._trust.issuer:
            raise WrongIssuer()
        if not 0 < claims.expire_time - claims.issue_time <= self._max_lifetime:
            raise TokenMalformed()
        if claims.issue_time > self._clock.now() + self._leeway:
            raise TokenNotYetValid()
        self._check_expiry(claims)

    def _check_expiry(self, claims: Claims) -> None:
        """Refused once now >= exp + leeway (RFC 7519 section 4.1.4).

        The issuer's own time counts as well as ours: it has forgotten the revocations of tokens that were dead by
        then, and a clock that steps back must not revive them.
        """
        end = claims.expire_time + self._leeway
        if self._clock.now() >= end or self._trust.expired_through >= end:
            raise _of(claims, TokenExpired())

    def _check_trust(self, claims: Claims) -> None:
        try:
            self._trust.check(claims)
        except TokenError as error:
            raise _of(claims, error) from None

    def _remember(self, name: bytes, remembered: Proved) -> None:
        if len(self._young) >= self._generation_size:
            self._old = self._young
            self._young = {}
        self._young[name] = remembered


def _of(claims: Claims, error: TokenError) -> TokenError:
    """*error* with the account of a token that is genuine, for reports of who was refused."""
    error.account_id = claims.account_id
    return error

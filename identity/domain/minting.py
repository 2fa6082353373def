"""From a grant's snapshot to the text of an access token."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from identity_client.errors import ScopeNotGranted, TokenTooLarge
from identity_client.tokens import compact
from identity_client.tokens.claims import Claims

from .grants import GrantSnapshot
from .ports import Signer
from .randomness import Randomness, new_id
from .roles import OWN_SCOPES

BUDGET_BYTES = 2048
"""The longest token that is issued: gRPC metadata is refused at random from 8,192 bytes on."""

_SIGNATURE_CHARACTERS = 87  # with its dot


@dataclass(frozen=True, slots=True)
class AccessToken:
    """A minted token."""

    text: str = field(repr=False)
    expire_time: int


@dataclass(frozen=True, slots=True)
class Issued:
    """What a caller gets for a credential or a refresh token: an access token, and what renews it, if anything."""

    snapshot: GrantSnapshot
    access: AccessToken
    refresh_text: str | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class OpenedSession:
    """What a caller gets who asks for a session token."""

    snapshot: GrantSnapshot
    audiences: tuple[str, ...]
    session_text: str = field(repr=False)


class Minter:
    """Issues access tokens of one issuer and lifetime (seconds).

    Scopes of this service stand in tokens for this service alone: whoever receives a token for a group, or for
    themselves, could otherwise administer us with it.
    """

    def __init__(self, signer: Signer, issuer: str, service_name: str, lifetime: int, randomness: Randomness) -> None:
        self._signer = signer
        self._issuer = issuer
        self._service_name = service_name
        self._randomness = randomness
        self.lifetime = lifetime

    def check_scopes(self, audiences: tuple[str, ...], requested: tuple[str, ...]) -> None:
        """Raises ScopeNotGranted: a scope of this service was asked for in a token for others."""
        if self.fitting(audiences, requested) != requested:
            raise ScopeNotGranted(f"scopes of this service need the audience {self._service_name}")

    def check_budget(self, snapshot: GrantSnapshot) -> None:
        """Raises TokenTooLarge. For inside the transaction that issues: ids and signature have fixed lengths."""
        if len(compact.signing_input(self._claims(self._fitted(snapshot)))) + _SIGNATURE_CHARACTERS > BUDGET_BYTES:
            raise TokenTooLarge()

    def issue(self, snapshot: GrantSnapshot, refresh_text: str | None = None) -> Issued:
        """Sign what the snapshot says; iat is the time of the statement that read it. Raises ValueError: too large,
        which `check_budget` tells before anything is written."""
        fitted = self._fitted(snapshot)
        claims = self._claims(fitted)
        text = self._signer.sign(claims)
        if len(text) > BUDGET_BYTES:
            raise ValueError("the budget was not checked")
        return Issued(fitted, AccessToken(text, claims.expire_time), refresh_text)

    def fitting(self, audiences: tuple[str, ...], scopes: tuple[str, ...]) -> tuple[str, ...]:
        """Those of *scopes* that may stand in a token for *audiences*."""
        if self._service_name in audiences:
            return scopes
        return tuple(scope for scope in scopes if not scope.startswith(OWN_SCOPES))

    def _fitted(self, snapshot: GrantSnapshot) -> GrantSnapshot:
        return replace(snapshot, scopes=self.fitting((snapshot.audience,), snapshot.scopes))

    def _claims(self, snapshot: GrantSnapshot) -> Claims:
        return Claims(
            issuer=self._issuer,
            account_id=snapshot.account_id,
            audience=snapshot.audience,
            expire_time=self._expire_time(snapshot),
            issue_time=snapshot.issue_time,
            token_id=new_id(self._randomness),
            client_id=snapshot.client_id,
            grant_id=snapshot.grant_id,
            generation=snapshot.generation,
            policy_version=snapshot.policy_version,
            key_id=self._signer.key_id,
            scopes=snapshot.scopes,
            roles=snapshot.roles,
            authentication_time=snapshot.authentication_time,
            authentication_methods=snapshot.authentication_methods,
            certificate_thumbprint=snapshot.certificate_thumbprint,
            actors=snapshot.actors,
            is_limited=snapshot.is_limited,
        )

    def _expire_time(self, snapshot: GrantSnapshot) -> int:
        """A token does not outlive its grant."""
        expire_time = snapshot.issue_time + self.lifetime
        return expire_time if snapshot.latest_expire_time is None else min(expire_time, snapshot.latest_expire_time)

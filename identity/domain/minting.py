"""From a grant's snapshot to the text of an access token."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from identity_client.errors import ScopeNotGranted, TokenTooLarge
from identity_client.tokens.claims import Claims

from .ports import Signer
from .randomness import Randomness, new_id
from .roles import OWN_SCOPES
from .values import GrantSnapshot

BUDGET_BYTES = 2048
"""The longest token that is issued: gRPC metadata is refused at random from 8,192 bytes on."""


@dataclass(frozen=True, slots=True)
class AccessToken:
    """A minted token."""

    text: str = field(repr=False)
    expire_time: int


@dataclass(frozen=True, slots=True)
class Issued:
    """What a caller gets for a credential or a refresh token."""

    snapshot: GrantSnapshot
    access: AccessToken
    refresh_text: str | None = field(default=None, repr=False)


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

    def check_scopes(self, audience: str, requested: tuple[str, ...]) -> None:
        """Raises ScopeNotGranted: a scope of this service was asked for in a token for another."""
        if self._fitting(audience, requested) != requested:
            raise ScopeNotGranted(f"scopes of this service need the audience {self._service_name}")

    def issue(self, snapshot: GrantSnapshot, refresh_text: str | None = None) -> Issued:
        """Sign what the snapshot says; iat is the time of the statement that read it. Raises TokenTooLarge."""
        fitting = replace(snapshot, scopes=self._fitting(snapshot.audience, snapshot.scopes))
        claims = self._claims(fitting)
        text = self._signer.sign(claims)
        if len(text) > BUDGET_BYTES:
            raise TokenTooLarge()
        return Issued(fitting, AccessToken(text, claims.expire_time), refresh_text)

    def _fitting(self, audience: str, scopes: tuple[str, ...]) -> tuple[str, ...]:
        if audience == self._service_name:
            return scopes
        return tuple(scope for scope in scopes if not scope.startswith(OWN_SCOPES))

    def _claims(self, snapshot: GrantSnapshot) -> Claims:
        return Claims(
            issuer=self._issuer,
            account_id=snapshot.account_id,
            audience=snapshot.audience,
            expire_time=snapshot.issue_time + self.lifetime,
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
        )

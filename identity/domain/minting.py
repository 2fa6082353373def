"""From a grant's snapshot to the text of an access token."""

from __future__ import annotations

from dataclasses import dataclass, field

from identity_client.errors import TokenTooLarge
from identity_client.tokens.claims import Claims

from .ports import Signer
from .randomness import Randomness, new_id
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
    """Issues access tokens of one issuer and lifetime (seconds)."""

    def __init__(self, signer: Signer, issuer: str, lifetime: int, randomness: Randomness) -> None:
        self._signer = signer
        self._issuer = issuer
        self._randomness = randomness
        self.lifetime = lifetime

    def access_token(self, snapshot: GrantSnapshot) -> AccessToken:
        """Sign what the snapshot says; iat is the time of the statement that read it. Raises TokenTooLarge."""
        claims = self._claims(snapshot)
        text = self._signer.sign(claims)
        if len(text) > BUDGET_BYTES:
            raise TokenTooLarge()
        return AccessToken(text, claims.expire_time)

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

"""What an Issuer hands out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

from identity_client.errors import TokenMalformed
from identity_client.principal import BearerKind
from identity_client.tokens import compact
from identity_client.tokens.claims import Claims
from identity_client.tokens.payload import read_claims


class Credential(tuple[tuple[str, str], ...]):
    """What a caller presents, ready to be a call's `metadata`; *raw_token* is the text alone."""

    raw_token: str
    claims: Claims
    kind: BearerKind

    def __new__(cls, raw_token: str, claims: Claims, kind: BearerKind) -> Self:
        made = super().__new__(cls, (("authorization", f"Bearer {raw_token}"),))
        made.raw_token, made.claims, made.kind = raw_token, claims, kind
        return made

    def __repr__(self) -> str:
        return f"<{self.kind.value} of account {self.claims.account_id} for {self.claims.audience}>"

    @property
    def account_id(self) -> str:
        """The account that it speaks for."""
        return self.claims.account_id

    @property
    def grant_id(self) -> str:
        """The session or credential that it hangs off."""
        return self.claims.grant_id


def names(given: Sequence[str]) -> tuple[str, ...]:
    """Scopes or roles. Raises TypeError for one text, which is a sequence of letters, too."""
    if isinstance(given, str):
        raise TypeError(f"a list of names is wanted, not the text {given!r}")
    return tuple(given)


def check_issuable(raw_token: str, claims: Claims) -> None:
    """Raises ValueError where a verifier would not read *raw_token* back as *claims*."""
    try:
        parts = compact.split(raw_token)
        is_read_back = read_claims(compact.parse_payload(parts.payload), parts.key_id) == claims
    except TokenMalformed:
        is_read_back = False
    if not is_read_back:
        raise ValueError("the identity service issues no token with such names, or of such a length")

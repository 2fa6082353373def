"""Saying what a token is worth to the service that asks (RFC 7662)."""

from __future__ import annotations

from identity_client.errors import TokenError, WrongAudience
from identity_client.tokens.claims import Claims
from identity_client.tokens.verifier import Verifier


class Introspector:
    """Judges tokens for others with the very verifier that guards this service."""

    def __init__(self, verifier: Verifier, groups: frozenset[str]) -> None:
        self._verifier = verifier
        self._groups = groups

    def introspect(self, raw_token: str, caller_name: str) -> Claims | None:
        """The claims of a token that *caller_name*, a service, may accept now; None for any other text.

        Why a text is refused is not said: a service learns nothing about tokens that are not meant for it.
        """
        try:
            claims = self._verifier.verify_any_audience(raw_token)
            if claims.audience != caller_name and claims.audience not in self._groups:
                raise WrongAudience()
        except TokenError:
            return None
        return claims

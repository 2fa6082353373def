"""Acting for whoever calls: the received token is exchanged for one for the next service (RFC 8693), and remembered."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

from identity_client.aio.token_source import AccessToken, TokenSource
from identity_client.principal import Principal

MAXIMUM_SUBJECTS = 10_000
"""How many received tokens are remembered for each next service; beyond it the one heard of first is forgotten."""

FindCaller = Callable[[], Principal]
"""Asked at each call; `identity_client.current_principal` names the caller of the call being served."""


class Exchanges:
    """Tokens for one next service: a source for each received token. Lives on one event loop."""

    def __init__(self, open_source: Callable[[str], TokenSource]) -> None:
        self._open_source = open_source
        self._sources: dict[bytes, TokenSource] = {}

    def source(self, raw_token: str) -> TokenSource:
        """The exchanged token of *raw_token*."""
        name = _name(raw_token)
        source = self._sources.get(name)
        if source is None:
            if len(self._sources) >= MAXIMUM_SUBJECTS:
                self._sources.pop(next(iter(self._sources)))
            source = self._sources[name] = self._open_source(raw_token)
        return source

    def held(self, raw_token: str) -> AccessToken | None:
        """The exchanged token in hand, if it needs no renewal. May be read from any thread."""
        source = self._sources.get(_name(raw_token))
        return None if source is None else source.held


def _name(raw_token: str) -> bytes:
    return hashlib.sha256(raw_token.encode()).digest()

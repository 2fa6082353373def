"""The two ways to keep a log-in in cookies: one opaque session token, or an access token and a refresh token."""

from __future__ import annotations

from typing import Protocol

from identity_client.errors import TokenError
from identity_client.tokens import compact, opaque
from identity_client.tokens.payload import read_claims
from identity_client.web import cookies
from identity_client.web.asgi import Request
from identity_client.web.cookies import Cookie
from identity_client.web.refusals import NothingToRenew
from identity_client.web.service import Granted


class Mode(Protocol):
    """How cookies are written, and what a browser's cookies hold that is well-formed. None of it is proved here."""

    cookie: Cookie
    """The one that every request is judged by."""

    def given(self, granted: Granted, root: str) -> list[str]:
        """The Set-Cookie values of a log-in to an application that is mounted at *root*."""

    def cleared(self, root: str) -> list[str]:
        """The Set-Cookie values of a log-out."""

    def offered(self, request: Request) -> list[str]:
        """What stands in the main cookie, fit to be sent to the identity service."""

    def texts(self, request: Request) -> list[str]:
        """All that a log-out can end the session by, the main cookie's first."""


class SessionMode:
    """An opaque session token in `__Host-session`."""

    cookie = cookies.SESSION

    def given(self, granted: Granted, _: str) -> list[str]:
        return [self.cookie.given(granted.bearer)]

    def cleared(self, _: str) -> list[str]:
        return [self.cookie.cleared()]

    def offered(self, request: Request) -> list[str]:
        return [value for value in self.cookie.values(request) if _is_session_token(value)]

    def texts(self, request: Request) -> list[str]:
        return self.offered(request)


class JwtMode:
    """An access token in `__Host-access`, and a refresh token in `__Secure-refresh` for *refresh_path* alone."""

    cookie = cookies.ACCESS

    def __init__(self, refresh_path: str) -> None:
        self._refresh = cookies.refresh_cookie(refresh_path)

    def given(self, granted: Granted, root: str) -> list[str]:
        return [self.cookie.given(granted.bearer), self._refresh.below(root).given(granted.refresh)]

    def cleared(self, root: str) -> list[str]:
        return [self.cookie.cleared(), self._refresh.below(root).cleared()]

    def offered(self, request: Request) -> list[str]:
        return [value for value in self.cookie.values(request) if _session_of_access(value)]

    def texts(self, request: Request) -> list[str]:
        refresh = [value for value in self._refresh.values(request) if _session_of_refresh(value)]
        return [*self.offered(request), *refresh]

    def refresh_token(self, request: Request) -> str:
        """The refresh token that belongs to the access cookie. Raises NothingToRenew, CookieRepeated, CookiesTooLarge.

        Unlike the access cookie, the refresh cookie can be planted from a sibling host: it counts only if it names the
        session that the access cookie names. That one may have expired, and its signature does not matter here: nobody
        but us could set it.
        """
        session_id = _session_of_access(self.cookie.find(request) or "")
        bound = [
            value for value in self._refresh.values(request) if session_id and _session_of_refresh(value) == session_id
        ]
        if len(bound) != 1:
            raise NothingToRenew()
        return bound[0]


def _is_session_token(value: str) -> bool:
    try:
        opaque.split_secret(value, opaque.Kind.SESSION)
    except TokenError:
        return False
    return True


def _session_of_access(value: str) -> str:
    """The session named in an access token, not proved; empty for another text."""
    try:
        parts = compact.split(value)
        return read_claims(compact.parse_payload(parts.payload), parts.key_id).grant_id
    except TokenError:
        return ""


def _session_of_refresh(value: str) -> str:
    try:
        return opaque.split_refresh(value)[0]
    except TokenError:
        return ""

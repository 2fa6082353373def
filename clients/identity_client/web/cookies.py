"""The cookies that carry a log-in, written with every protection there is and read with none assumed."""

from __future__ import annotations

from dataclasses import dataclass, replace

from identity_client.web.asgi import Request
from identity_client.web.refusals import CookieRepeated, CookiesTooLarge

MAXIMUM_BYTES = 16_384
"""Of all cookies of one request together. A browser sends a site at most some 180 of 4,096 bytes."""


@dataclass(frozen=True, slots=True)
class Cookie:
    """A cookie for HTTPS (or loopback), out of reach of scripts and of other sites.

    It has no Domain, so that no other host gets it, and no Max-Age: closing the browser forgets it. A name that begins
    with `__Host-` cannot be planted from a sibling host or over plain HTTP (RFC 6265bis section 4.1.3).
    """

    name: str
    path: str = "/"

    def below(self, root: str) -> Cookie:
        """The same for an application that is mounted at *root*."""
        return replace(self, path=root + self.path)

    def given(self, value: str) -> str:
        """The Set-Cookie value that hands it out. *value* is the text of a token, all of whose characters may stand in
        a cookie."""
        return f"{self.name}={value}; Path={self.path}; Secure; HttpOnly; SameSite=Strict"

    def cleared(self) -> str:
        """The Set-Cookie value that takes it back."""
        return f"{self.name}=; Path={self.path}; Max-Age=0; Secure; HttpOnly; SameSite=Strict"

    def values(self, request: Request) -> list[str]:
        """Every value that the request has for this name, in its order. Raises CookiesTooLarge."""
        headers = request.values(b"cookie")
        if sum(map(len, headers)) > MAXIMUM_BYTES:
            raise CookiesTooLarge()
        pairs = (pair.strip(" \t").partition("=") for header in headers for pair in header.split(";"))
        # Compared as it stands: a reader that trims or decodes more would take a look-alike for the name, which the
        # browser did not protect.
        return [value for name, _, value in pairs if name == self.name]

    def find(self, request: Request) -> str | None:
        """The value, or None. An empty one is none. Raises CookieRepeated, CookiesTooLarge."""
        values = self.values(request)
        if len(values) > 1:
            raise CookieRepeated()
        return values[0] or None if values else None


SESSION = Cookie("__Host-session")
"""The opaque session token."""

ACCESS = Cookie("__Host-access")
"""The access token of a single-page application."""


def refresh_cookie(path: str) -> Cookie:
    """The refresh token, sent to *path* and below alone. `__Host-` would demand the path `/`, so that a sibling host
    could plant this one: it counts only together with the access cookie of the same session."""
    return Cookie("__Secure-refresh", path)

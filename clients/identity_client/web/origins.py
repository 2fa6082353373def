"""Which requests come from the site's own pages. With a cookie, an unsafe request from anywhere else is refused: the
browser adds the cookie whoever made it send the request."""

from __future__ import annotations

import re
from collections.abc import Collection
from urllib.parse import urlsplit

from identity_client.aio.environment import is_loopback
from identity_client.web.asgi import Request
from identity_client.web.refusals import CrossSiteRequest

_ORIGIN = re.compile(r"(https?)://([a-z0-9.-]+|\[[0-9a-f:.]+\])(:[0-9]{1,5})?")


class Origins:
    """The site's own *origins*, as a browser writes them: https://shop.example, without a path.

    Plain http is taken for loopback alone (localhost, *.localhost, 127.0.0.1, [::1]), which browsers treat as secure:
    there is no mode in which a cookie travels unprotected. Raises ValueError.
    """

    def __init__(self, origins: Collection[str]) -> None:
        if isinstance(origins, str) or not origins:
            raise ValueError("origins lists the site's own, such as https://shop.example")
        for origin in origins:
            _check(origin)
        self._origins = frozenset(origins)

    def check(self, request: Request) -> None:
        """Whether the site's own pages sent *request*. Raises CrossSiteRequest, HeaderRepeated.

        Fetch Metadata where the browser sends it: `same-origin` alone will do, for a sibling host may be another's and
        `none` does not send forms. And Origin, or else Referer, where one is sent; without all three it is refused.
        """
        site = request.find(b"sec-fetch-site")
        if site not in (None, "same-origin"):
            raise CrossSiteRequest()
        origin = request.find(b"origin")
        if origin is None and site is None:
            origin = _of(request.find(b"referer") or "")
        if origin == "null" and site is not None:
            return  # a page of ours under Referrer-Policy: no-referrer; the browser has vouched for it
        if origin is not None and origin not in self._origins:
            raise CrossSiteRequest()

    def check_navigation(self, request: Request) -> None:
        """Whether *request*, of a safe method, was made by the site's own pages or by the person who uses the browser.
        Raises CrossSiteRequest, HeaderRepeated."""
        if request.find(b"sec-fetch-site") not in (None, "same-origin", "none"):
            raise CrossSiteRequest()


def _check(origin: str) -> None:
    match = _ORIGIN.fullmatch(origin)
    if match is None:
        raise ValueError(f"{origin!r} is not an origin such as https://shop.example: no path, lower case")
    scheme, host, port = match.groups()
    if port == {"https": ":443", "http": ":80"}[scheme]:
        raise ValueError(f"{origin!r}: a browser leaves out the scheme's own port")
    if scheme == "http" and not (host.endswith(".localhost") or is_loopback(f"{host}:0")):
        raise ValueError(f"{origin!r}: beyond loopback a site with log-ins has https")


def _of(referer: str) -> str:
    try:
        parts = urlsplit(referer)
    except ValueError:
        return ""
    return f"{parts.scheme}://{parts.netloc}"

"""What a front end needs to know of ASGI: its types, and one request read strictly."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, TypeAlias

from identity_client.web.refusals import HeaderRepeated, PathAmbiguous

Scope: TypeAlias = MutableMapping[str, Any]
Message: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]
App: TypeAlias = Callable[[Scope, Receive, Send], Awaitable[None]]

SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
"""What changes nothing (RFC 9110 section 9.2.1). TRACE is none of ours."""

# What some part of a server may read as another path than the rules did.
_AMBIGUOUS = re.compile(r"//|/\.{1,2}(/|$)|[\\\x00-\x1f\x7f]")


class Request:
    """The head of a request. *root* is where the application is mounted, *path* what it routes by, below that. Raises
    PathAmbiguous for a path that could be read in two ways."""

    def __init__(self, scope: Scope) -> None:
        self.scope = scope
        self.is_websocket: bool = scope["type"] == "websocket"
        self.method: str = "GET" if self.is_websocket else scope["method"]
        self.root, self.path = _split(scope)

    @property
    def is_safe(self) -> bool:
        """Whether the method promises to change nothing."""
        return self.method in SAFE_METHODS

    def values(self, name: bytes) -> list[str]:
        """Every value of the header *name* (lower case)."""
        return [value.decode("latin-1") for key, value in self.scope["headers"] if key.lower() == name]

    def find(self, name: bytes) -> str | None:
        """The one value of a header, or None. Raises HeaderRepeated: which of several a reader takes is anyone's
        guess."""
        values = self.values(name)
        if len(values) > 1:
            raise HeaderRepeated()
        return values[0] if values else None

    def at(self, path: str) -> str:
        """A path of the application as the browser sees it."""
        return self.root + path

    @property
    def target(self) -> str:
        """Path and query as they were asked for."""
        raw: bytes = self.scope.get("raw_path") or self.scope["path"].encode()
        query: bytes = self.scope.get("query_string", b"")
        return (raw.partition(b"?")[0] + (b"?" + query if query else b"")).decode("latin-1")

    @property
    def is_navigation(self) -> bool:
        """Whether a person opens a page, as far as one can tell: a browser says so, others are asked what they take."""
        mode = self.values(b"sec-fetch-mode")
        if mode:
            return mode == ["navigate"]
        return any("text/html" in value for value in self.values(b"accept"))


def _split(scope: Scope) -> tuple[str, str]:
    """The path of ASGI contains root_path (of a proxy's prefix, or of a mount), and frameworks route by the rest:
    rules that looked at the whole would speak of other paths than the application."""
    path, root = scope["path"], scope.get("root_path", "").rstrip("/")
    if not path.startswith("/") or _AMBIGUOUS.search(path):
        raise PathAmbiguous()
    if not root:
        return "", path
    if path != root and not path.startswith(f"{root}/"):
        raise PathAmbiguous()
    return root, path[len(root) :] or "/"

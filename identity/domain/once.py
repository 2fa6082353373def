"""Requests that act once however often they are sent: the caller names them, and a repeat is known by its name."""

from __future__ import annotations

import hashlib
import hmac
import re

from identity_client.errors import InvalidRequest

from .secrets import refuse_token_text
from .values import Once

REMEMBERED_SECONDS = 86_400
"""How long a request is remembered."""

_NAME = re.compile(r"[A-Za-z0-9_-]{8,64}")


class RequestIds:
    """Reads the field request_id. Of the request a keyed digest is kept: it may hold a password, which a plain one
    would let a thief of the database guess at."""

    def __init__(self, key: bytes) -> None:
        self._key = key

    def read(self, request_id: str, method: str, content: bytes) -> Once | None:
        """*content*: the request but for its request_id, in a form that is the same for the same request.

        None where no request_id is given. Raises InvalidRequest.
        """
        if not request_id:
            return None
        refuse_token_text(request_id, "request_id")
        if not _NAME.fullmatch(request_id):
            raise InvalidRequest("8-64 of A-Z, a-z, 0-9, '-' and '_', for instance a UUID", "request_id")
        return Once(request_id, method, hmac.digest(self._key, method.encode() + b"\0" + content, hashlib.sha256))

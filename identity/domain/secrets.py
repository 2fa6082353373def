"""Machine secrets: 256 random bits need one SHA-256, not a password hash; and none may end up as a name."""

from __future__ import annotations

import hashlib
import hmac

from identity_client.errors import InvalidRequest
from identity_client.tokens import opaque

_JWT_BEGINNING = "eyJ"  # an opening brace and a quotation mark in base64


def hash_secret(secret: bytes) -> bytes:
    """What is stored of a machine's secret."""
    return hashlib.sha256(secret).digest()


def is_secret(presented: bytes, stored_hash: bytes) -> bool:
    """Whether the presented secret has the stored hash. Constant time."""
    return hmac.compare_digest(hash_secret(presented), stored_hash)


def refuse_token_text(text: str, field: str) -> None:
    """Raises InvalidRequest for a token or secret that was pasted where something else is to be chosen."""
    if opaque.kind_of(text) or text.startswith(_JWT_BEGINNING):
        raise InvalidRequest("this is the text of a token, pasted into the wrong field", field)

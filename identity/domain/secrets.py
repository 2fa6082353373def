"""Comparing machine secrets: 256 random bits need one SHA-256, not a password hash."""

from __future__ import annotations

import hashlib
import hmac


def hash_secret(secret: bytes) -> bytes:
    """What is stored of a machine's secret."""
    return hashlib.sha256(secret).digest()


def is_secret(presented: bytes, stored_hash: bytes) -> bool:
    """Whether the presented secret has the stored hash. Constant time."""
    return hmac.compare_digest(hash_secret(presented), stored_hash)

"""The public keys as a JWK Set, for verifiers that speak HTTP."""

from __future__ import annotations

import json
from collections.abc import Iterable

from identity_client.tokens.keys import PublicKey, base64url


def document(keys: Iterable[PublicKey]) -> bytes:
    """JSON (RFC 7517 section 5): each key on P-256 (RFC 7518 section 6.2.1), for ES256 signatures alone."""
    return json.dumps({"keys": [_jwk(key) for key in keys]}).encode()


def _jwk(key: PublicKey) -> dict[str, str]:
    return {
        "kty": "EC",
        "crv": "P-256",
        "x": base64url(key.x),
        "y": base64url(key.y),
        "use": "sig",
        "alg": "ES256",
        "kid": key.key_id,
    }

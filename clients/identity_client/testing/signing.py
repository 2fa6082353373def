"""A signing key that lives as long as its test: real P-256, real tokens."""

from __future__ import annotations

import secrets

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

from identity_client.tokens import compact
from identity_client.tokens.claims import Claims
from identity_client.tokens.keys import PublicKey, base64url
from identity_client.trust.entries import id_text


class SigningKey:
    """Signs claims as the identity service does."""

    def __init__(self) -> None:
        self.private_key = ec.generate_private_key(ec.SECP256R1())
        self.public_key = PublicKey.from_key(self.private_key.public_key())

    @property
    def key_id(self) -> str:
        """The name that tokens carry (kid)."""
        return self.public_key.key_id

    def sign(self, claims: Claims) -> str:
        """The token's text. *claims* are signed as they are, sensible or not."""
        signing_input = compact.signing_input(claims)
        r, s = decode_dss_signature(self.private_key.sign(signing_input, ec.ECDSA(hashes.SHA256())))
        signature = compact.low_s(r.to_bytes(32, "big") + s.to_bytes(32, "big"))
        return f"{signing_input.decode('ascii')}.{base64url(signature)}"


def new_id() -> str:
    """A random id as the service gives them to tokens, sessions and accounts."""
    return id_text(secrets.token_bytes(16))

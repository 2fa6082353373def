"""An attacker with everything but the key, and a second hand that signs nonsense with the real key.

What the real key signs is refused for its content alone: a rule that is missed shows at once.
"""

from __future__ import annotations

import json
import random
from dataclasses import dataclass, field
from typing import Any

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

from identity_client.tokens import compact
from identity_client.tokens.keys import PublicKey, base64url
from identity_client.tokens.verifier import Verifier
from identity_client.trust.state import TrustState
from tests.clients.issuer import ISSUER, FixedClock, Issuer

ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551


@dataclass
class Forger:
    """Builds texts. *chance* decides every choice, so that a seed repeats a run."""

    issuer: Issuer
    chance: random.Random
    stranger: ec.EllipticCurvePrivateKey = field(default_factory=lambda: ec.generate_private_key(ec.SECP256R1()))

    def header(self) -> dict[str, Any]:
        """What a good header holds, in its order."""
        return {"alg": "ES256", "kid": self.issuer.public_key.key_id, "typ": "at+jwt"}

    def payload(self) -> dict[str, Any]:
        """What a good payload holds."""
        text = self.issuer.mint(scopes=("orders.read",), authentication_time=1_899_999_000)
        return self.members(text.split(".")[1])

    def good(self) -> str:
        """A token that must be accepted."""
        return self.sign(self.header(), self.payload())

    def sign(self, header: Any, payload: Any) -> str:
        """Signed with the real key, whatever it says. Bytes are taken as they are, the rest is written as JSON."""
        return self.sign_with(self.issuer.key.private_key, header, payload)

    def sign_with(self, key: ec.EllipticCurvePrivateKey, header: Any, payload: Any) -> str:
        """The same with another key."""
        signing_input = f"{base64url(as_bytes(header))}.{base64url(as_bytes(payload))}"
        return f"{signing_input}.{base64url(raw_signature(key, signing_input.encode()))}"

    def resigned(self, change: Any) -> str:
        """A good token whose 64 signature bytes went through *change*."""
        signing_input, _, signature = self.good().rpartition(".")
        raw = bytearray(compact.split(f"{signing_input}.{signature}").signature)
        return f"{signing_input}.{base64url(bytes(change(raw)))}"

    def claim(self, name: str, value: Any) -> str:
        """A good token but for one claim."""
        return self.sign(self.header(), self.payload() | {name: value})

    def without(self, name: str) -> str:
        """A good token but for one claim that is missing."""
        return self.sign(self.header(), {key: value for key, value in self.payload().items() if key != name})

    def member(self, name: str, value: Any) -> str:
        """A good token but for one member of its header."""
        return self.sign(self.header() | {name: value}, self.payload())

    def raw_payload(self, edit: Any) -> str:
        """A good token whose payload text went through *edit*."""
        return self.sign(self.header(), edit(as_bytes(self.payload()).decode()).encode())

    @staticmethod
    def members(segment: str) -> dict[str, Any]:
        """A segment's JSON."""
        import base64

        loaded: dict[str, Any] = json.loads(base64.urlsafe_b64decode(segment + "=" * (-len(segment) % 4)))
        return loaded


def as_bytes(value: Any) -> bytes:
    """JSON as the issuer writes it, or the bytes themselves."""
    return value if isinstance(value, bytes) else json.dumps(value, separators=(",", ":")).encode()


def raw_signature(key: ec.EllipticCurvePrivateKey, message: bytes) -> bytes:
    """r and s, s in its lower half."""
    r, s = decode_dss_signature(key.sign(message, ec.ECDSA(hashes.SHA256())))
    return compact.low_s(r.to_bytes(32, "big") + s.to_bytes(32, "big"))


def der_signature(key: ec.EllipticCurvePrivateKey, message: bytes) -> bytes:
    """The same signature in its other form."""
    return key.sign(message, ec.ECDSA(hashes.SHA256()))


def make_verifier(clock: FixedClock, *keys: PublicKey) -> Verifier:
    """A verifier for `orders` that trusts *keys*; nothing is revoked."""
    trust = TrustState(clock)
    trust.set_keys(ISSUER, keys)
    trust.begin_snapshot("epoch", 0, 0)
    trust.touch(0)
    return Verifier(audiences=frozenset({"orders", "internal"}), trust=trust, clock=clock)

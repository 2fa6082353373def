"""Verification of one token: cold, over the bare signature check, and warm; without and with a million revocations."""

from __future__ import annotations

from collections.abc import Iterable

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

from identity_client.tokens import compact
from identity_client.tokens.verifier import Verifier
from identity_client.trust.state import TrustState
from tests.bench.harness import Figure, in_turns, ratios
from tests.bench.material import filled
from tests.clients.issuer import FixedClock, Issuer

_AUDIENCES = frozenset({"internal"})


def run(quick: bool) -> Iterable[Figure]:
    clock = FixedClock()
    issuer = Issuer(clock)
    tokens = [
        issuer.mint(scopes=("orders.read", "orders.write"), authentication_time=int(clock.now()))
        for _ in range(50 if quick else 300)
    ]
    rounds = 5 if quick else 15
    for count in (0, 100_000 if quick else 1_000_000):
        state = filled(count, clock, issuer.public_key)
        yield _cold(issuer, tokens, state, clock, rounds, count)
        yield _warm(tokens, state, clock, rounds, count)


def _cold(issuer: Issuer, tokens: list[str], state: TrustState, clock: FixedClock, rounds: int, count: int) -> Figure:
    key, algorithm = issuer.public_key.key, ec.ECDSA(hashes.SHA256())
    signed = [_signed(token) for token in tokens]

    def bare() -> None:
        for signature, signing_input in signed:
            key.verify(signature, signing_input, algorithm)

    def cold() -> None:
        verifier = Verifier(audiences=_AUDIENCES, trust=state, clock=clock)
        for token in tokens:
            verifier.verify(token)

    name = f"verify cold, {count:,} revocations, over bare ES256"
    return Figure(name, "x", ratios(rounds, cold, bare), reach=1.35, moonshot=1.15)


def _signed(token: str) -> tuple[bytes, bytes]:
    """Signature in DER, and what is signed: what the library itself wants."""
    parts = compact.split(token)
    r, s = int.from_bytes(parts.signature[:32], "big"), int.from_bytes(parts.signature[32:], "big")
    return encode_dss_signature(r, s), parts.signing_input


def _warm(tokens: list[str], state: TrustState, clock: FixedClock, rounds: int, count: int) -> Figure:
    verifier = Verifier(audiences=_AUDIENCES, trust=state, clock=clock)
    calls = tokens * 20

    def warm() -> None:
        for token in calls:
            verifier.verify(token)

    warm()
    [times] = in_turns(rounds, warm)
    microseconds = [taken / len(calls) * 1e6 for taken in times]
    return Figure(f"verify warm, {count:,} revocations", "us", microseconds, reach=2.0, moonshot=1.0)

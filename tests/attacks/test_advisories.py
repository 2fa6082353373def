"""What went wrong elsewhere, tried here: each published advisory names the mutants that repeat its attack.

Three that are about fetching keys are tried where keys are fetched, in tests/clients/test_identity.py: a failed fetch
must keep the keys held (GHSA-fhv5-28vv-h8m8), unknown kids must not cause a flood of fetches (GHSA-2gx3-rcp4-g85q).
"""

from __future__ import annotations

import random
import time

import pytest

from identity_client.errors import TokenError, TokenMalformed
from identity_client.tokens.verifier import Verifier
from tests.attacks import mutants
from tests.attacks.forger import Forger, make_verifier
from tests.clients.issuer import FixedClock, Issuer

ADVISORIES = {
    "PyJWT CVE-2022-29217: the public key as an HMAC secret": ["header: HS256 keyed with the PEM"],
    "PyJWT GHSA-xgmm-8j9v-c9wx: the same, in DER": ["header: HS256 keyed with the DER"],
    "PyJWT GHSA-pxh4-856f-4h89: the same, as a point": ["header: HS256 keyed with the point"],
    "PyJWT GHSA-r6x4-923q-g947: the same, as a JWK": ["header: HS256 keyed with the JWK"],
    "PyJWT CVE-2024-53861: an issuer that is part of ours": [
        "claims: iss part of ours",
        "claims: iss longer than ours",
    ],
    "PyJWT CVE-2026-32597: crit ignored": ["header: crit unknown", "header: crit empty", "header: crit b64"],
    "PyJWT GHSA-jq35-7prp-9v3f: the allow-list passed by a JWK": ["header: a stranger's jwk and alg none"],
    "PyJWT GHSA-993g-76c3-p5m4: keys from a file": ["header: jku of a file", "header: kid a path"],
    "PyJWT GHSA-9v7f-9g4p-ffgj: keys from a redirect": ["header: jku", "header: x5u", "header: kid a URL"],
    "PyJWT GHSA-w7vc-732c-9m39: lax parsing": ["shape: padded signature", "claims: white space", "claims: exp twice"],
    "PyJWT GHSA-hxm8-2xgr-2p9m: costly parsing": ["shape: a megabyte of header", "claims: deep nesting"],
    "Authlib CVE-2024-37568: algorithm confusion": ["header: HS256 keyed with the PEM", "header: alg 'HS256'"],
    "Authlib CVE-2025-59420: unknown crit": ["header: crit unknown"],
    "Authlib CVE-2026-27962: an embedded jwk is trusted": ["header: a stranger's jwk", "header: our own jwk"],
    "python-jose CVE-2024-33663: algorithm confusion": ["header: HS256 keyed with the DER"],
    "python-jose CVE-2024-33664: decompression": ["header: zip", "claims: compressed"],
    "jwcrypto CVE-2024-28102: decompression": ["header: zip", "header: enc of a JWE"],
    "jwcrypto CVE-2026-39373: decompression again": ["claims: compressed"],
    "jsonwebtoken CVE-2022-23539: a key of another type": ["header: alg 'RS256'", "header: alg 'ES384'"],
    "jsonwebtoken CVE-2022-23540: none by default": ["header: alg 'none' without signature", "header: alg null"],
    "jsonwebtoken CVE-2022-23541: HMAC with a public key": ["header: HS256 keyed with the coordinate"],
    "node-jose CVE-2018-0114: the attacker's own key in the header": ["header: a stranger's jwk"],
    "go-jose CVE-2024-28180: decompression": ["header: zip"],
    "go-jose CVE-2025-27144: very many dots": ["shape: a million dots"],
    "golang-jwt CVE-2025-30204: very many dots": ["shape: a million dots"],
    "Java CVE-2022-21449: a signature of zeros": ["signature: zeros", "signature: r zero", "signature: s zero"],
}


@pytest.fixture
def forger() -> Forger:
    return Forger(Issuer(FixedClock()), random.Random(8_725))


@pytest.fixture
def verifier(forger: Forger) -> Verifier:
    return make_verifier(forger.issuer._clock, forger.issuer.public_key)


@pytest.mark.requirement("R47")
@pytest.mark.parametrize("advisory", ADVISORIES)
def test_the_attack_of_the_advisory_is_refused(forger: Forger, verifier: Verifier, advisory: str) -> None:
    for name in ADVISORIES[advisory]:
        text = mutants.ALL[name](forger)
        with pytest.raises(TokenError):
            verifier.verify(text)


@pytest.mark.parametrize("name", ["shape: a million dots", "shape: a megabyte of header", "shape: too long"])
def test_an_oversized_text_is_refused_before_anything_is_done_for_it(
    forger: Forger, verifier: Verifier, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = mutants.ALL[name](forger)

    def touched(*_: object) -> object:
        raise AssertionError("it was hashed or parsed")

    monkeypatch.setattr("identity_client.tokens.verifier.hashlib.sha256", touched)
    monkeypatch.setattr("identity_client.tokens.compact.split", touched)
    with pytest.raises(TokenMalformed):
        verifier.verify(text)


def test_the_clock_is_injected_and_the_machines_is_not_asked(
    forger: Forger, verifier: Verifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time, "time", lambda: 0.0)
    assert verifier.verify(forger.good())

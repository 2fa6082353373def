"""Project Wycheproof's ECDSA vectors for P-256 and SHA-256 through the signature check that every token passes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from identity_client.tokens import compact
from identity_client.tokens.keys import PublicKey

VECTORS = Path(__file__).parents[3] / "shared" / "vectors"

pytestmark = pytest.mark.skipif(not VECTORS.is_dir(), reason=f"THE WYCHEPROOF VECTORS ARE ABSENT: no {VECTORS}")


def cases(name: str) -> Iterator[tuple[PublicKey, bytes, bytes, dict[str, Any]]]:
    for group in json.loads((VECTORS / name).read_text())["testGroups"]:
        x, y = (int(group["publicKey"][part], 16).to_bytes(32, "big") for part in ("wx", "wy"))
        key = PublicKey.from_coordinates(x, y)
        for test in group["tests"]:
            yield key, bytes.fromhex(test["msg"]), bytes.fromhex(test["sig"]), test


def test_raw_signatures_are_judged_as_listed_and_of_two_texts_only_the_one_with_low_s() -> None:
    seen = {"valid": 0, "invalid": 0, "high": 0}
    for key, message, signature, test in cases("ecdsa_secp256r1_sha256_p1363_test.json"):
        is_valid = test["result"] == "valid"
        is_low = compact.is_low_s(signature)
        assert compact.check_signature(key, message, signature) == (is_valid and is_low), test
        if is_valid:
            assert compact.check_signature(key, message, compact.low_s(signature)), test
        seen["high"] += is_valid and not is_low
        seen[test["result"]] += 1
    assert sum((seen["valid"], seen["invalid"])) == 262
    assert seen["high"] > 0


def test_no_der_signature_is_taken_for_a_raw_one() -> None:
    refused = [
        not compact.check_signature(key, message, signature)
        for key, message, signature, _ in cases("ecdsa_secp256r1_sha256_test.json")
    ]
    assert len(refused) == 484
    assert all(refused)

"""The quick way through a usual payload reads what the general way reads, and takes nothing that it refuses."""

from __future__ import annotations

import base64
import json
import random
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from identity_client.errors import TokenMalformed
from identity_client.tokens import compact, payload
from identity_client.tokens.claims import Claims
from identity_client.trust.entries import id_text
from tests.clients.issuer import ISSUER

KEY_ID = "k" * 43


def words(alphabet: str, longest: int) -> st.SearchStrategy[str]:
    return st.text(alphabet, min_size=1, max_size=longest)


PRINTABLE = "".join(map(chr, range(0x21, 0x7F)))
IDS = st.binary(min_size=16, max_size=16).map(id_text)
NUMBERS = st.one_of(st.integers(1, 2**53 - 1), st.sampled_from([1, 9, 10**14, 10**15 - 1, 10**15, 2**53 - 1]))


def tuples(one: st.SearchStrategy[str]) -> st.SearchStrategy[tuple[str, ...]]:
    return st.lists(one, max_size=4).map(tuple)


CLAIMS = st.builds(
    Claims,
    issuer=st.one_of(st.just(ISSUER), words(PRINTABLE, 40)),
    account_id=words(PRINTABLE, 128),
    audience=words(PRINTABLE, 20),
    expire_time=NUMBERS,
    issue_time=NUMBERS,
    token_id=IDS,
    client_id=words(PRINTABLE, 20),
    grant_id=IDS,
    generation=NUMBERS,
    policy_version=NUMBERS,
    key_id=st.just(KEY_ID),
    scopes=tuples(words("abc:/._", 64)),
    roles=tuples(st.from_regex(r"[a-z][a-z0-9._-]{0,5}", fullmatch=True)),
    authentication_time=st.none() | NUMBERS,
    authentication_methods=tuples(words("abc", 16)),
    certificate_thumbprint=st.sampled_from(["", "A" * 43]),
    actors=tuples(words("abc", 8)).map(lambda actors: actors[:3]),
)


@dataclass(frozen=True)
class Read:
    """What came of a payload."""

    claims: Claims | None
    """None: it was refused."""


def payload_of(claims: Claims) -> bytes:
    segment = compact.signing_input(claims).partition(b".")[2]
    return base64.urlsafe_b64decode(segment + b"==")


def quickly(raw: bytes) -> Read:
    try:
        return Read(payload.claims_of(raw, KEY_ID))
    except TokenMalformed:
        return Read(None)


def generally(raw: bytes) -> Read:
    try:
        return Read(payload.read_claims(compact.parse_payload(raw), KEY_ID))
    except TokenMalformed:
        return Read(None)


@given(CLAIMS)
@settings(max_examples=300, deadline=None)
def test_what_the_issuer_writes_is_read_back(claims: Claims) -> None:
    raw = payload_of(claims)
    assert quickly(raw) == generally(raw) == Read(claims)


@given(CLAIMS, st.randoms(use_true_random=False))
@settings(max_examples=600, deadline=None)
def test_what_was_changed_is_judged_the_same_both_ways(claims: Claims, chance: random.Random) -> None:
    raw = bytearray(payload_of(claims._replace(certificate_thumbprint="", actors=())))
    for _ in range(chance.randrange(1, 3)):
        at = chance.randrange(len(raw))
        match chance.randrange(4):
            case 0:
                raw[at] = chance.choice(b'"\\,:{}[]0123 \n\x7f\xe9abcdef-')
            case 1:
                del raw[at : at + chance.randrange(1, 4)]
            case 2:
                raw[at:at] = chance.choice(
                    [b'"', b"\\u0061", b"0", b" ", b',"gen":9', b',"nbf":1', b'","', b"-", b"e1"]
                )
            case 3:
                end = at + chance.randrange(1, 30)
                raw[at:at] = raw[at:end]
    assert quickly(bytes(raw)) == generally(bytes(raw))


USUAL = Claims(ISSUER, "a", "internal", 2_000, 1_000, id_text(bytes(16)), "c", id_text(bytes(16)), 1, 1, KEY_ID)


def test_a_usual_token_takes_the_quick_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compact, "parse_payload", None)
    full = USUAL._replace(scopes=("a", "b"), roles=("x", "y"), authentication_time=5, authentication_methods=("pwd",))
    for claims in (USUAL, full):
        assert payload.claims_of(payload_of(claims), KEY_ID) == claims


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"gen":1', '"gen":01'),
        ('"gen":1', '"gen":0'),
        ('"gen":1', '"gen":-1'),
        ('"gen":1', '"gen":1.0'),
        ('"gen":1', '"gen":"1"'),
        ('"gen":1', '"gen":true'),
        ('"gen":1', '"gen":9007199254740992'),
        ('"sub":"a"', '"sub":"\\u0061"'),
        ('"sub":"a"', '"sub":"a b"'),
        ('"sub":"a"', '"sub":""'),
        ('"sub":"a"', '"sub":"' + "a" * 129 + '"'),
        ('"pol":1', '"pol":1,"pol":1'),
        ('"pol":1', '"pol":1,"nbf":1'),
        ('"pol":1', '"pol":1,"scope":"a  b"'),
        ('"pol":1', '"pol":1,"scope":"a "'),
        ('"pol":1', '"pol":1,"roles":[]'),
        ('"pol":1', '"pol":1,"roles":["A"]'),
        ('"pol":1', '"pol":1,"roles":' + json.dumps(["a"] * 65, separators=(",", ":"))),
        ('"pol":1', '"pol":1,"amr":["pwd",1]'),
        ('"pol":1', '"pol":1 '),
        ("}", "}\n"),
    ],
)
def test_what_the_issuer_does_not_write_is_refused_both_ways(old: str, new: str) -> None:
    raw = payload_of(USUAL).decode().replace(old, new, 1).encode()
    assert quickly(raw) == generally(raw) == Read(None)


ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551


@pytest.mark.parametrize(
    ("r", "s", "is_low"),
    [
        (1, 1, True),
        (ORDER - 1, ORDER // 2, True),
        (0, 1, False),
        (1, 0, False),
        (ORDER, 1, False),
        (1, ORDER // 2 + 1, False),
        (2**256 - 1, 1, False),
        (1, 2**256 - 1, False),
    ],
)
def test_a_signature_has_both_numbers_in_range_and_the_second_in_its_lower_half(r: int, s: int, is_low: bool) -> None:
    signature = r.to_bytes(32, "big") + s.to_bytes(32, "big")
    assert compact.is_low_s(signature) is is_low
    assert not compact.is_low_s(signature + b"\0")
    assert not compact.is_low_s(signature[:-1])

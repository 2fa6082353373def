"""Assertions of services: what their parser takes, and to the second when they hold."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from identity.domain.assertions import MAXIMUM_LIFETIME_SECONDS, check_assertion, parse_assertion
from identity.domain.grants import UsedAssertion
from identity.domain.refusals import Cause, Rejected
from identity_client.tokens import compact
from tests.assertions import AssertionKey, claims_of, segment

NOW = 1_800_000_000
LEEWAY = 5
AUDIENCE = "https://identity.test"
KEY = AssertionKey()

pytestmark = pytest.mark.requirement("R31")


def claims(**changes: Any) -> dict[str, object]:
    return claims_of("orders", AUDIENCE, NOW, **changes)


def check(text: str, key: AssertionKey = KEY, now: float = NOW) -> UsedAssertion:
    return check_assertion(parse_assertion(text), key.public_key, "orders", AUDIENCE, now, LEEWAY)


def cause_of(text: str, key: AssertionKey = KEY, now: float = NOW) -> Cause:
    with pytest.raises(Rejected) as refused:
        check(text, key, now)
    return refused.value.cause


def test_an_assertion_of_an_ordinary_library_holds_and_says_what_is_spent() -> None:
    text = jwt.encode(
        claims(jti="number one"), KEY.private_key, algorithm="ES256", headers={"kid": KEY.public_key.key_id}
    )
    assert check(text) == UsedAssertion(hashlib.sha256(b"number one").digest(), NOW + 60 + LEEWAY)


@pytest.mark.parametrize("typ", [None, "JWT", "client-authentication+jwt"])
def test_the_usual_types_are_taken(typ: str | None) -> None:
    assert check(KEY.sign(claims(), typ=typ))


def test_a_signature_is_taken_in_either_half() -> None:
    signing_input, _, signature = KEY.sign(claims()).rpartition(".")
    low = compact.low_s(compact._decode(signature))
    high = low[:32] + (compact._ORDER - int.from_bytes(low[32:], "big")).to_bytes(32, "big")
    assert check(f"{signing_input}.{segment(low)}")
    assert check(f"{signing_input}.{segment(high)}")


@pytest.mark.parametrize(
    "header",
    [
        {"alg": "none"},
        {"alg": "None"},
        {"alg": None},
        {"alg": ["ES256"]},
        {"alg": "HS256"},
        {"alg": "ES256K"},
        {"alg": "ES384"},
        {"alg": "RS256"},
        {"alg": "EdDSA"},
        {"alg": "es256"},
        {"typ": "at+jwt"},
        {"typ": "jwt+json"},
        {"typ": ["JWT"]},
        {"typ": {"JWT": 1}},
        {"typ": 1},
        {"crit": ["exp"]},
        {"b64": False},
        {"jwk": {"kty": "EC"}},
        {"jku": "https://attacker.test"},
        {"x5u": "https://attacker.test"},
        {"x5c": ["AA=="]},
        {"zip": "DEF"},
        {"cty": "JWT"},
    ],
)
def test_a_header_that_says_anything_else_is_malformed(header: dict[str, object]) -> None:
    assert cause_of(KEY.sign(claims(), **header)) is Cause.ASSERTION_MALFORMED


@pytest.mark.parametrize(
    "key_id", [None, 1, ["a"], "", "\ud800", "\x00" * 43, "A" * 42, "A" * 44, "\u00e9" * 43, "../../key"]
)
def test_a_key_has_its_thumbprint_as_its_name(key_id: object) -> None:
    assert cause_of(KEY.sign(claims(), kid=key_id)) is Cause.ASSERTION_KEY_UNKNOWN


@pytest.mark.parametrize(
    "header",
    [
        b"",
        b"null",
        b"[]",
        b'"ES256"',
        b"{",
        b'{"alg":"ES256","alg":"ES256","kid":"%(kid)s"}',
        b'{"alg":"none","kid":"%(kid)s","alg":"ES256"}',
        b'{"alg":"ES256","kid":"%(kid)s"} {}',
        b'\xef\xbb\xbf{"alg":"ES256","kid":"%(kid)s"}',
        b'{"alg":"ES256","kid":"%(kid)s\xff"}',
    ],
)
def test_a_header_that_is_not_one_object_is_malformed(header: bytes) -> None:
    text = KEY.sign_raw(header.replace(b"%(kid)s", KEY.public_key.key_id.encode()), claims())
    assert cause_of(text) is Cause.ASSERTION_MALFORMED


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-32"])
def test_json_in_another_encoding_is_malformed(encoding: str) -> None:
    assert cause_of(KEY.sign(json.dumps(claims()).encode(encoding))) is Cause.ASSERTION_MALFORMED
    header = json.dumps(KEY.header()).encode(encoding)
    assert cause_of(KEY.sign_raw(header, claims())) is Cause.ASSERTION_MALFORMED


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"[]",
        b"{}x",
        b'{"exp":NaN}',
        b'{"exp":Infinity}',
        b'{"exp":-Infinity}',
        b'{"jti":"a","jti":"b"}',
        b'{"a":{"b":1,"b":2}}',
        b"[" * 2_000,
        b'{"a":' * 600,
        b'{"exp":' + b"9" * 2_900 + b"}",
    ],
)
def test_a_payload_that_two_parsers_could_read_differently_is_malformed(payload: bytes) -> None:
    text = KEY.sign(payload)
    if payload.startswith(b'{"exp":9'):  # it parses; its time is no time
        text = KEY.sign(json.dumps(claims(exp=1)).encode().replace(b'"exp": 1', payload[1:-1]))
    assert cause_of(text) is Cause.ASSERTION_MALFORMED


@pytest.mark.parametrize(
    "spoil",
    [
        lambda text: "",
        lambda text: text.rpartition(".")[0],
        lambda text: text.rpartition(".")[0] + ".",
        lambda text: text + ".",
        lambda text: text + "=",
        lambda text: text + "A",
        lambda text: text[:-1],
        lambda text: text + "\n",
        lambda text: " " + text,
        lambda text: text.replace(".", ".A", 1) + "AAAA",
        lambda text: text.replace(".", "+.", 1),
        lambda text: text + "." + text,
        lambda text: text.partition(".")[0] + "A.." + text.rpartition(".")[2],
    ],
)
def test_a_text_of_another_shape_is_malformed(spoil: Any) -> None:
    assert cause_of(spoil(KEY.sign(claims()))) is Cause.ASSERTION_MALFORMED


def test_a_text_that_is_too_long_is_malformed() -> None:
    assert cause_of(KEY.sign(claims(more="x" * 4_000))) is Cause.ASSERTION_MALFORMED


def test_a_segment_of_impossible_length_is_malformed() -> None:
    header = segment(json.dumps(KEY.header()).encode())
    padding = "A" * (5 - len(header) % 4)  # four characters to a group: one more is none
    assert cause_of(KEY.sign_segments(header + padding, segment(b"{}"))) is Cause.ASSERTION_MALFORMED


def test_only_the_key_itself_signs() -> None:
    assert cause_of(KEY.sign(claims()), key=AssertionKey()) is Cause.ASSERTION_SIGNATURE_WRONG


@pytest.mark.parametrize("signature", [bytes(64), bytes(63) + b"\x01", b"\xff" * 64, bytes(range(64))])
def test_a_made_up_signature_is_refused(signature: bytes) -> None:
    signing_input = KEY.sign(claims()).rpartition(".")[0]
    assert cause_of(f"{signing_input}.{segment(signature)}") is Cause.ASSERTION_SIGNATURE_WRONG


def test_another_spelling_of_one_signature_is_the_same_assertion() -> None:
    text = KEY.sign(claims())
    digits = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    respelt = text[:-1] + digits[digits.index(text[-1]) + 1]  # the bits that no byte takes
    assert respelt != text
    assert check(respelt).assertion_hash == check(text).assertion_hash


def test_a_signature_over_other_bytes_is_refused() -> None:
    header, _, signature = KEY.sign(claims()).split(".")
    other = segment(json.dumps(claims()).encode())
    assert cause_of(f"{header}.{other}.{signature}") is Cause.ASSERTION_SIGNATURE_WRONG


def test_the_public_key_used_as_an_hmac_secret_signs_nothing() -> None:
    signing_input = KEY.sign(claims()).rpartition(".")[0]
    mac = hashlib.sha256(KEY.pem.encode() + signing_input.encode()).digest()
    assert cause_of(f"{signing_input}.{segment(mac * 2)}") is Cause.ASSERTION_SIGNATURE_WRONG


def test_a_key_of_another_curve_cannot_be_registered() -> None:
    with pytest.raises(ValueError, match="P-256"):
        KEY.public_key.from_key(ec.generate_private_key(ec.SECP384R1()).public_key())


@pytest.mark.parametrize("name", ["iss", "sub"])
@pytest.mark.parametrize("value", [None, "billing", "Orders", "orders ", ["orders"], 1, {"orders": 1}])
def test_issuer_and_subject_are_the_keys_own_account(name: str, value: object) -> None:
    assert cause_of(KEY.sign(claims(**{name: value}))) is Cause.ASSERTION_ISSUER_WRONG


@pytest.mark.parametrize("audience", [AUDIENCE, [AUDIENCE]])
def test_the_audience_is_this_issuer_alone(audience: object) -> None:
    assert check(KEY.sign(claims(aud=audience)))


@pytest.mark.parametrize(
    "audience",
    [
        None,
        "",
        [],
        "identity",
        AUDIENCE + "/",
        AUDIENCE + "/token",
        AUDIENCE[:-1],
        AUDIENCE.upper(),
        [AUDIENCE, "https://other.test"],
        [AUDIENCE, AUDIENCE],
        [[AUDIENCE]],
        {AUDIENCE: 1},
        True,
        1,
    ],
)
def test_an_audience_that_others_share_is_refused(audience: object) -> None:
    assert cause_of(KEY.sign(claims(aud=audience))) is Cause.ASSERTION_AUDIENCE_WRONG


def test_it_expires_to_the_second_with_leeway() -> None:
    text = KEY.sign(claims(exp=NOW + 60))
    assert check(text, now=NOW + 60 + LEEWAY - 0.001)
    assert cause_of(text, now=NOW + 60 + LEEWAY) is Cause.ASSERTION_EXPIRED


@pytest.mark.parametrize("name", ["iat", "nbf"])
def test_it_begins_to_the_second_with_leeway(name: str) -> None:
    assert check(KEY.sign(claims(**{name: NOW + LEEWAY})))
    assert cause_of(KEY.sign(claims(**{name: NOW + LEEWAY + 1}))) is Cause.ASSERTION_NOT_YET_VALID


def test_it_lives_for_five_minutes_at_most() -> None:
    assert check(KEY.sign(claims(exp=NOW + MAXIMUM_LIFETIME_SECONDS)))
    assert cause_of(KEY.sign(claims(exp=NOW + MAXIMUM_LIFETIME_SECONDS + 1))) is Cause.ASSERTION_LIVES_TOO_LONG
    assert check(KEY.sign(claims(iat=NOW - 100, exp=NOW + 200)))
    assert cause_of(KEY.sign(claims(iat=NOW - 100, exp=NOW + 201))) is Cause.ASSERTION_LIVES_TOO_LONG


def test_without_iat_it_ends_five_minutes_from_now_at_most() -> None:
    assert check(KEY.sign(claims(iat=None, exp=NOW + MAXIMUM_LIFETIME_SECONDS)))
    text = KEY.sign(claims(iat=None, exp=NOW + MAXIMUM_LIFETIME_SECONDS + 1))
    assert cause_of(text) is Cause.ASSERTION_LIVES_TOO_LONG


def test_an_iat_ahead_within_the_leeway_buys_no_time_beyond_it() -> None:
    assert check(KEY.sign(claims(iat=NOW + LEEWAY, exp=NOW + LEEWAY + MAXIMUM_LIFETIME_SECONDS)))


@pytest.mark.parametrize("value", [None, "1", True, 0, -1, 2**53, 2**63, 1e300, -0.5, 0.5, [], {}])
def test_a_time_is_a_positive_number(value: object) -> None:
    assert cause_of(KEY.sign(claims(exp=value))) is Cause.ASSERTION_MALFORMED
    if value is not None:
        assert cause_of(KEY.sign(claims(iat=value))) is Cause.ASSERTION_MALFORMED
        assert cause_of(KEY.sign(claims(nbf=value))) is Cause.ASSERTION_MALFORMED


@pytest.mark.parametrize("fraction", [0.0, 0.25, 0.999])
def test_a_time_may_have_a_fraction(fraction: float) -> None:
    assert check(KEY.sign(claims(exp=NOW + 60 + fraction))).expire_time == NOW + 60 + LEEWAY


@pytest.mark.parametrize("jti", [None, "", "x" * 129, 1, ["a"], True])
def test_the_name_of_an_assertion_has_1_to_128_characters(jti: object) -> None:
    assert cause_of(KEY.sign(claims(jti=jti))) is Cause.ASSERTION_MALFORMED


@pytest.mark.parametrize("jti", ["x", "x" * 128, "\u00e9\U0001f511", "\ud800"])
def test_any_text_names_an_assertion(jti: str) -> None:
    assert len(check(KEY.sign(claims(jti=jti))).assertion_hash) == 32

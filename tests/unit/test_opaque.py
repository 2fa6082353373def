"""Opaque texts: fixed width, told apart by prefix, typing errors found by their checksum."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from identity_client.errors import TokenMalformed
from identity_client.tokens import opaque
from identity_client.tokens.opaque import Kind
from identity_client.trust.entries import id_text

ids = st.binary(min_size=16, max_size=16).map(id_text)
secrets = st.binary(min_size=32, max_size=32)
SECRET_KINDS = (Kind.SESSION, Kind.API_KEY, Kind.CLIENT_SECRET)
ZERO_ID = "A" * 22


@given(st.sampled_from(SECRET_KINDS), ids, secrets)
def test_a_secret_comes_back_as_it_went(kind: Kind, grant_id: str, secret: bytes) -> None:
    text = opaque.encode_secret(kind, grant_id, secret)
    assert opaque.split_secret(text, kind) == (grant_id, secret)
    assert opaque.kind_of(text) is kind


@given(ids, st.integers(0, 2**32 - 1), secrets)
def test_a_refresh_token_comes_back_as_it_went(grant_id: str, count: int, mac: bytes) -> None:
    assert opaque.split_refresh(opaque.encode_refresh(grant_id, count, mac)) == (grant_id, count, mac)


def test_all_texts_of_a_kind_are_equally_long() -> None:
    least = opaque.encode_secret(Kind.API_KEY, ZERO_ID, bytes(32))
    most = opaque.encode_secret(Kind.API_KEY, id_text(b"\xff" * 16), b"\xff" * 32)
    assert len(least) == len(most) == 4 + 65 + 6
    assert len(opaque.encode_refresh(ZERO_ID, 0, bytes(32))) == 4 + 70 + 6


@given(st.integers(0, 74), st.sampled_from("0123456789ABCDEFabcdef-_ \u00e4"))
def test_one_wrong_character_is_found(at: int, character: str) -> None:
    text = opaque.encode_secret(Kind.CLIENT_SECRET, id_text(b"0123456789abcdef"), b"0123456789abcdef" * 2)
    wrong = text[:at] + character + text[at + 1 :]
    if wrong != text:
        with pytest.raises(TokenMalformed):
            opaque.split_secret(wrong, Kind.CLIENT_SECRET)


@pytest.mark.parametrize("other", [kind for kind in Kind if kind is not Kind.API_KEY])
def test_a_kind_is_not_taken_for_another(other: Kind) -> None:
    text = opaque.encode_secret(Kind.API_KEY, ZERO_ID, bytes(32))
    with pytest.raises(TokenMalformed):
        opaque.split_secret(text, other)
    with pytest.raises(TokenMalformed):
        opaque.split_secret(other.value + text[4:], other)
    with pytest.raises(TokenMalformed):
        opaque.split_refresh(text)


def test_a_number_beyond_the_bytes_is_refused_though_its_checksum_is_right() -> None:
    body = "idk_" + "z" * 65
    with pytest.raises(TokenMalformed):
        opaque.split_secret(body + opaque._checksum(body), Kind.API_KEY)


@pytest.mark.parametrize("text", ["", "id", "idx_abc", "eyJhbGciOiJFUzI1NiJ9.e30.AA", "IDK_abc"])
def test_what_is_not_ours_has_no_kind(text: str) -> None:
    assert opaque.kind_of(text) is None

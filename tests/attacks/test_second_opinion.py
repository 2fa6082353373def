"""Two other libraries read the same texts: what we accept they accept too, and read the same."""

from __future__ import annotations

import contextlib
import random

import jwt
import pytest
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given, settings
from hypothesis import strategies as st
from joserfc import jwt as joserfc_jwt
from joserfc.jwk import ECKey

from identity_client.errors import TokenError
from identity_client.tokens.claims import Claims
from identity_client.tokens.keys import base64url
from identity_client.trust.entries import id_text
from tests.attacks import mutants
from tests.attacks.forger import Forger, make_verifier
from tests.clients.issuer import ISSUER, FixedClock, Issuer

CLOCK = FixedClock()
NOW = int(CLOCK.now())
SIGNER = Issuer(CLOCK)
PEM = SIGNER.public_key.key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)

ids = st.binary(min_size=16, max_size=16).map(id_text)
printable = st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), min_size=1, max_size=128)
roles = st.from_regex(r"[a-z][a-z0-9._-]{0,20}", fullmatch=True)
all_claims = st.builds(
    Claims,
    issuer=st.just(ISSUER),
    account_id=printable,
    audience=st.sampled_from(["orders", "internal"]),
    expire_time=st.integers(NOW + 1, NOW + 600),
    issue_time=st.integers(NOW - 600, NOW),
    token_id=ids,
    client_id=printable,
    grant_id=ids,
    generation=st.integers(1, 2**53 - 1),
    policy_version=st.integers(1, 2**53 - 1),
    key_id=st.just(SIGNER.public_key.key_id),
    scopes=st.lists(roles, max_size=5).map(tuple),
    roles=st.lists(roles, max_size=10).map(tuple),
    authentication_time=st.none() | st.integers(1, NOW),
    authentication_methods=st.sampled_from([(), ("pwd",)]),
    certificate_thumbprint=st.just("") | st.binary(min_size=32, max_size=32).map(base64url),
    actors=st.lists(printable, max_size=4).map(tuple),
    is_limited=st.booleans(),
)


def read_by_pyjwt(text: str) -> dict[str, object]:
    return jwt.decode(
        text, PEM, algorithms=["ES256"], options={"verify_exp": False, "verify_iat": False, "verify_aud": False}
    )


def read_by_joserfc(text: str) -> dict[str, object]:
    return joserfc_jwt.decode(text, ECKey.import_key(PEM), algorithms=["ES256"]).claims


@given(all_claims)
@settings(max_examples=200, deadline=None)
def test_what_we_sign_is_read_back_equal_here_and_there(claims: Claims) -> None:
    text = SIGNER.sign(claims)
    assert make_verifier(CLOCK, SIGNER.public_key).verify(text) == claims
    for payload in (read_by_pyjwt(text), read_by_joserfc(text)):
        assert (payload["sub"], payload["jti"], payload["exp"]) == (
            claims.account_id,
            claims.token_id,
            claims.expire_time,
        )
        assert tuple(payload.get("roles", ())) == claims.roles  # type: ignore[arg-type]


@given(st.text(max_size=200))
@settings(max_examples=500, deadline=None)
def test_no_text_makes_the_verifier_raise_anything_but_its_own_errors(text: str) -> None:
    with pytest.raises(TokenError):
        make_verifier(CLOCK, SIGNER.public_key).verify(text)


def test_what_others_refuse_we_refuse_and_where_they_are_laxer_we_are_not() -> None:
    forger = Forger(SIGNER, random.Random(7_515))
    verifier = make_verifier(CLOCK, SIGNER.public_key)
    accepted_there = []
    for name, mutant in mutants.ALL.items():
        text = mutant(forger)
        with pytest.raises(TokenError):
            verifier.verify(text)
        with contextlib.suppress(jwt.PyJWTError, ValueError, TypeError, RecursionError):
            read_by_pyjwt(text)
            accepted_there.append(name)
    assert "signature: high s" in accepted_there
    assert len(accepted_there) < len(mutants.ALL)


def test_a_claim_that_differs_makes_another_text() -> None:
    claims = SIGNER.claims()
    assert SIGNER.sign(claims).split(".")[1] != SIGNER.sign(claims._replace(generation=2)).split(".")[1]

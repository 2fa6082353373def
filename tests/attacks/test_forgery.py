"""No text but the issuer's own is accepted, whatever is done to it, and nothing but our own errors comes out."""

from __future__ import annotations

import os
import random

import pytest

from identity_client.errors import BadSignature, TokenError, TokenMalformed, UnknownKey
from identity_client.tokens.verifier import Verifier
from tests.attacks import mutants
from tests.attacks.forger import Forger, make_verifier
from tests.clients.issuer import FixedClock, Issuer

MUTANTS = int(os.environ.get("IDENTITY_TEST_MUTANTS", "50000"))
SEED = 7_519


@pytest.fixture
def forger() -> Forger:
    return Forger(Issuer(FixedClock()), random.Random(SEED))


@pytest.fixture
def verifier(forger: Forger) -> Verifier:
    return make_verifier(forger.issuer._clock, forger.issuer.public_key)


def refusal(verifier: Verifier, text: str) -> TokenError:
    """What *text* is refused with. Fails where it is accepted; a foreign exception passes through and fails, too."""
    try:
        claims = verifier.verify(text)
    except TokenError as error:
        return error
    raise AssertionError(f"accepted {text!r} as {claims}")


def test_the_table_is_as_long_as_promised() -> None:
    assert len(mutants.ALL) >= 200


def test_what_the_forger_leaves_alone_is_accepted(forger: Forger, verifier: Verifier) -> None:
    for _ in range(100):
        assert verifier.verify(forger.good())
        assert verifier.verify(forger.claim("extra", "an unknown claim of plain type"))


@pytest.mark.requirement("R22")
@pytest.mark.requirement("R47")
@pytest.mark.parametrize("name", mutants.ALL)
def test_a_mutant_is_refused(forger: Forger, verifier: Verifier, name: str) -> None:
    verifier.verify(forger.good())
    error = refusal(verifier, mutants.ALL[name](forger))
    group = name.partition(":")[0]
    if group == "header":
        assert isinstance(error, TokenMalformed | UnknownKey | BadSignature)
    if group == "signature":
        assert isinstance(error, TokenMalformed | BadSignature)
    if group == "claims":  # the signature is right: a rule of ours refused, or nothing did
        assert not isinstance(error, BadSignature)


@pytest.mark.requirement("R22")
@pytest.mark.timeout(3_600)
def test_none_of_very_many_is_accepted(forger: Forger, verifier: Verifier) -> None:
    heavy = {"shape: a million dots", "shape: a megabyte of header"}
    names = [name for name in mutants.ALL if name not in heavy]
    for number in range(MUTANTS):
        refusal(verifier, mutants.ALL[names[number % len(names)]](forger))
        if number % 1_000 == 0:
            assert verifier.verify(forger.good())


@pytest.mark.requirement("R44")
@pytest.mark.parametrize("name", [name for name in mutants.ALL if " exp" in name])
def test_exp_is_always_checked(forger: Forger, verifier: Verifier, name: str) -> None:
    refusal(verifier, mutants.ALL[name](forger))


@pytest.mark.requirement("R44")
def test_a_remembered_token_dies_with_its_exp(forger: Forger, verifier: Verifier) -> None:
    token, clock = forger.good(), forger.issuer._clock
    verifier.verify(token)
    clock.advance(604.5)
    verifier.verify(token)
    clock.advance(0.5)
    assert refusal(verifier, token).reason == "TOKEN_EXPIRED"


@pytest.mark.requirement("R46")
def test_a_token_of_more_than_an_hour_is_refused_whoever_signed_it(forger: Forger, verifier: Verifier) -> None:
    assert refusal(verifier, mutants.CLAIMS["a life over an hour"](forger)).reason == "TOKEN_MALFORMED"

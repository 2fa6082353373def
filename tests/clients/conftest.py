"""Fixtures: a guard over a trust state that the test itself feeds, and a fake identity service with a connected peer."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from identity_client.access.judge import Judge
from identity_client.aio.guard import Guard
from identity_client.aio.identity import Identity
from identity_client.principal import Principal
from identity_client.tokens.verifier import Verifier
from identity_client.trust.state import TrustState
from tests.clients.fake_identity import CLIENT_ID, CLIENT_SECRET, FakeIdentity
from tests.clients.issuer import ISSUER, FixedClock, Issuer
from tests.clients.probe import RULES, Peer

sys.path.append(str(Path(__file__).parents[2] / "clients" / "examples"))

MakeGuard = Callable[..., Guard]


@pytest.fixture
def clock() -> FixedClock:
    return FixedClock()


@pytest.fixture
def issuer(clock: FixedClock) -> Issuer:
    return Issuer(clock)


@pytest.fixture
def trust(clock: FixedClock, issuer: Issuer) -> TrustState:
    """A fresh trust state with the issuer's key and no revocation."""
    state = TrustState(clock)
    state.set_keys(ISSUER, [issuer.public_key])
    state.begin_snapshot("epoch-1", 0, 0)
    state.touch(0.0)
    return state

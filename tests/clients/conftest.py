"""A clock that stands still, an issuer, and a trust state that the test itself feeds."""

from __future__ import annotations

import pytest

from identity_client.trust.state import TrustState
from tests.clients.issuer import ISSUER, FixedClock, Issuer


@pytest.fixture
def trust(clock: FixedClock, issuer: Issuer) -> TrustState:
    """A fresh trust state with the issuer's key and no revocation."""
    state = TrustState(clock)
    state.set_keys(ISSUER, [issuer.public_key])
    state.begin_snapshot("epoch-1", 0, 0)
    state.touch(0.0)
    return state

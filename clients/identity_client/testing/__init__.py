"""What a peer's own tests need instead of a running identity service: a pytest plugin, there as soon as the package is.

def test_get(identity_issuer):
    stub.GetOrder(request, metadata=identity_issuer.mint("alice", scopes=["orders.read"]))

The server under test is guarded as ever, by the real guard, which comes from `identity_aio` or `identity_threaded`
instead of `Identity.from_env()`. No network, no service. The plugin loads in every test run of a peer, so everything
heavier than this file is loaded when a fixture is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from identity_client.testing.clock import FixedClock
    from identity_client.testing.credential import Credential
    from identity_client.testing.identity import AioIdentity, ThreadedIdentity
    from identity_client.testing.issuer import Issuer
    from identity_client.testing.signing import SigningKey

_HOMES = {
    "AioIdentity": "identity_client.testing.identity",
    "Credential": "identity_client.testing.credential",
    "FixedClock": "identity_client.testing.clock",
    "Issuer": "identity_client.testing.issuer",
    "SigningKey": "identity_client.testing.signing",
    "ThreadedIdentity": "identity_client.testing.identity",
}

__all__ = ["AioIdentity", "Credential", "FixedClock", "Issuer", "SigningKey", "ThreadedIdentity"]


@pytest.fixture
def identity_issuer() -> Issuer:
    """Mints and revokes; its clock stands still until the test moves it."""
    from identity_client.testing.issuer import Issuer

    return Issuer()


@pytest.fixture
def identity_aio(identity_issuer: Issuer) -> AioIdentity:
    """Stands in for `aio.Identity`; its guards are the real ones, and trust *identity_issuer*."""
    from identity_client.testing.identity import AioIdentity

    return AioIdentity(identity_issuer)


@pytest.fixture
def identity_threaded(identity_issuer: Issuer) -> ThreadedIdentity:
    """Stands in for `identity_client.Identity`; its guards are the real ones, and trust *identity_issuer*."""
    from identity_client.testing.identity import ThreadedIdentity

    return ThreadedIdentity(identity_issuer)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)

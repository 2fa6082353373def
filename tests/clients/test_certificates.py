"""Tokens that are bound to a client certificate: good on a connection that shows it, and on no other."""

from __future__ import annotations

from collections.abc import AsyncIterator

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes

from identity_client import aio
from identity_client.access.judge import Judge
from identity_client.access.options import Options, Terms
from identity_client.principal import Principal
from identity_client.sync.guard import Guard as ThreadedGuard
from identity_client.tokens.keys import base64url
from identity_client.tokens.verifier import Verifier
from identity_client.trust.state import TrustState
from tests.clients.issuer import FixedClock, Issuer, bearer
from tests.clients.shapes import COLUMNS, RULES, SHAPES, ShapePeer
from tests.rpc.certificates import Authority

AUTHORITY = Authority("clients")
SERVER = AUTHORITY.issue("server")
CLIENT = AUTHORITY.issue("client")
OTHER = AUTHORITY.issue("other")


def thumbprint_of(certificate: bytes) -> str:
    """As RFC 8705 section 3.1 defines it, by another library than ours."""
    return base64url(x509.load_pem_x509_certificate(certificate).fingerprint(hashes.SHA256()))


def showing(pair: tuple[bytes, bytes] | None) -> grpc.ChannelCredentials:
    """The credentials of a client that shows *pair*, or none."""
    certificate, key = pair or (None, None)
    return grpc.ssl_channel_credentials(AUTHORITY.certificate, key, certificate)


def make_guard(column: str, trust: TrustState, clock: FixedClock, enforce: bool = True) -> aio.Guard | ThreadedGuard:
    verifier = Verifier(audiences=frozenset({"shapes", "internal"}), trust=trust, clock=clock)
    options = Options(Terms(enforce=enforce))
    judge = Judge(rules=RULES, verifier=verifier, trust=trust, options=options, clock=clock)

    def confirm(_: Principal) -> None:
        """Everyone is live."""

    async def confirm_async(_: Principal) -> None:
        """Everyone is live."""

    if column == "threaded":
        return ThreadedGuard(judge, audience="shapes", confirm=confirm)
    return aio.Guard(judge, audience="shapes", confirm=confirm_async)


def serving(guard: aio.Guard | ThreadedGuard, column: str) -> ShapePeer:
    server = grpc.ssl_server_credentials([(SERVER[1], SERVER[0])], AUTHORITY.certificate, require_client_auth=True)
    return ShapePeer(guard, is_sync=column == "aio, sync handlers", credentials=(server, showing(CLIENT)))


@pytest.fixture(params=COLUMNS)
def column(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
async def peer(column: str, trust: TrustState, clock: FixedClock) -> AsyncIterator[ShapePeer]:
    async with serving(make_guard(column, trust, clock), column) as running:
        yield running


@pytest.mark.parametrize("method", [*SHAPES, "Confirmed"])
async def test_a_bound_token_is_good_only_where_its_certificate_is_shown(
    peer: ShapePeer, issuer: Issuer, method: str
) -> None:
    claims = issuer.claims(scopes=("read",), certificate_thumbprint=thumbprint_of(CLIENT[0]))
    metadata = bearer(issuer.sign(claims))
    assert set(await peer.call(method, metadata)) == {claims.account_id.encode()}

    runs, consumed = peer.handlers.runs, peer.handlers.consumed
    thief = peer.connect(showing(OTHER))
    error = await peer.refusal(method, metadata, thief)
    await thief.close()
    assert (error.status, error.reason) == ("UNAUTHENTICATED", "CERTIFICATE_MISMATCH")
    assert (error.refused_by, error.refused_audience) == ("guard", "shapes")
    assert (peer.handlers.runs, peer.handlers.consumed) == (runs, consumed)


async def test_a_token_that_is_not_bound_needs_no_certificate(peer: ShapePeer, issuer: Issuer) -> None:
    other = peer.connect(showing(OTHER))
    await peer.call("UnaryUnary", bearer(issuer.mint(scopes=("read",))), other)
    await other.close()


async def test_a_bound_token_is_refused_on_a_connection_without_any_certificate(
    column: str, trust: TrustState, clock: FixedClock, issuer: Issuer
) -> None:
    async with ShapePeer(make_guard(column, trust, clock)) as peer:
        metadata = bearer(issuer.mint(scopes=("read",), certificate_thumbprint=thumbprint_of(CLIENT[0])))
        assert (await peer.refusal("UnaryUnary", metadata)).reason == "CERTIFICATE_MISMATCH"


async def test_where_refusals_are_only_reported_a_stolen_bound_token_names_its_account_and_no_principal(
    column: str, trust: TrustState, clock: FixedClock, issuer: Issuer
) -> None:
    guard = make_guard(column, trust, clock, enforce=False)
    async with ShapePeer(guard) as peer:
        claims = issuer.claims(scopes=("read",), certificate_thumbprint=thumbprint_of(CLIENT[0]))
        assert await peer.call("UnaryUnary", bearer(issuer.sign(claims))) == [b"nobody"]
    [kind] = guard.report.counts()
    assert (kind.reason, kind.caller, kind.address) == ("CERTIFICATE_MISMATCH", claims.account_id, "127.0.0.1")

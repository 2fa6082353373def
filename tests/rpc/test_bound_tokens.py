"""The service's own guard, and tokens that are bound to a client certificate."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest

from identity.server import Server
from identity.v1 import (
    authentication_pb2,
    credential_pb2,
    token_pb2,
    token_pb2_grpc,
    trust_pb2,
    trust_pb2_grpc,
)
from identity_client import status
from tests.rpc.api import Api, MakeSettings, bearer, prepare
from tests.rpc.certificates import Authority, write_pair

AUTHORITY = Authority("everybody's")
OWN, OTHER = AUTHORITY.issue("vault"), AUTHORITY.issue("thief")


def showing(pair: tuple[bytes, bytes]) -> grpc.ChannelCredentials:
    return grpc.ssl_channel_credentials(AUTHORITY.certificate, pair[1], pair[0])


@pytest.fixture
async def secure_api(make_settings: MakeSettings, tmp_path: Path) -> AsyncIterator[Api]:
    """A server that asks for client certificates, and the stubs of one who shows OWN."""
    certificate, key = write_pair(tmp_path, AUTHORITY.issue("identity"))
    client_ca = tmp_path / "clients.pem"
    client_ca.write_bytes(AUTHORITY.certificate)
    files = {"tls_certificate_file": certificate, "tls_key_file": key, "tls_client_ca_file": str(client_ca)}
    server = Server(make_settings(**files))
    address = await server.start()
    assert server.house is not None
    await prepare(server.house)
    api = Api(server, address, showing(OWN))
    yield api
    await api.channel.close()
    await server.stop()


async def bound_token(api: Api) -> str:
    """An access token for the service itself, got by certificate."""
    await api.create_service("vault", "peer")
    request = credential_pb2.CreateCertificateIdentityRequest(username="vault", dns_name="localhost")
    await api.credentials.CreateCertificateIdentity(request, metadata=await api.admin())
    authentication = authentication_pb2.AuthenticateRequest(
        certificate=authentication_pb2.CertificateCredential(), audience="identity"
    )
    return (await api.authentication.Authenticate(authentication)).access.access_token


@pytest.mark.requirement("R31")
async def test_a_bound_token_serves_its_owner_in_unary_calls_and_streams_and_nobody_else(secure_api: Api) -> None:
    metadata = bearer(await bound_token(secure_api))
    await secure_api.create_user("alice", "clerk")
    request = token_pb2.IntrospectRequest(token=(await secure_api.login("alice")).access_token)
    assert (await secure_api.tokens.Introspect(request, metadata=metadata)).active
    stream = secure_api.trust.WatchTrust(trust_pb2.WatchTrustRequest(), metadata=metadata)
    assert await stream.read() != grpc.aio.EOF
    stream.cancel()

    async with grpc.aio.secure_channel(secure_api.address, showing(OTHER)) as channel:
        theft = token_pb2_grpc.TokenServiceStub(channel).Introspect(request, metadata=metadata)
        watch = trust_pb2_grpc.TrustServiceStub(channel).WatchTrust(trust_pb2.WatchTrustRequest(), metadata=metadata)
        for attempt in (theft, watch.read()):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await attempt
            assert status.from_rpc_error(caught.value).reason == "CERTIFICATE_MISMATCH"

"""TLS client certificates as credentials, over real mutual TLS. One answer outside, the cause inside."""

from __future__ import annotations

import datetime
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import pytest
from cryptography import x509

from identity.domain.certificates import thumbprint
from identity.domain.values import AccountRef
from identity.house import LOCAL_ACT
from identity.server import Server
from identity.v1 import (
    account_pb2,
    account_pb2_grpc,
    authentication_pb2,
    authentication_pb2_grpc,
    credential_pb2,
    credential_pb2_grpc,
    token_pb2,
    token_pb2_grpc,
)
from identity_client import status
from identity_client.errors import BadCredentials, CredentialAlreadyExists
from tests.clients.issuer import FixedClock
from tests.rpc.api import ADMIN_PASSWORD, Api, MakeSettings, bearer, prepare
from tests.rpc.certificates import Authority, Pair, write_pair
from tests.rpc.refusals import answer_of, audited, refusal, refused
from tests.rpc.test_revoke_and_introspect import payload_of

pytestmark = pytest.mark.requirement("R31")

SPIFFE_ID = "spiffe://prod/orders"
DNS_NAME = "orders.internal"


@dataclass
class Mutual:
    """A server that asks for client certificates, and those who issue them."""

    server: Server
    address: str
    client_ca: Path
    servers: Authority
    clients: Authority = field(default_factory=lambda: Authority("client ca"))

    @asynccontextmanager
    async def connected(self, pair: Pair) -> AsyncIterator[grpc.aio.Channel]:
        certificate, key = pair
        credentials = grpc.ssl_channel_credentials(self.servers.certificate, key, certificate)
        async with grpc.aio.secure_channel(self.address, credentials) as channel:
            yield channel

    async def log_in(self, pair: Pair, **fields: Any) -> authentication_pb2.AccessGrant:
        async with self.connected(pair) as channel:
            return await log_in(channel, **fields)

    async def register(self, username: str = "orders", **name: str) -> credential_pb2.Credential:
        assert self.server.house is not None
        async with self.connected(self.clients.issue_client()) as channel:
            request = credential_pb2.CreateCertificateIdentityRequest(username=username, **name)  # type: ignore[arg-type]
            stub = credential_pb2_grpc.CredentialServiceStub(channel)
            return (await stub.CreateCertificateIdentity(request, metadata=await admin(channel))).credential


async def log_in(channel: grpc.aio.Channel, **fields: Any) -> authentication_pb2.AccessGrant:
    request = authentication_pb2.AuthenticateRequest(certificate=authentication_pb2.CertificateCredential(), **fields)
    return (await authentication_pb2_grpc.AuthenticationServiceStub(channel).Authenticate(request)).access


async def admin(channel: grpc.aio.Channel) -> Any:
    password = authentication_pb2.PasswordCredential(username="root", password=ADMIN_PASSWORD)
    request = authentication_pb2.AuthenticateRequest(password=password, audience="identity")
    response = await authentication_pb2_grpc.AuthenticationServiceStub(channel).Authenticate(request)
    return bearer(response.tokens.access_token)


@pytest.fixture
async def mutual(make_settings: MakeSettings, tmp_path: Path) -> AsyncIterator[Mutual]:
    servers, client_ca = Authority("server ca"), tmp_path / "clients.pem"
    clients = Authority("client ca")
    client_ca.write_bytes(clients.certificate)
    certificate, key = write_pair(tmp_path, servers.issue("identity"))
    clock = FixedClock(wall=datetime.datetime.now(datetime.UTC).timestamp())
    settings = make_settings(tls_certificate_file=certificate, tls_key_file=key, tls_client_ca_file=str(client_ca))
    server = Server(settings, clock)
    address = await server.start()
    assert server.house is not None
    await prepare(server.house)
    await server.house.accounts.create_service("orders", ("peer",), LOCAL_ACT)
    yield Mutual(server, address, client_ca, servers, clients)
    await server.stop()


def client(mutual: Mutual, *names: x509.GeneralName) -> Pair:
    return mutual.clients.issue_client(*names)


@pytest.mark.parametrize("kind", ["spiffe", "dns"])
async def test_a_registered_name_gives_a_token_bound_to_the_certificate(mutual: Mutual, kind: str) -> None:
    name = {"spiffe_id": SPIFFE_ID} if kind == "spiffe" else {"dns_name": DNS_NAME.upper()}
    credential = await mutual.register(**name)
    assert credential.certificate_name == (SPIFFE_ID if kind == "spiffe" else f"dns:{DNS_NAME}")
    names = [x509.DNSName("other.internal"), x509.UniformResourceIdentifier(SPIFFE_ID), x509.DNSName(DNS_NAME)]
    pair = client(mutual, *names)
    grant = await mutual.log_in(pair, audience="identity")
    payload = payload_of(grant.access_token)
    assert (payload["client_id"], payload["sid"]) == ("orders", credential.credential_id)
    assert payload["cnf"] == {"x5t#S256": thumbprint(x509.load_pem_x509_certificate(pair[0]))}


async def test_of_several_registered_names_one_that_is_live_will_do(mutual: Mutual) -> None:
    dead, live = await mutual.register(spiffe_id=SPIFFE_ID), await mutual.register(dns_name=DNS_NAME)
    pair = client(mutual, x509.UniformResourceIdentifier(SPIFFE_ID), x509.DNSName(DNS_NAME))
    assert (await mutual.log_in(pair)).grant_id == dead.credential_id
    assert mutual.server.house is not None
    await mutual.server.house.accounts.create_service("billing", ("peer",), LOCAL_ACT)
    await mutual.server.house.credentials.revoke(dead.credential_id, "", LOCAL_ACT)
    await mutual.register("billing", spiffe_id=SPIFFE_ID)
    await mutual.server.house.accounts.disable(AccountRef(username="billing"), LOCAL_ACT)
    assert (await mutual.log_in(pair)).grant_id == live.credential_id


async def test_a_bound_token_is_good_over_the_connections_of_its_certificate_alone(mutual: Mutual) -> None:
    await mutual.register(spiffe_id=SPIFFE_ID)
    name = x509.UniformResourceIdentifier(SPIFFE_ID)
    own, renewed = client(mutual, name), client(mutual, name)
    token = (await mutual.log_in(own, audience="identity")).access_token
    request = token_pb2.IntrospectRequest(token=(await mutual.log_in(own)).access_token)
    async with mutual.connected(own) as channel:
        answer = await token_pb2_grpc.TokenServiceStub(channel).Introspect(request, metadata=bearer(token))
        assert answer.certificate_thumbprint == thumbprint(x509.load_pem_x509_certificate(own[0]))
    async with mutual.connected(renewed) as channel:
        error = await refused(token_pb2_grpc.TokenServiceStub(channel).Introspect(request, metadata=bearer(token)))
        assert status.from_rpc_error(error).reason == "CERTIFICATE_MISMATCH"


async def test_a_certificate_of_another_authority_does_not_get_through_the_handshake(mutual: Mutual) -> None:
    await mutual.register(spiffe_id=SPIFFE_ID)
    stranger = Authority("client ca").issue_client(x509.UniformResourceIdentifier(SPIFFE_ID))
    assert (await refused(mutual.log_in(stranger))).code() is grpc.StatusCode.UNAVAILABLE


async def test_whatever_is_wrong_with_a_certificate_is_answered_alike_and_its_cause_is_in_the_audit_log(
    mutual: Mutual, tmp_path: Path
) -> None:
    await mutual.register(spiffe_id=SPIFFE_ID)
    ended = await mutual.register(dns_name=DNS_NAME)
    name = x509.UniformResourceIdentifier(SPIFFE_ID)
    clock = mutual.server._clock
    assert isinstance(clock, FixedClock)
    errors = [
        await refused(mutual.log_in(client(mutual))),
        await refused(mutual.log_in(client(mutual, x509.DNSName("x")))),
    ]
    until = datetime.datetime.now(datetime.UTC) + datetime.timedelta(hours=1)
    short = mutual.clients.issue_client(name, valid_until=until)
    async with mutual.connected(short) as channel:
        assert await log_in(channel)
        clock.wall += 3_601  # the certificate expires, and the connection lives on
        errors.append(await refused(log_in(channel)))
    async with mutual.connected(client(mutual, name)) as channel:
        assert await log_in(channel)
        mutual.client_ca.write_bytes(Authority("client ca").certificate)  # another key under the same name
        errors.append(await refused(log_in(channel)))
        clock.wall += 60
        mutual.client_ca.write_bytes(b"not PEM")
        errors.append(await refused(log_in(channel)))
        mutual.client_ca.unlink()
        errors.append(await refused(log_in(channel)))
        mutual.client_ca.write_bytes(mutual.clients.certificate)
        assert await log_in(channel)
        stub = account_pb2_grpc.AccountServiceStub(channel)
        request = account_pb2.DisableAccountRequest(username="orders")
        await stub.DisableAccount(request, metadata=await admin(channel))
        errors.append(await refused(log_in(channel)))
    assert ended.credential_id
    assert len({answer_of(error) for error in errors}) == 1
    assert isinstance(status.from_rpc_error(errors[0]), BadCredentials)
    outcomes = [outcome for outcome in audited(tmp_path, "certificate.use") if outcome != "ok"]
    assert outcomes == [
        "CERTIFICATE_UNREGISTERED",
        "CERTIFICATE_EXPIRED",
        "CERTIFICATE_UNTRUSTED",
        "CERTIFICATE_UNTRUSTED",
        "CREDENTIAL_ENDED",
    ]


async def test_an_authority_that_is_added_is_trusted_from_the_next_connection_on(mutual: Mutual) -> None:
    await mutual.register(spiffe_id=SPIFFE_ID)
    new = Authority("new client ca")
    pair = new.issue_client(x509.UniformResourceIdentifier(SPIFFE_ID))
    assert (await refused(mutual.log_in(pair))).code() is grpc.StatusCode.UNAVAILABLE
    mutual.client_ca.write_bytes(mutual.clients.certificate + new.certificate)
    assert await mutual.log_in(pair)
    assert await mutual.log_in(client(mutual, x509.UniformResourceIdentifier(SPIFFE_ID)))


async def test_revoking_a_name_ends_its_tokens_and_frees_it(mutual: Mutual) -> None:
    credential = await mutual.register(dns_name=DNS_NAME)
    assert isinstance(await refusal(mutual.register(dns_name=DNS_NAME)), CredentialAlreadyExists)
    pair = client(mutual, x509.DNSName(DNS_NAME))
    async with mutual.connected(pair) as channel:
        grant = await log_in(channel, audience="identity")
        request = credential_pb2.RevokeCredentialRequest(credential_id=credential.credential_id)
        stub = credential_pb2_grpc.CredentialServiceStub(channel)
        assert (await stub.RevokeCredential(request, metadata=await admin(channel))).ended_grant_count == 1
        assert isinstance(await refusal(log_in(channel)), BadCredentials)
        introspect = token_pb2_grpc.TokenServiceStub(channel).Introspect
        call = introspect(token_pb2.IntrospectRequest(token="x"), metadata=bearer(grant.access_token))
        assert (await refusal(call)).reason == "TOKEN_REVOKED"
    await mutual.register(dns_name=DNS_NAME)
    assert await mutual.log_in(pair)


async def test_without_tls_there_is_no_certificate(api: Api, tmp_path: Path) -> None:
    certificate = authentication_pb2.CertificateCredential()
    assert isinstance(await refusal(api.authenticate(certificate=certificate)), BadCredentials)
    assert audited(tmp_path, "certificate.use") == ["CERTIFICATE_MISSING"]


async def test_a_certificate_in_the_metadata_is_not_believed(api: Api, tmp_path: Path) -> None:
    forged = Authority("client ca").issue_client(x509.UniformResourceIdentifier(SPIFFE_ID))[0]
    request = authentication_pb2.AuthenticateRequest(certificate=authentication_pb2.CertificateCredential())
    metadata = (("x509_pem_cert-bin", forged), ("x-forwarded-client-cert", f"URI={SPIFFE_ID}"))
    assert isinstance(await refusal(api.authentication.Authenticate(request, metadata=metadata)), BadCredentials)
    assert audited(tmp_path, "certificate.use") == ["CERTIFICATE_MISSING"]

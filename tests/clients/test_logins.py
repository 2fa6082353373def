"""Every way to come by a token, against the real service over mutual TLS; and TLS files that change meanwhile."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from identity.domain.grants import ApiKeyUse, CredentialTerms
from identity.domain.values import AccountRef
from identity.house import LOCAL_ACT, House
from identity.server import Server
from identity.v1.session_pb2 import ListSessionsRequest
from identity.v1.session_pb2_grpc import SessionServiceStub
from identity.v1.token_pb2 import RefreshRequest, RevokeRequest
from identity.v1.token_pb2_grpc import TokenServiceStub
from identity_client import tls_files
from identity_client.aio import logins
from identity_client.aio.credentials import call_credentials
from identity_client.aio.endpoints import Endpoints
from identity_client.aio.environment import Connection
from identity_client.aio.identity import Identity
from identity_client.aio.logins import PasswordChangeRequired, Wish
from identity_client.aio.reloading import ReloadingChannel
from identity_client.aio.token_source import Obtain, TokenSource
from identity_client.clock import SystemClock
from identity_client.errors import BadCredentials, SessionEnded
from identity_client.sync.reloading import ReloadingChannel as ThreadedReloadingChannel
from identity_client.tls_files import TlsFiles
from tests.rpc.api import USER_PASSWORD, MakeSettings, prepare
from tests.rpc.certificates import Authority, write_pair

SPIFFE_ID = "spiffe://example.org/orders"
OWNER = AccountRef(username="orders")
WISH = Wish("internal")


@dataclass
class Town:
    """A service that asks for client certificates, and the files of a client that has one."""

    house: House
    address: str
    authority: Authority
    files: TlsFiles
    service: Endpoints


def write_client_pair(directory: Path, authority: Authority) -> TlsFiles:
    certificate, key = authority.issue_client(x509.UniformResourceIdentifier(SPIFFE_ID))
    files = TlsFiles(*(str(directory / name) for name in ("ca.pem", "client.pem", "client.key")))
    Path(files.ca_file).write_bytes(authority.certificate)
    Path(files.certificate_file).write_bytes(certificate)
    Path(files.key_file).write_bytes(key)
    return files


@pytest.fixture
async def town(make_settings: MakeSettings, tmp_path: Path) -> AsyncIterator[Town]:
    authority = Authority("town")
    certificate, key = write_pair(tmp_path, authority.issue("localhost"))
    files = write_client_pair(tmp_path, authority)
    tls = {"tls_certificate_file": certificate, "tls_key_file": key, "tls_client_ca_file": files.ca_file}
    server = Server(make_settings(**tls))
    address = await server.start()
    assert server.house is not None
    await prepare(server.house)
    await server.house.accounts.create_service("orders", ("clerk",), LOCAL_ACT)
    await server.house.accounts.create_user("carol", USER_PASSWORD, (), LOCAL_ACT)
    service = Endpoints(Connection(address, "orders", tls=files))
    yield Town(server.house, address, authority, files, service)
    await service.close()
    await server.stop()


async def claims_of(town: Town, obtain: Obtain) -> Any:
    return town.house.verifier.verify((await obtain()).raw_token)


@pytest.mark.requirement("R73")
@pytest.mark.requirement("R31")
async def test_a_certificate_gives_a_token_that_is_bound_to_it(town: Town) -> None:
    await town.house.credentials.create_certificate_name(OWNER, CredentialTerms(), SPIFFE_ID, LOCAL_ACT)
    claims = await claims_of(town, logins.by_certificate(town.service, WISH))
    assert claims.client_id == "orders"
    assert len(claims.certificate_thumbprint) == 43


@pytest.mark.requirement("R31")
async def test_a_peer_can_be_known_by_its_certificate_alone(town: Town) -> None:
    await town.house.credentials.create_certificate_name(OWNER, CredentialTerms(), SPIFFE_ID, LOCAL_ACT)
    await town.house.accounts.set_roles(OWNER, ("peer",), LOCAL_ACT)
    environ = {
        "IDENTITY_ADDRESS": town.address,
        "IDENTITY_CLIENT_ID": "orders",
        "IDENTITY_CA_FILE": town.files.ca_file,
        "IDENTITY_CERTIFICATE_FILE": town.files.certificate_file,
        "IDENTITY_KEY_FILE": town.files.key_file,
    }
    async with Identity.from_env(environ) as identity:
        assert identity.is_ready


@pytest.mark.requirement("R73")
@pytest.mark.requirement("R31")
async def test_a_key_signs_a_new_assertion_for_each_log_in(town: Town) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    pem = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()
    await town.house.credentials.create_public_key(OWNER, CredentialTerms(), pem, LOCAL_ACT)
    issuer = town.house.settings.issuer
    obtain = logins.by_assertion(town.service, "orders", key, issuer, WISH, SystemClock())
    assert (await claims_of(town, obtain)).token_id != (await claims_of(town, obtain)).token_id


@pytest.mark.requirement("R73")
async def test_an_api_key_and_a_client_secret_do_as_well(town: Town) -> None:
    key = await town.house.credentials.create_api_key(OWNER, CredentialTerms(), ApiKeyUse.EXCHANGE, LOCAL_ACT)
    secret = await town.house.credentials.create_client_secret(OWNER, CredentialTerms(), LOCAL_ACT)
    for obtain in (
        logins.by_api_key(town.service, key.text, WISH),
        logins.by_client_secret(town.service, "orders", secret.text, WISH),
    ):
        assert (await claims_of(town, obtain)).client_id == "orders"


@pytest.mark.requirement("R73")
async def test_a_user_logs_in_once_and_refreshes_from_then_on(town: Town) -> None:
    kept: list[str] = []
    session = logins.Session(town.service, WISH, username="carol", password=USER_PASSWORD, on_rotate=kept.append)
    first, second = await claims_of(town, session.obtain), await claims_of(town, session.obtain)
    assert first.grant_id == second.grant_id
    assert len(set(kept)) == 2
    await town.service.current.tokens.Revoke(RevokeRequest(token=kept[-1]))
    assert (await claims_of(town, session.obtain)).grant_id != first.grant_id


@pytest.mark.requirement("R73")
async def test_a_refresh_token_alone_lasts_as_long_as_its_session(town: Town) -> None:
    kept: list[str] = []
    by_password = logins.Session(town.service, WISH, username="carol", password=USER_PASSWORD, on_rotate=kept.append)
    await by_password.obtain()
    session = logins.Session(town.service, WISH, refresh_token=kept[-1], on_rotate=kept.append)
    assert (await session.obtain()).raw_token
    await town.service.current.tokens.Revoke(RevokeRequest(token=kept[-1]))
    with pytest.raises(SessionEnded):
        await session.obtain()


async def test_a_password_that_must_be_changed_is_told(town: Town) -> None:
    await town.house.accounts.create_user("dave", USER_PASSWORD, (), LOCAL_ACT, password_change_required=True)
    session = logins.Session(town.service, WISH, username="dave", password=USER_PASSWORD)
    with pytest.raises(PasswordChangeRequired):
        await session.obtain()


@pytest.mark.requirement("R73")
async def test_call_credentials_carry_the_token(town: Town) -> None:
    secret = await town.house.credentials.create_client_secret(OWNER, CredentialTerms(), LOCAL_ACT)
    obtain = logins.by_client_secret(town.service, "orders", secret.text, Wish("identity"))
    source = TokenSource(obtain, name="orders", clock=SystemClock())
    credentials = grpc.composite_channel_credentials(town.files.credentials(), call_credentials(source))
    async with grpc.aio.secure_channel(town.address, credentials) as channel:
        for _ in range(2):
            assert not (await SessionServiceStub(channel).ListSessions(ListSessionsRequest())).sessions


async def test_call_credentials_that_have_no_token_fail_the_call(town: Town) -> None:
    obtain = logins.by_api_key(town.service, "idk_", WISH)
    source = TokenSource(obtain, name="nobody", clock=SystemClock())
    credentials = grpc.composite_channel_credentials(town.files.credentials(), call_credentials(source))
    async with grpc.aio.secure_channel(town.address, credentials) as channel:
        with pytest.raises(grpc.aio.AioRpcError):
            await TokenServiceStub(channel).Refresh(RefreshRequest(refresh_token="x"))


class Thumbprints:
    """A server that tells which certificate it was shown, and can keep a call waiting."""

    def __init__(self) -> None:
        self.waiting = asyncio.Event()
        self.released = asyncio.Event()

    async def tell(self, request: bytes, context: Any) -> bytes:
        if request == b"wait":
            self.waiting.set()
            await self.released.wait()
        [certificate] = context.auth_context()["x509_pem_cert"]
        return bytes(certificate)


@pytest.fixture
async def shown(town: Town, tmp_path: Path) -> AsyncIterator[tuple[Thumbprints, str]]:
    thumbprints, server = Thumbprints(), grpc.aio.server()
    handler = grpc.method_handlers_generic_handler(
        "cert.v1.Cert", {"Tell": grpc.unary_unary_rpc_method_handler(thumbprints.tell)}
    )
    server.add_generic_rpc_handlers((handler,))
    certificate, key = town.authority.issue("localhost")
    credentials = grpc.ssl_server_credentials([(key, certificate)], town.authority.certificate, True)
    port = server.add_secure_port("127.0.0.1:0", credentials)
    await server.start()
    yield thumbprints, f"127.0.0.1:{port}"
    await server.stop(None)


@pytest.fixture
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files are looked at before every call."""
    monkeypatch.setattr(tls_files, "CHECK_SECONDS", 0.0)


def replace_files(town: Town) -> bytes:
    """-> the new certificate."""
    write_client_pair(Path(town.files.ca_file).parent, town.authority)
    for path in (town.files.ca_file, town.files.certificate_file, town.files.key_file):
        os.utime(path, ns=(1, 2_000_000_000_000_000_000))
    return Path(town.files.certificate_file).read_bytes()


@pytest.mark.requirement("R73")
@pytest.mark.usefixtures("eager")
async def test_new_calls_show_the_new_certificate_and_no_call_is_lost(
    town: Town, shown: tuple[Thumbprints, str]
) -> None:
    thumbprints, address = shown
    old = Path(town.files.certificate_file).read_bytes()
    async with ReloadingChannel(town.files, lambda made: grpc.aio.secure_channel(address, made)) as channel:
        tell = channel.unary_unary("/cert.v1.Cert/Tell")
        in_flight = asyncio.ensure_future(tell(b"wait"))
        await thumbprints.waiting.wait()
        calls = [asyncio.ensure_future(tell(b"")) for _ in range(20)]
        new = replace_files(town)
        calls += [asyncio.ensure_future(tell(b"")) for _ in range(20)]
        answers = await asyncio.gather(*calls)
        thumbprints.released.set()
        assert await in_flight == old
        assert answers[-1] == new
        assert set(answers) <= {old, new}


@pytest.mark.usefixtures("eager")
async def test_files_that_cannot_be_read_leave_the_old_ones_in_use(town: Town, shown: tuple[Thumbprints, str]) -> None:
    old = Path(town.files.certificate_file).read_bytes()
    async with ReloadingChannel(town.files, lambda made: grpc.aio.secure_channel(shown[1], made)) as channel:
        tell = channel.unary_unary("/cert.v1.Cert/Tell")
        assert await tell(b"") == old
        Path(town.files.key_file).unlink()
        assert await tell(b"") == old


@pytest.mark.requirement("R73")
@pytest.mark.usefixtures("eager")
async def test_a_threaded_channel_follows_its_files_too(town: Town, shown: tuple[Thumbprints, str]) -> None:
    thumbprints, address = shown
    old = Path(town.files.certificate_file).read_bytes()
    with ThreadedReloadingChannel(town.files, lambda made: grpc.secure_channel(address, made)) as channel:
        tell = channel.unary_unary("/cert.v1.Cert/Tell")
        in_flight = asyncio.ensure_future(asyncio.to_thread(tell, b"wait"))
        await thumbprints.waiting.wait()
        new = replace_files(town)
        assert await asyncio.to_thread(tell, b"") == new
        thumbprints.released.set()
        assert await in_flight == old


async def test_a_refused_credential_is_an_error_of_its_own_class(town: Town) -> None:
    with pytest.raises(BadCredentials):
        await logins.by_certificate(town.service, WISH)()

"""The server itself: TLS, health, reflection, draining, and nothing registered without a rule."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any, cast

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from identity.config import ConfigurationError
from identity.house import LOCAL_ACT
from identity.server import CONTRACT, Server
from identity.v1 import access_pb2, account_pb2, authentication_pb2, trust_pb2, trust_pb2_grpc
from identity_client import status
from identity_client.errors import CredentialsMissing, MalformedRequest
from tests.rpc.api import ADMIN_PASSWORD, Api, MakeSettings, bearer
from tests.rpc.certificates import Authority, write_pair
from tests.rpc.refusals import refusal, refused

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


async def health_of(channel: grpc.aio.Channel, service: str = "") -> int:
    stub: Any = health_pb2_grpc.HealthStub(channel)
    answer = await stub.Check(health_pb2.HealthCheckRequest(service=service))
    return int(answer.status)


def test_every_method_of_the_contract_states_who_may_call_it() -> None:
    for module in CONTRACT:
        for service in module.DESCRIPTOR.services_by_name.values():
            for method in service.methods:
                assert method.GetOptions().HasExtension(access_pb2.access), method.full_name


def test_every_writing_method_of_an_administrator_is_confirmed() -> None:
    for module in CONTRACT:
        for service in module.DESCRIPTOR.services_by_name.values():
            for method in service.methods:
                rule = method.GetOptions().Extensions[access_pb2.access]
                if "identity.admin" in rule.scopes or "identity.admin.read" in rule.scopes:
                    assert rule.freshness == access_pb2.FRESHNESS_CONFIRMED, method.full_name


@pytest.mark.parametrize("service", ["", "identity.v1.AuthenticationService", "identity.v1.TrustService"])
async def test_health_is_open_and_serving_once_the_server_has_started(api: Api, service: str) -> None:
    assert await health_of(api.channel, service) == SERVING


async def test_health_can_be_watched(api: Api) -> None:
    stub: Any = health_pb2_grpc.HealthStub(cast(Any, api.channel))
    call = stub.Watch(health_pb2.HealthCheckRequest(service=""))
    assert (await call.read()).status == SERVING
    call.cancel()


async def test_malformed_reflection_is_refused_like_any_other_bytes(api: Api) -> None:
    channel: Any = api.channel
    call = channel.stream_stream("/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo")(iter([b"\xff"]))
    error = await refused(call.read())
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert isinstance(status.from_rpc_error(error), MalformedRequest)


async def test_a_method_that_does_not_exist_is_unimplemented(api: Api) -> None:
    channel: Any = api.channel
    call = channel.unary_unary("/identity.v1.TokenService/Mint")
    error = await refused(call(b"", metadata=await api.admin()))
    assert error.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_a_running_call_is_finished_when_the_server_drains(api: Api) -> None:
    request = authentication_pb2.AuthenticateRequest(
        password=authentication_pb2.PasswordCredential(username="root", password=ADMIN_PASSWORD)
    )
    running = asyncio.ensure_future(api.authentication.Authenticate(request))
    assert api.server.house is not None
    while not api.server.house.pool.held and not running.done():
        await asyncio.sleep(0)
    await api.server.stop(grace_seconds=10)
    assert (await running).tokens.access_token


@pytest.mark.parametrize("listed", [True, False])
async def test_reflection_is_open_to_all_admins_or_nobody_as_configured(
    make_settings: MakeSettings, listed: bool
) -> None:
    server = Server(make_settings(reflection="admin" if listed else "off"))
    api = Api(server, await server.start())
    assert server.house is not None
    await server.house.accounts.create_user("root", ADMIN_PASSWORD, ("admin",), LOCAL_ACT)
    channel: Any = api.channel
    stub: Any = reflection_pb2_grpc.ServerReflectionStub(channel)
    requests = [reflection_pb2.ServerReflectionRequest(list_services="")]
    if listed:
        assert isinstance(await refusal(first(stub.ServerReflectionInfo(iter(requests)))), CredentialsMissing)
        answer = await first(stub.ServerReflectionInfo(iter(requests), metadata=await api.admin()))
        assert "identity.v1.TokenService" in str(answer)
    else:
        error = await refused(first(stub.ServerReflectionInfo(iter(requests))))
        assert error.code() is grpc.StatusCode.UNIMPLEMENTED
    await api.channel.close()
    await server.stop()


async def first(call: grpc.aio.StreamStreamCall[Any, Any]) -> Any:
    """The first message of a stream; its refusal, if it has none."""
    message: Any = await call.read()
    if message is grpc.aio.EOF:
        raise AssertionError(f"the stream ended with {await call.code()}")
    call.cancel()
    return message


async def test_two_servers_cannot_share_a_port(api: Api, make_settings: MakeSettings) -> None:
    second = Server(make_settings(listen=api.address))
    with pytest.raises(RuntimeError):
        await second.start()
    await second.stop()


@pytest.mark.requirement("R48")
async def test_tls_protects_the_wire_and_plain_text_is_not_understood(
    make_settings: MakeSettings, tmp_path: Path
) -> None:
    authority = Authority("test ca")
    certificate, key = write_pair(tmp_path, authority.issue("identity"))
    server = Server(make_settings(tls_certificate_file=certificate, tls_key_file=key))
    address = await server.start()
    trusted = grpc.ssl_channel_credentials(authority.certificate)
    async with grpc.aio.secure_channel(address, trusted) as channel:
        assert await health_of(channel) == SERVING
    async with grpc.aio.insecure_channel(address) as channel:
        error = await refused(health_of(channel))
        assert error.code() is grpc.StatusCode.UNAVAILABLE
    stranger = grpc.ssl_channel_credentials(Authority("another ca").certificate)
    async with grpc.aio.secure_channel(address, stranger) as channel:
        error = await refused(health_of(channel))
        assert error.code() is grpc.StatusCode.UNAVAILABLE
    await server.stop()


@pytest.mark.parametrize("spoilt", ["certificate", "key", "another key"])
async def test_tls_files_that_do_not_do_are_named_at_the_start(
    make_settings: MakeSettings, tmp_path: Path, spoilt: str
) -> None:
    authority = Authority("test ca")
    certificate, key = write_pair(tmp_path, authority.issue("identity"))
    content = authority.issue("other")[1] if spoilt == "another key" else b"not PEM"
    Path(certificate if spoilt == "certificate" else key).write_bytes(content)
    server = Server(make_settings(tls_certificate_file=certificate, tls_key_file=key))
    with pytest.raises(ConfigurationError, match="tls_certificate_file"):
        await server.start()
    await server.stop()


@pytest.mark.requirement("R48")
async def test_with_a_client_ca_only_its_clients_connect(make_settings: MakeSettings, tmp_path: Path) -> None:
    authority, clients = Authority("server ca"), Authority("client ca")
    certificate, key = write_pair(tmp_path, authority.issue("identity"))
    client_ca = tmp_path / "clients.pem"
    client_ca.write_bytes(clients.certificate)
    settings = make_settings(tls_certificate_file=certificate, tls_key_file=key, tls_client_ca_file=str(client_ca))
    server = Server(settings)
    address = await server.start()
    for issuer, expected in ((clients, True), (authority, False)):
        client_certificate, client_key = issuer.issue("orders")
        credentials = grpc.ssl_channel_credentials(authority.certificate, client_key, client_certificate)
        async with grpc.aio.secure_channel(address, credentials) as channel:
            if expected:
                assert await health_of(channel) == SERVING
            else:
                assert (await refused(health_of(channel))).code() is grpc.StatusCode.UNAVAILABLE
    await server.stop()


async def test_a_renewed_certificate_is_used_without_a_restart_and_a_broken_one_is_not(
    make_settings: MakeSettings, tmp_path: Path
) -> None:
    old, new = Authority("old ca"), Authority("new ca")
    certificate, key = write_pair(tmp_path, old.issue("identity"))
    server = Server(make_settings(tls_certificate_file=certificate, tls_key_file=key))
    address = await server.start()

    async def is_trusted(authority: Authority) -> bool:
        credentials = grpc.ssl_channel_credentials(authority.certificate)
        async with grpc.aio.secure_channel(address, credentials) as channel:
            try:
                return await health_of(channel) == SERVING
            except grpc.aio.AioRpcError:
                return False

    assert await is_trusted(old)
    write_pair(tmp_path, new.issue("identity"))
    touch_later(Path(certificate))
    assert await is_trusted(new)
    Path(certificate).write_bytes(b"not a certificate")
    touch_later(Path(certificate))
    assert await is_trusted(new)
    await server.stop()


def touch_later(path: Path) -> None:
    """Make sure that the change shows in the file's time, whatever the clock's step."""
    stamp = path.stat().st_mtime_ns + 1_000_000_000
    os.utime(path, ns=(stamp, stamp))


async def test_watchers_get_keys_a_snapshot_and_then_what_changes(api: Api) -> None:
    service = await api.create_service("orders", "peer")
    metadata = bearer((await api.login_service("orders", service.client_secret)).access_token)
    stub = trust_pb2_grpc.TrustServiceStub(api.channel)
    call: Any = stub.WatchTrust(trust_pb2.WatchTrustRequest(), metadata=metadata)
    assert (await call.read()).WhichOneof("event") == "keys"
    start = (await call.read()).snapshot_start
    assert (start.version, start.entry_count) == (0, 0)
    assert (await call.read()).heartbeat.version == 0
    await api.create_user("carol", "clerk")
    await api.login("carol")
    await api.accounts.SetRoles(
        account_pb2.SetRolesRequest(username="carol", roles=["manager"]), metadata=await api.admin()
    )
    changes = (await call.read()).changes
    assert (changes.first_version, changes.last_version) == (1, 1)
    [entry] = changes.entries.accounts
    assert entry.minimum_generation == 2
    call.cancel()
    resumed: Any = stub.WatchTrust(trust_pb2.WatchTrustRequest(epoch=start.epoch, version=0), metadata=metadata)
    assert (await resumed.read()).WhichOneof("event") == "keys"
    assert (await resumed.read()).changes.last_version == 1
    assert (await resumed.read()).heartbeat.entry_count == 1
    resumed.cancel()

"""The pages over HTTP: strict towards whoever asks, right about what they tell, and without a secret."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from identity import http_listener
from identity.http_listener import CONNECTIONS, HEAD_BYTES, Answer, HttpListener
from identity.metrics import Metrics
from identity.operations import Operations, Readiness, alive
from identity.server import Server
from identity.storage.postgres import migrate_postgres
from identity_client.tokens.keys import base64url
from tests.postgres_server import PostgresServer
from tests.rpc.api import ADMIN_PASSWORD, USER_PASSWORD, Api, MakeSettings
from tests.rpc.refusals import refusal, refused
from tests.rpc.test_leaks import tell_every_rpc

HOST = b"Host: test\r\n"


@dataclass
class Reply:
    status: int
    headers: dict[str, str]
    body: bytes


async def send(address: str, raw: bytes) -> bytes:
    """Everything that comes back until the connection ends."""
    host, _, port = address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        writer.write(raw)
        await writer.drain()
        return await reader.read()
    finally:
        writer.close()


async def get(address: str, path: str, method: str = "GET") -> Reply:
    head, _, body = (await send(address, f"{method} {path} HTTP/1.1\r\n".encode() + HOST + b"\r\n")).partition(
        b"\r\n\r\n"
    )
    status_line, *lines = head.decode("ascii").split("\r\n")
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
    return Reply(int(status_line.split()[1]), headers, body)


async def metrics_of(address: str) -> dict[tuple[str, ...], float]:
    """(name, label values by the names of their labels ...) -> value."""
    text = (await get(address, "/metrics")).body.decode()
    return {
        (sample.name, *(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


@pytest.fixture
async def listener() -> AsyncIterator[str]:
    async def page() -> Answer:
        return Answer(b"hello\n")

    async def broken() -> Answer:
        raise ValueError("inner text")

    listener = HttpListener("127.0.0.1:0", {"/page": page, "/broken": broken})
    yield await listener.start()
    await listener.stop()


async def test_a_page_is_read_by_get_and_its_head_by_head(listener: str) -> None:
    read, head = await get(listener, "/page?and=more"), await get(listener, "/page", "HEAD")
    assert (read.status, read.body, head.status, head.body) == (200, b"hello\n", 200, b"")
    assert read.headers == head.headers
    assert read.headers["content-length"] == "6"


@pytest.mark.parametrize(
    ("raw", "status"),
    [
        (b"POST /page HTTP/1.1\r\n\r\n", 405),
        (b"GET /nothing HTTP/1.1\r\n\r\n", 404),
        (b"GET /../page HTTP/1.1\r\n\r\n", 404),
        (b"GET /%70age HTTP/1.1\r\n\r\n", 404),
        (b"GET http://elsewhere/page HTTP/1.1\r\n\r\n", 400),
        (b"GET /page HTTP/2.0\r\n\r\n", 400),
        (b"GET /page\r\n\r\n", 400),
        (b"get /page HTTP/1.1\r\n\r\n", 400),
        (b"GET /pa\x00ge HTTP/1.1\r\n\r\n", 400),
        (b"GET /page HTTP/1.1\r\nContent-Length: 5\r\n\r\nhello", 400),
        (b"GET /page HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
        (b"GET /page HTTP/1.1\r\nHost : x\r\n\r\n", 400),
        (b"GET /page HTTP/1.1\r\n folded: x\r\n\r\n", 400),
        (b"GET /page HTTP/1.1\r\na: b\nc: d\r\n\r\n", 400),
        (b"GET /page HTTP/1.1\r\nno colon\r\n\r\n", 400),
        (b"\x16\x03\x01\x02\x00\r\n\r\n", 400),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400),
        (b"\r\n\r\n", 400),
        (b"GET /broken HTTP/1.1\r\n\r\n", 500),
    ],
)
async def test_what_is_no_plain_request_is_refused_without_repeating_it(listener: str, raw: bytes, status: int) -> None:
    reply = await send(listener, raw)
    assert reply.startswith(f"HTTP/1.1 {status} ".encode())
    assert not any(text in reply for text in (b"inner text", b"elsewhere", b"nothing", b"hello"))


@pytest.mark.parametrize(
    "header", [b"Content-Length: 5", b"content-length: 5", b"Transfer-Encoding: chunked", b"TRANSFER-ENCODING: gzip"]
)
async def test_a_request_that_announces_a_body_is_refused_whether_or_not_it_sends_one(
    listener: str, header: bytes
) -> None:
    assert (await send(listener, b"GET /page HTTP/1.1\r\n" + header + b"\r\n\r\n")).startswith(b"HTTP/1.1 400 ")
    assert (await send(listener, b"GET /page HTTP/1.1\r\nContent-Length: 0\r\n\r\n")).startswith(b"HTTP/1.1 200 ")


async def test_on_every_address_the_pages_are_where_a_kubelet_asks() -> None:
    listener = HttpListener("0.0.0.0:0", {"/livez": alive})
    port = (await listener.start()).rpartition(":")[2]
    assert (await get(f"127.0.0.2:{port}", "/livez")).body == b"alive\n"
    await listener.stop()


async def test_a_head_without_end_is_given_up_after_its_limit(listener: str) -> None:
    reply = await send(listener, b"GET /page HTTP/1.1\r\na: " + b"x" * HEAD_BYTES)
    assert reply.startswith(b"HTTP/1.1 431 ")


async def test_whoever_sends_nothing_is_cut_off(listener: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_listener, "SECONDS", 0.05)
    assert await send(listener, b"GET /page HTT") == b""


async def test_connections_are_bounded_and_free_again_when_others_end(listener: str) -> None:
    host, _, port = listener.rpartition(":")
    held = [await asyncio.open_connection(host, int(port)) for _ in range(CONNECTIONS)]
    with pytest.raises((ConnectionError, IndexError)):
        await get(listener, "/page")
    for reader, writer in held:
        writer.write(b"GET /page HTTP/1.1\r\n\r\n")
        assert (await reader.read()).startswith(b"HTTP/1.1 200 ")
        writer.close()
    assert (await get(listener, "/page")).status == 200


# -- the server's own pages ----------------------------------------------------------------------------------------


async def test_calls_logins_and_hashes_are_counted_by_what_became_of_them(api: Api) -> None:
    address = api.server.http_address
    await api.create_user("alice")
    before = await metrics_of(address)
    await api.login("alice")
    await refused(api.login("alice", "not the password"))
    channel: Any = api.channel
    await refused(channel.unary_unary("/identity.v1.TokenService/Invent9ed")(b""))
    after = await metrics_of(address)

    def grown(*key: str) -> float:
        return after.get(key, 0.0) - before.get(key, 0.0)

    method = "AuthenticationService/Authenticate"
    assert grown("identity_rpc_total", "OK", method) == 1
    assert grown("identity_rpc_total", "UNAUTHENTICATED", method) == 1
    assert grown("identity_rpc_seconds_count", method) == 2
    assert grown("identity_rpc_total", "UNIMPLEMENTED", "unregistered") == 1
    assert grown("identity_logins_total", "password", "OK") == 1
    assert grown("identity_logins_total", "password", "BAD_CREDENTIALS") == 1
    assert grown("identity_hash_seconds_count") == 2
    assert grown("identity_store_seconds_count", "write") >= 1
    assert after["identity_ready",] == 1
    assert after["identity_signing_key_created_timestamp_seconds", "active"] > 0
    assert not any("Invent9ed" in part for key in after for part in key)


async def test_streams_and_revocations_are_counted_while_they_last(api: Api) -> None:
    from identity.v1 import revocation_pb2, trust_pb2

    address, peer = api.server.http_address, await api.peer()
    await api.create_user("alice")
    stream = api.trust.WatchTrust(trust_pb2.WatchTrustRequest(), metadata=peer)
    await stream.read()
    await api.login("alice")
    before = await metrics_of(address)
    await api.revocations.RevokeAccount(
        revocation_pb2.RevokeAccountRequest(username="alice", reason="test"), metadata=await api.admin()
    )
    after = await metrics_of(address)
    assert before["identity_trust_subscribers",] == 1
    assert after["identity_trust_live_revocations",] > before["identity_trust_live_revocations",]
    assert after["identity_feed_version",] > before["identity_feed_version",]
    assert after["identity_feed_age_seconds",] < 60
    stream.cancel()


async def test_a_guards_refusal_and_a_cut_call_have_their_codes(api: Api) -> None:
    from identity.v1 import account_pb2

    await refused(api.accounts.ListAccounts(account_pb2.ListAccountsRequest()))
    found = await metrics_of(api.server.http_address)
    assert found["identity_rpc_total", "UNAUTHENTICATED", "AccountService/ListAccounts"] == 1


@pytest.mark.requirement("R48")
async def test_no_secret_id_or_name_stands_on_any_page(api: Api) -> None:
    secrets, _ = await tell_every_rpc(api)
    pages = [(await get(api.server.http_address, path)).body for path in ("/metrics", "/readyz", "/livez")]
    for secret in (*secrets.values(), ADMIN_PASSWORD, USER_PASSWORD, "root", "alice"):
        text = secret if isinstance(secret, bytes) else secret.encode()
        assert not any(text in page for page in pages)


async def test_readiness_follows_a_database_that_hangs_and_comes_back(
    make_settings: MakeSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("identity.operations.SILENT_SECONDS", 1.0)
    database = PostgresServer(durable=False)
    url = f"{database.address}/postgres"
    await migrate_postgres(url)
    server = Server(make_settings(database=url))
    await server.start()
    try:
        assert (await get(server.http_address, "/readyz")).body == b"ready\n"
        database.pause()
        away = await until_status(server, 503)
        assert away.body == b"not ready\n- the database does not answer\n"
        assert (await get(server.http_address, "/livez")).body == b"alive\n"
        assert (await get(server.http_address, "/.well-known/jwks.json")).status == 200
        assert (await metrics_of(server.http_address))["identity_ready",] == 0
        database.resume()
        assert (await until_status(server, 200)).body == b"ready\n"
    finally:
        database.resume()
        await server.stop()
        database.stop()


async def test_the_pages_answer_before_the_house_is_open(make_settings: MakeSettings) -> None:
    listener = Operations(make_settings(), Metrics(), Readiness())
    await listener.start()
    starting = b"not ready\n- the service is starting or stopping\n"
    for page in ("/readyz", "/.well-known/jwks.json"):
        reply = await get(listener.address, page)
        assert (reply.status, reply.body) == (503, starting)
    assert (await get(listener.address, "/livez")).status == 200
    await listener.stop()


async def until_status(server: Server, status: int) -> Reply:
    async with asyncio.timeout(30):
        while (reply := await get(server.http_address, "/readyz")).status != status:
            await asyncio.sleep(0.05)
    return reply


async def test_the_public_keys_are_a_jwk_set(api: Api) -> None:
    assert api.server.house is not None
    reply = await get(api.server.http_address, "/.well-known/jwks.json")
    [key] = api.server.house.public_keys
    assert reply.headers["content-type"] == "application/jwk-set+json"
    assert reply.headers["cache-control"] == "public, max-age=300"
    [jwk] = json.loads(reply.body)["keys"]
    assert jwk == {
        "kty": "EC",
        "crv": "P-256",
        "x": base64url(key.x),
        "y": base64url(key.y),
        "use": "sig",
        "alg": "ES256",
        "kid": key.key_id,
    }


async def test_a_port_that_is_taken_is_named(api: Api, make_settings: MakeSettings) -> None:
    from identity.config import ConfigurationError

    second = Server(make_settings(http_listen=api.server.http_address))
    with pytest.raises(ConfigurationError, match="http_listen"):
        await second.start()
    await second.stop()
    assert await refusal(api.login("root", "wrong password")) is not None

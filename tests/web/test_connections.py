"""Web sockets and streams of events over a real server: who may open one, and that it ends with its session."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import httpx
import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from identity.v1 import session_pb2
from identity_client.aio.identity import Identity
from tests.clients.shapes import until
from tests.rpc.api import Api, bearer
from tests.web.serving import listen, serving
from tests.web.site import Site, account_id, cookie_of, credentials


class Live:
    """The site on a real port."""

    def __init__(self, identity: Identity) -> None:
        self.listener = listen()
        self.authority = f"127.0.0.1:{self.listener.getsockname()[1]}"
        self.origin = f"http://{self.authority}"
        self.site = Site(identity, origins=[self.origin])
        self.identity = identity

    async def log_in(self) -> str:
        """A session token."""
        async with httpx.AsyncClient(base_url=self.origin) as client:
            headers = {"origin": self.origin}
            return cookie_of(await client.post("/session/login", json=credentials(), headers=headers))

    def open(self, token: str = "", **headers: str) -> connect:
        """A socket, with the session's cookie if *token* is one."""
        sent = headers | ({"cookie": f"__Host-session={token}"} if token else {})
        return connect(f"ws://{self.authority}/socket", additional_headers=sent, proxy=None)

    async def refusal(self, token: str = "", **headers: str) -> int:
        """The HTTP status that a socket was refused with."""
        with pytest.raises(InvalidStatus) as caught:
            await self.open(token, **headers)
        return caught.value.response.status_code


@pytest.fixture
async def live(identity: Identity) -> AsyncIterator[Live]:
    running = Live(identity)
    async with serving(running.site.app, running.listener):
        yield running


async def end_of(socket: ClientConnection) -> tuple[int, str]:
    """Code and reason that the server closed *socket* with."""
    async with asyncio.timeout(10):
        with pytest.raises(ConnectionClosed) as caught:
            await socket.recv()
    assert caught.value.rcvd is not None
    return caught.value.rcvd.code, caught.value.rcvd.reason


@pytest.mark.requirement("R16")
async def test_a_socket_of_the_sites_own_page_knows_its_caller(live: Live, api: Api) -> None:
    async with live.open(await live.log_in(), origin=live.origin) as socket:
        for word in ("one", "two"):
            await socket.send(word)
            assert await socket.recv() == f"{word} from {await account_id(api)}"


@pytest.mark.requirement("R16")
async def test_no_other_site_can_open_a_socket_with_the_cookie(live: Live) -> None:
    token = await live.log_in()
    for headers in (
        {},
        {"origin": "https://evil.example"},
        {"origin": "null"},
        {"origin": live.origin.replace("http", "https")},
        {"origin": live.origin, "sec-fetch-site": "cross-site"},
        {"origin": live.origin, "sec-fetch-site": "same-site"},
    ):
        assert await live.refusal(token, **headers) == 403, headers


async def test_a_socket_without_a_good_credential_is_refused(live: Live, api: Api) -> None:
    access = (await api.login("alice")).access_token
    assert await live.refusal() == 403
    assert await live.refusal("x", origin=live.origin) == 403
    assert await live.refusal(await live.log_in(), origin=live.origin, authorization=f"Bearer {access}") == 403


async def test_a_program_opens_a_socket_with_a_bearer_and_no_origin(live: Live, api: Api) -> None:
    access = (await api.login("alice")).access_token
    async with live.open(authorization=f"Bearer {access}") as socket:
        await socket.send("hello")
        assert await socket.recv() == f"hello from {await account_id(api)}"
        await api.sessions.Logout(session_pb2.LogoutRequest(), metadata=bearer(access))
        assert await end_of(socket) == (4401, "TOKEN_REVOKED")


@pytest.mark.requirement("R16")
async def test_a_socket_ends_when_its_session_ends_and_the_application_reads_why(live: Live, api: Api) -> None:
    token = await live.log_in()
    other = await live.log_in()
    async with live.open(token, origin=live.origin) as socket, live.open(other, origin=live.origin) as bystander:
        await socket.send("hello")
        await socket.recv()
        await api.sessions.Logout(session_pb2.LogoutRequest(), metadata=bearer(token))
        assert await end_of(socket) == (4401, "TOKEN_REVOKED")
        await until(lambda: live.site.ends)
        assert live.site.ends == ["socket 4401"]
        await bystander.send("still here")
        assert (await bystander.recv()).startswith("still here")  # type: ignore[arg-type]
    await until(lambda: len(live.site.ends) == 2)


async def test_a_socket_ends_when_its_session_expires(live: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    async with live.open(await live.log_in(), origin=live.origin) as socket:
        now = live.identity.clock.now()
        monkeypatch.setattr(live.identity.clock, "now", lambda: now + 366 * 86_400)
        assert await end_of(socket) == (4401, "TOKEN_EXPIRED")


async def test_a_socket_ends_when_revocations_can_no_longer_be_heard_of(
    live: Live, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with live.open(await live.log_in(), origin=live.origin) as socket:
        monkeypatch.setattr(live.identity.trust, "staleness", lambda: 31.0)
        assert await end_of(socket) == (1013, "TRUST_STALE")


@pytest.mark.requirement("R72")
async def test_a_stream_of_events_ends_when_its_session_ends(live: Live, api: Api) -> None:
    token = await live.log_in()
    async with (
        httpx.AsyncClient(base_url=live.origin, cookies={"__Host-session": token}) as client,
        client.stream("GET", "/events") as answer,
    ):
        events = answer.aiter_bytes()
        assert await anext(events)
        await api.sessions.Logout(session_pb2.LogoutRequest(), metadata=bearer(token))
        async with asyncio.timeout(10):
            async for _ in events:
                pass
    await until(lambda: live.site.ends)
    assert live.site.ends == ["events the connection was ended: TOKEN_REVOKED"]


@pytest.mark.requirement("R17")
async def test_one_access_token_is_accepted_by_services_on_two_host_names_without_a_cookie(
    identity: Identity, api: Api
) -> None:
    access = (await api.login("alice")).access_token
    answers = []
    for name, host in [("shop", "localhost"), ("warehouse", "127.0.0.1")]:
        listener = listen()
        authority = f"{host}:{listener.getsockname()[1]}"
        site = Site(identity, name=name, origins=[f"http://{authority}"])
        async with serving(site.app, listener), httpx.AsyncClient(base_url=f"http://{authority}") as client:
            answer = await client.get("/account", headers={"authorization": f"Bearer {access}"})
            answers.append((answer.status_code, answer.text, "set-cookie" in answer.headers, dict(client.cookies)))
    assert answers == [(200, await account_id(api), False, {})] * 2

"""A front end that is mounted below a path, or behind a proxy's prefix: rules speak of the paths that it routes by."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.routing import Mount

from identity_client.aio.identity import Identity
from tests.web.site import ORIGIN, PAGE, SAME, Site, credentials

ROOT = "/shop"


def behind_prefix(site: Site) -> httpx.AsyncClient:
    """As `uvicorn --root-path /shop` has it: path holds root_path."""
    transport = httpx.ASGITransport(site.app, root_path=ROOT, client=("198.51.100.7", 4711))
    return httpx.AsyncClient(transport=transport, base_url=ORIGIN)


def mounted(site: Site) -> httpx.AsyncClient:
    transport = httpx.ASGITransport(Starlette(routes=[Mount(ROOT, app=site.app)]), client=("198.51.100.7", 4711))
    return httpx.AsyncClient(transport=transport, base_url=ORIGIN)


@pytest.fixture(params=[behind_prefix, mounted])
async def browser(identity: Identity, request: Any) -> AsyncIterator[httpx.AsyncClient]:
    async with request.param(Site(identity)) as client:
        yield client


@pytest.mark.requirement("R16")
async def test_every_rule_holds_below_the_mount(browser: httpx.AsyncClient) -> None:
    for path in ("/managers", "/account", "/account/kept", "/strict"):
        assert (await browser.get(ROOT + path)).status_code == 401
    assert (await browser.get(f"{ROOT}/")).text == "nobody"
    answer = await browser.post(f"{ROOT}/session/login", json=credentials(), headers=SAME)
    assert answer.status_code == 200
    assert (await browser.get(f"{ROOT}/account")).status_code == 200
    assert (await browser.get(f"{ROOT}/managers")).status_code == 403


async def test_people_are_sent_to_pages_below_the_mount(browser: httpx.AsyncClient) -> None:
    answer = await browser.get(f"{ROOT}/account", headers={"accept": "text/html"})
    assert answer.headers["location"].startswith(f"{ROOT}/login?")
    answer = await browser.post(f"{ROOT}/session/login", data=credentials(), headers=PAGE)
    assert answer.headers["location"] == f"{ROOT}/"


async def test_a_path_outside_the_mount_is_no_path_of_the_application(identity: Identity) -> None:
    scope = {
        "type": "http",
        "method": "GET",
        "path": "/managers",
        "root_path": "/sho",
        "headers": [],
        "query_string": b"",
    }
    sent: list[Any] = []

    async def receive() -> Any:
        raise AssertionError

    async def send(message: Any) -> None:
        sent.append(message)

    await Site(identity).app(scope, receive, send)
    assert sent[0]["status"] == 400


@pytest.mark.requirement("R18")
async def test_the_refresh_cookie_is_limited_to_the_refresh_route_below_the_mount(identity: Identity) -> None:
    async with behind_prefix(Site(identity, cookies="jwt")) as browser:
        answer = await browser.post(f"{ROOT}/session/login", json=credentials(), headers=SAME)
        paths = [cookie.split("Path=")[1].split(";")[0] for cookie in answer.headers.get_list("set-cookie")]
        assert paths == ["/", f"{ROOT}/session/refresh"]
        assert (await browser.post(f"{ROOT}/session/refresh", headers=SAME)).status_code == 200

"""The storefront as its reader starts it, and the middleware under FastAPI: no browser is needed."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI

from identity.v1 import role_pb2
from identity_client import web
from identity_client.aio.identity import Identity
from tests.rpc.api import Api
from tests.web.site import ORIGIN, PAGE, SAME, credentials

ROOT = Path(__file__).resolve().parents[2]


@asynccontextmanager
async def started(api: Api, secret_file: Path, cookies: str) -> AsyncIterator[str]:
    """The example in a process of its own; -> its origin."""
    role = role_pb2.CreateRoleRequest(name="front-end", scopes=["identity.forward"])
    await api.roles.CreateRole(role, metadata=await api.admin())
    created = await api.create_service("storefront", "peer", "front-end")
    secret_file.write_text(created.client_secret)
    environment = os.environ | {
        "PYTHONPATH": str(ROOT / "clients" / "examples"),
        "IDENTITY_ADDRESS": api.address,
        "IDENTITY_CLIENT_ID": "storefront",
        "IDENTITY_CLIENT_SECRET_FILE": str(secret_file),
        "STOREFRONT_PORT": "0",
        "STOREFRONT_COOKIES": cookies,
    }
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "storefront.server", env=environment, stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    try:
        line = (await asyncio.wait_for(process.stdout.readline(), 30)).decode()
        assert line.startswith("storefront is ready on http://localhost:")
        yield line.split()[-1]
    finally:
        process.terminate()
        await process.wait()


@pytest.mark.requirement("R16")
@pytest.mark.requirement("R18")
@pytest.mark.parametrize(("cookies", "count"), [("session", 1), ("jwt", 2)])
async def test_the_example_runs_and_its_pages_follow_the_log_in(
    api: Api, tmp_path: Path, cookies: str, count: int
) -> None:
    await api.create_user("alice", "clerk", "manager")
    async with started(api, tmp_path / "secret", cookies) as origin, httpx.AsyncClient(base_url=origin) as client:
        page = PAGE | {"origin": origin}
        assert "Sencha" in (await client.get("/", headers=page)).text
        assert (await client.get("/account", headers=page)).headers["location"] == "/login?next=%2Faccount"
        shown = await client.get('/login?reason=<script>&next="><script>', headers=page)
        assert "<script>" not in shown.text
        form = await client.post("/session/login", data=credentials() | {"next": "/account"}, headers=page)
        assert (form.status_code, form.headers["location"]) == (303, "/account")
        given = form.headers.get_list("set-cookie")
        assert len(given) == count
        # This client, unlike browsers, does not send secure cookies to plain http, loopback or not.
        jar = {"cookie": "; ".join(cookie.partition(";")[0] for cookie in given[:1])}
        bought = await client.post("/basket?item=sencha", headers=page | jar)
        assert (bought.status_code, bought.headers["location"]) == (303, "/")
        account = await client.get("/account", headers=page | jar)
        assert "In your basket: 1 x Sencha" in account.text
        assert account.headers["cache-control"] == "no-store"
        assert ": 1</li>" in (await client.get("/till", headers=page | jar)).text
        assert (await client.get("/api/me", headers=jar)).json()["basket"] == {"sencha": 1}
        for path in ("/app", "/password", "/static/app.js", "/static/live.js", "/static/style.css"):
            assert (await client.get(path, headers=page)).status_code == 200


async def test_an_example_with_a_mistake_in_its_settings_says_so() -> None:
    environment = os.environ | {
        "PYTHONPATH": str(ROOT / "clients" / "examples"),
        "STOREFRONT_PORT": "0",
        "STOREFRONT_COOKIES": "both",
    }
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "storefront.server", env=environment, stderr=asyncio.subprocess.PIPE
    )
    _, error = await process.communicate()
    assert (process.returncode, error) == (1, b"STOREFRONT_COOKIES is session or jwt, not both\n")


async def test_it_works_with_fastapi(identity: Identity) -> None:
    app = FastAPI()
    app.add_middleware(
        web.IdentityMiddleware,
        identity=identity,
        name="storefront",
        origins=[ORIGIN],
        rules={"/": web.Rule(public=True), "/me": web.Rule()},
    )

    @app.get("/me")
    def me() -> dict[str, str]:  # in a thread of the pool: the principal goes with it
        return {"account_id": web.current_principal().account_id}

    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url=ORIGIN) as client:
        assert (await client.get("/me")).status_code == 401
        assert (await client.post("/session/login", json=credentials(), headers=SAME)).status_code == 200
        assert len((await client.get("/me")).json()["account_id"]) == 22
        await client.post("/session/logout", headers=SAME)
        assert (await client.get("/me")).status_code == 401

"""A front end whose single-page application keeps an access and a refresh token in two cookies it cannot read."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from identity.v1 import account_pb2, session_pb2
from identity_client.aio.identity import Identity
from identity_client.errors import TokenExpired
from identity_client.tokens import opaque
from tests.rpc.api import Api, bearer
from tests.web.site import PAGE, SAME, Site, account_id, credentials, log_in, sessions_of_alice, until_answer

ACCESS, REFRESH = "__Host-access", "__Secure-refresh"
CODE = SAME | {"sec-fetch-mode": "cors"}
"""What the application's own code sends."""


@pytest.fixture
def site(identity: Identity) -> Site:
    return Site(identity, cookies="jwt")


@pytest.fixture
async def browser(site: Site) -> AsyncIterator[httpx.AsyncClient]:
    async with site.browser() as client:
        await log_in(client)
        yield client


@pytest.fixture
def expire(site: Site, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Has the front end take one access token for expired."""
    verifier = site.app._door._verifier
    prove, expired = verifier.prove, set[str]()

    def prove_unexpired(raw_token: str) -> Any:
        if raw_token in expired:
            raise TokenExpired
        return prove(raw_token)

    monkeypatch.setattr(verifier, "prove", prove_unexpired)
    return expired.add


def held(browser: httpx.AsyncClient) -> tuple[str, str]:
    return browser.cookies[ACCESS], browser.cookies[REFRESH]


def cookie(**values: str) -> dict[str, str]:
    names = {"access": ACCESS, "refresh": REFRESH}
    return {"cookie": "; ".join(f"{names[name]}={value}" for name, value in values.items())}


@pytest.mark.requirement("R18")
async def test_both_tokens_are_out_of_reach_of_scripts_and_the_refresh_token_goes_to_its_route_alone(
    site: Site, api: Api
) -> None:
    async with site.browser() as browser:
        answer = await log_in(browser)
        access, refresh = answer.headers.get_list("set-cookie")
        assert access.startswith(f"{ACCESS}=ey")
        assert access.partition("; ")[2] == "Path=/; Secure; HttpOnly; SameSite=Strict"
        assert refresh.startswith(f"{REFRESH}=idr_")
        assert refresh.partition("; ")[2] == "Path=/session/refresh; Secure; HttpOnly; SameSite=Strict"
        assert not any(token in answer.text for token in held(browser))
        assert (await browser.get("/account")).text == await account_id(api)
        sent = {path: browser.build_request("GET", path).headers["cookie"] for path in ("/", "/session/refresh")}
        assert [REFRESH in value for value in sent.values()] == [False, True]


@pytest.mark.requirement("R18")
async def test_a_request_is_judged_here_and_costs_no_call_unless_its_path_is_confirmed(
    api: Api, browser: httpx.AsyncClient
) -> None:
    assert (await browser.get("/strict")).status_code == 200
    await api.server.stop()
    assert (await browser.get("/account")).status_code == 200
    assert (await browser.get("/strict")).json()["reason"] == "DEPENDENCY_DOWN"


@pytest.mark.requirement("R18")
async def test_the_refresh_route_rotates_both_tokens(browser: httpx.AsyncClient) -> None:
    before = held(browser)
    answer = await browser.post("/session/refresh", headers=CODE)
    assert (answer.status_code, list(answer.json())) == (200, ["expire_time"])
    assert answer.headers["cache-control"] == "no-store"
    assert not set(before) & set(held(browser))
    assert (await browser.get("/account")).status_code == 200


@pytest.mark.requirement("R18")
async def test_a_page_whose_access_token_has_expired_is_renewed_on_the_way_to_it(
    browser: httpx.AsyncClient, expire: Any
) -> None:
    before = held(browser)
    expire(before[0])
    answer = await browser.get("/account?q=a%20b&x=1", headers=PAGE)
    assert (answer.status_code, answer.headers["location"]) == (
        303,
        "/session/refresh?next=%2Faccount%3Fq%3Da%2520b%26x%3D1",
    )
    renewed = await browser.get(answer.headers["location"], headers=PAGE)
    assert (renewed.status_code, renewed.headers["location"]) == (303, "/account?q=a%20b&x=1")
    assert (await browser.get(renewed.headers["location"], headers=PAGE)).status_code == 200
    expire(held(browser)[0])
    assert (await browser.get("/", headers=PAGE)).headers["location"].startswith("/session/refresh?")
    code = await browser.get("/account", headers=CODE, follow_redirects=True)
    assert (code.status_code, len(code.history)) == (200, 2)


async def test_code_that_changes_something_is_told_to_renew_first(browser: httpx.AsyncClient, expire: Any) -> None:
    expire(held(browser)[0])
    answer = await browser.post("/account", headers=CODE)
    assert (answer.status_code, answer.json()["reason"]) == (401, "TOKEN_EXPIRED")
    assert "set-cookie" not in answer.headers
    assert (await browser.get("/", headers=CODE)).text == "nobody"
    await browser.post("/session/refresh", headers=CODE)
    assert (await browser.post("/account", headers=CODE)).status_code == 200


@pytest.mark.requirement("R18")
async def test_a_role_given_is_in_force_after_a_renewal_that_the_page_does_not_notice(
    browser: httpx.AsyncClient, api: Api
) -> None:
    request = account_pb2.SetRolesRequest(username="alice", roles=["clerk", "manager"])
    await api.accounts.SetRoles(request, metadata=await api.admin())
    await until_answer(
        lambda: browser.get("/managers", headers=CODE, follow_redirects=True), lambda answer: answer.status_code == 200
    )


@pytest.mark.requirement("R18")
async def test_fifty_renewals_at_once_make_one_rotation_and_nobody_is_logged_out(
    browser: httpx.AsyncClient, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    service, calls = site.app._routes._service, list[str]()
    renewed = service._renewed

    def counted(refresh: str) -> Any:
        calls.append(refresh)
        return renewed(refresh)

    monkeypatch.setattr(service, "_renewed", counted)
    access, refresh = held(browser)
    headers = CODE | cookie(access=access, refresh=refresh)
    async with site.browser() as client:
        answers = await asyncio.gather(*(client.post("/session/refresh", headers=headers) for _ in range(50)))
        assert {answer.status_code for answer in answers} == {200}
        successors = {answer.headers.get_list("set-cookie")[1] for answer in answers}
        assert (len(successors), calls) == (1, [refresh])
        late = await client.post("/session/refresh", headers=headers)
    assert {late.headers.get_list("set-cookie")[1]} == successors


async def test_a_caller_who_leaves_does_not_end_the_renewal_of_the_others(
    browser: httpx.AsyncClient, identity: Identity, monkeypatch: pytest.MonkeyPatch, site: Site
) -> None:
    headers = CODE | cookie(access=held(browser)[0], refresh=held(browser)[1])
    service = site.app._routes._service
    entered, go_on = asyncio.Event(), asyncio.Event()
    renewed = service._renewed

    async def slow(refresh: str) -> Any:
        entered.set()
        await go_on.wait()
        return await renewed(refresh)

    monkeypatch.setattr(service, "_renewed", slow)
    async with site.browser() as client:
        first = asyncio.ensure_future(client.post("/session/refresh", headers=headers))
        await entered.wait()
        second = asyncio.ensure_future(client.post("/session/refresh", headers=headers))
        await asyncio.sleep(0)
        first.cancel()
        go_on.set()
        assert (await second).status_code == 200


@pytest.mark.requirement("R18")
@pytest.mark.requirement("R5")
async def test_a_log_out_ends_the_session_though_its_access_token_has_expired(
    browser: httpx.AsyncClient, api: Api, expire: Any
) -> None:
    access, refresh = held(browser)
    expire(access)
    hop = await browser.post("/session/logout", headers=SAME)
    assert (hop.status_code, hop.headers["location"]) == (307, "/session/refresh/logout")
    browser.cookies.delete(ACCESS)  # as if even that were gone
    answer = await browser.post(hop.headers["location"], headers=SAME)
    assert answer.headers.get_list("set-cookie") == [
        f"{ACCESS}=; Path=/; Max-Age=0; Secure; HttpOnly; SameSite=Strict",
        f"{REFRESH}=; Path=/session/refresh; Max-Age=0; Secure; HttpOnly; SameSite=Strict",
    ]
    assert await sessions_of_alice(api) == []
    stolen = await browser.post("/session/refresh", headers=CODE | cookie(access=access, refresh=refresh))
    assert (stolen.status_code, stolen.json()["reason"]) == (401, "SESSION_ENDED")


async def test_a_page_of_a_session_that_has_ended_goes_to_the_log_in_with_no_cookie_left(
    browser: httpx.AsyncClient, api: Api
) -> None:
    await api.sessions.Logout(session_pb2.LogoutRequest(), metadata=bearer(held(browser)[0]))
    renewal = await until_answer(
        lambda: browser.get("/account", headers=PAGE), lambda answer: answer.status_code == 303
    )
    refused = await browser.get(renewal.headers["location"], headers=PAGE)
    assert refused.headers["location"] == "/login?next=%2Faccount"
    assert len(refused.headers.get_list("set-cookie")) == 2
    assert not browser.cookies
    assert (await browser.get("/account", headers=PAGE)).headers["location"] == "/login?next=%2Faccount"


async def test_code_of_a_session_that_has_ended_clears_no_cookie(browser: httpx.AsyncClient, api: Api) -> None:
    await api.sessions.Logout(session_pb2.LogoutRequest(), metadata=bearer(held(browser)[0]))
    answer = await browser.post("/session/refresh", headers=CODE)
    assert (answer.status_code, answer.json()["reason"]) == (401, "SESSION_ENDED")
    assert "set-cookie" not in answer.headers


@pytest.mark.requirement("R18")
async def test_one_log_out_everywhere_ends_every_application(site: Site, browser: httpx.AsyncClient) -> None:
    async with site.browser() as there:
        await log_in(there)
        assert (await browser.post("/session/logout-everywhere", headers=SAME)).status_code == 200
        await until_answer(lambda: there.post("/account", headers=CODE), lambda answer: answer.status_code == 401)
        assert (await there.post("/session/refresh", headers=CODE)).json()["reason"] == "SESSION_ENDED"


# -- attacks -------------------------------------------------------------------------------------------------------


@pytest.mark.requirement("R41")
async def test_a_refresh_token_planted_from_a_sibling_host_logs_nobody_in(
    browser: httpx.AsyncClient, site: Site, api: Api
) -> None:
    await api.create_user("mallory")
    planted = (await api.login("mallory")).refresh_token
    access, refresh = held(browser)
    victims = [cookie(refresh=planted), cookie(access=access, refresh=planted), cookie(access="x", refresh=planted)]
    async with site.browser() as client:
        for victim in victims:
            for method in ("POST", "GET"):
                answer = await client.request(method, "/session/refresh", headers=CODE | victim)
                assert (answer.status_code, answer.json()["reason"]) == (401, "NOTHING_TO_RENEW")
                assert "set-cookie" not in answer.headers
        beside = {"cookie": f"{ACCESS}={access}; {REFRESH}={planted}; {REFRESH}={refresh}"}
        answer = await client.post("/session/refresh", headers=CODE | beside)
    assert answer.status_code == 200
    session_id, _, _ = opaque.split_refresh(answer.headers.get_list("set-cookie")[1].split(";")[0].partition("=")[2])
    assert session_id == opaque.split_refresh(refresh)[0]


async def test_two_access_cookies_are_refused_by_the_refresh_route_too(browser: httpx.AsyncClient, site: Site) -> None:
    access, refresh = held(browser)
    async with site.browser() as client:
        headers = CODE | {"cookie": f"{ACCESS}={access}; {ACCESS}={access}; {REFRESH}={refresh}"}
        for path in ("/session/refresh", "/account"):
            answer = await client.post(path, headers=headers)
            assert (answer.status_code, answer.json()["reason"]) == (400, "COOKIE_REPEATED")


@pytest.mark.requirement("R18")
@pytest.mark.parametrize("site_header", ["cross-site", "same-site", ""])
async def test_no_other_site_can_make_the_browser_renew(browser: httpx.AsyncClient, site_header: str) -> None:
    before = held(browser)
    for method, path in [
        ("GET", "/session/refresh?next=/account"),
        ("POST", "/session/refresh"),
        ("POST", "/session/refresh/logout"),
    ]:
        answer = await browser.request(
            method, path, headers={"sec-fetch-site": site_header, "origin": "https://evil.example"}
        )
        assert (answer.status_code, answer.json()["reason"]) == (403, "CROSS_SITE_REQUEST")
    assert (await browser.post("/session/refresh", headers={})).status_code == 403
    assert held(browser) == before


@pytest.mark.parametrize("target", ["https://evil.example", "//evil.example", "/\\evil.example", "/%09/evil.example"])
async def test_a_renewal_leads_back_into_this_site_alone(browser: httpx.AsyncClient, target: str) -> None:
    answer = await browser.get(f"/session/refresh?next={target}", headers=PAGE)
    assert (answer.status_code, answer.headers["location"]) == (303, "/")


async def test_a_session_token_or_a_refresh_token_does_not_pass_for_an_access_token_in_the_cookie(
    site: Site, identity: Identity, browser: httpx.AsyncClient
) -> None:
    _, refresh = held(browser)
    async with Site(identity).browser() as other, site.browser() as client:
        await log_in(other)
        for text in (other.cookies["__Host-session"], refresh, "x", "a.b.c"):
            answer = await client.post("/account", headers=SAME | cookie(access=text))
            assert (answer.status_code, answer.json()["reason"]) == (401, "TOKEN_MALFORMED")
            assert len(answer.headers.get_list("set-cookie")) == 2


@pytest.mark.requirement("R41")
async def test_the_session_before_a_log_in_is_ended(browser: httpx.AsyncClient, api: Api) -> None:
    before = held(browser)
    await log_in(browser)
    assert not set(before) & set(held(browser))
    assert [session.session_id for session in await sessions_of_alice(api)] == [
        opaque.split_refresh(held(browser)[1])[0]
    ]


async def test_a_renewed_token_that_does_not_hold_here_is_not_sent_to_and_fro(
    browser: httpx.AsyncClient, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: str) -> Any:
        raise TokenExpired

    monkeypatch.setattr(site.app._door._verifier, "prove", refuse)
    first = await browser.get("/account", headers=PAGE)
    assert (await browser.get(first.headers["location"], headers=PAGE)).headers["location"].startswith("/login")


async def test_while_the_identity_service_is_down_a_renewal_is_told_to_wait_and_loses_nothing(
    browser: httpx.AsyncClient, api: Api
) -> None:
    before = held(browser)
    await api.server.stop()
    for answer in (
        await browser.post("/session/refresh", headers=CODE),
        await browser.get("/session/refresh", headers=PAGE),
    ):
        assert (answer.status_code, answer.json()["reason"]) == (503, "DEPENDENCY_DOWN")
        assert int(answer.headers["retry-after"]) >= 1
    assert held(browser) == before


async def test_credentials_in_a_query_log_nobody_in(site: Site) -> None:
    async with site.browser() as client:
        answer = await client.post("/session/login", params=credentials(), json={}, headers=SAME)
    assert (answer.status_code, answer.json()["reason"]) == (400, "INVALID_FIELD")

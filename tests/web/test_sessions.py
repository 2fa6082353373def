"""A front end in session mode, without a browser: every request is what the test says, as an attacker's would be."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from functools import partial
from typing import Any

import httpx
import pytest

from identity.v1 import account_pb2, authentication_pb2, credential_pb2, session_pb2, token_pb2
from identity_client.aio.identity import Identity
from identity_client.principal import find_principal
from tests.rpc.api import USER_PASSWORD, Api, bearer
from tests.web.site import (
    COOKIE,
    PAGE,
    SAME,
    Site,
    account_id,
    connected,
    cookie_of,
    credentials,
    log_in,
    sessions_of_alice,
    until_answer,
)

NEW_PASSWORD = "another long enough secret"


@pytest.fixture
def site(identity: Identity) -> Site:
    return Site(identity)


@pytest.fixture
async def browser(site: Site) -> AsyncIterator[httpx.AsyncClient]:
    async with site.browser() as client:
        yield client


# -- in and out ----------------------------------------------------------------------------------------------------


@pytest.mark.requirement("R16")
async def test_a_log_in_gives_a_cookie_with_every_protection_and_an_opaque_token(
    api: Api, browser: httpx.AsyncClient
) -> None:
    answer = await log_in(browser)
    [given] = answer.headers.get_list("set-cookie")
    name_and_value, *attributes = given.split("; ")
    assert name_and_value.startswith(f"{COOKIE}=ids_")
    assert sorted(attributes) == ["HttpOnly", "Path=/", "SameSite=Strict", "Secure"]
    assert answer.headers["cache-control"] == "no-store"
    assert "ids_" not in answer.text
    assert (await browser.get("/account")).text == await account_id(api)
    assert find_principal() is None  # here, where the request was made: it does not outlive its answer


async def test_a_form_is_answered_by_the_page_that_was_wanted_and_other_hosts_are_never_wanted(
    browser: httpx.AsyncClient,
) -> None:
    for wanted, given in [("/account?x=1", "/account?x=1"), ("https://evil.example/", "/"), ("//evil.example", "/")]:
        answer = await browser.post("/session/login", data=credentials() | {"next": wanted}, headers=PAGE)
        assert (answer.status_code, answer.headers["location"]) == (303, given)
        browser.cookies.clear()


async def test_a_wrong_password_is_answered_as_an_unknown_name_is(browser: httpx.AsyncClient) -> None:
    answers = [
        await browser.post("/session/login", json=credentials(username, "wrong wrong wrong"), headers=SAME)
        for username in ("alice", "nobody-of-this-name")
    ]
    assert {answer.status_code for answer in answers} == {401}
    assert answers[0].content == answers[1].content
    assert answers[0].headers == answers[1].headers
    assert (answers[0].json()["reason"], "set-cookie" in answers[0].headers) == ("BAD_CREDENTIALS", False)
    form = await browser.post("/session/login", data=credentials("alice", "wrong") | {"next": "/x"}, headers=PAGE)
    assert form.headers["location"] == "/login?reason=BAD_CREDENTIALS&next=%2Fx"


@pytest.mark.requirement("R16")
@pytest.mark.requirement("R5")
async def test_a_log_out_ends_the_session_itself_and_not_the_cookie_alone(
    site: Site, browser: httpx.AsyncClient, api: Api
) -> None:
    token = cookie_of(await log_in(browser))
    answer = await browser.post("/session/logout", headers=SAME)
    assert answer.headers.get_list("set-cookie") == [f"{COOKIE}=; Path=/; Max-Age=0; Secure; HttpOnly; SameSite=Strict"]
    thief = {"cookie": f"{COOKIE}={token}"}
    async with site.browser() as other:
        refused = await until_answer(
            lambda: other.get("/account", headers=thief), lambda answer: answer.status_code == 401
        )
    assert refused.json()["reason"] == "TOKEN_REVOKED"
    assert (await browser.post("/session/logout", headers=SAME)).status_code == 200


async def test_a_session_that_the_identity_service_itself_refuses_is_ended_all_the_same(
    api: Api, identity: Identity
) -> None:
    site = Site(identity, audience="storefront")
    async with site.browser() as browser:
        await log_in(browser)
        assert (await browser.get("/account")).status_code == 200
        assert (await browser.post("/session/logout", headers=SAME)).status_code == 200
    assert await sessions_of_alice(api) == []


async def test_one_log_out_everywhere_ends_every_browser(site: Site, api: Api) -> None:
    async with site.browser() as here, site.browser() as there:
        await log_in(here)
        await log_in(there)
        assert (await here.post("/session/logout-everywhere", headers=SAME)).status_code == 200
        await until_answer(lambda: there.get("/account"), lambda answer: answer.status_code == 401)
        again = await here.post("/session/logout-everywhere", headers=SAME)
        assert (again.status_code, again.json()["reason"]) == (401, "CREDENTIALS_MISSING")


@pytest.mark.requirement("R16")
async def test_a_session_ended_elsewhere_is_refused_by_the_trust_state_though_its_answer_is_still_remembered(
    identity: Identity, browser: httpx.AsyncClient, api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    token = cookie_of(await log_in(browser))
    assert (await browser.get("/account")).status_code == 200
    monkeypatch.setattr(identity.introspections, "_look", None)  # it cannot be asked again
    await api.sessions.Logout(session_pb2.LogoutRequest(), metadata=bearer(token))
    refused = await until_answer(lambda: browser.get("/account"), lambda answer: answer.status_code == 401)
    assert refused.json()["reason"] == "TOKEN_REVOKED"


async def test_a_role_given_is_in_force_on_the_next_request_of_the_same_session(
    browser: httpx.AsyncClient, api: Api
) -> None:
    await log_in(browser)
    assert (await browser.get("/managers")).json()["reason"] == "PERMISSION_MISSING"
    request = account_pb2.SetRolesRequest(username="alice", roles=["clerk", "manager"])
    await api.accounts.SetRoles(request, metadata=await api.admin())
    await until_answer(lambda: browser.get("/managers"), lambda answer: answer.status_code == 200)


async def test_an_answer_that_a_change_has_overtaken_is_asked_for_again(
    identity: Identity, browser: httpx.AsyncClient, api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    token = cookie_of(await log_in(browser))
    introspect = identity.introspections.introspect
    before = await introspect(token, True)
    request = account_pb2.SetRolesRequest(username="alice", roles=["manager"])
    await api.accounts.SetRoles(request, metadata=await api.admin())
    await until_answer(lambda: browser.get("/managers"), lambda answer: answer.status_code == 200)

    async def late(raw_token: str, is_anew: bool) -> Any:
        return await introspect(raw_token, True) if is_anew else before

    monkeypatch.setattr(identity.introspections, "introspect", late)
    assert (await browser.get("/managers")).status_code == 200


async def test_a_confirmed_path_asks_the_service_on_every_request(
    identity: Identity, browser: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    await log_in(browser)
    asked: list[bool] = []
    introspect = identity.introspections.introspect

    async def noting(raw_token: str, is_anew: bool) -> Any:
        asked.append(is_anew)
        return await introspect(raw_token, is_anew)

    monkeypatch.setattr(identity.introspections, "introspect", noting)
    assert [(await browser.get(path)).status_code for path in ("/account", "/strict")] == [200, 200]
    assert asked == [False, True]


# -- the password --------------------------------------------------------------------------------------------------


async def test_a_password_that_must_be_changed_logs_nobody_in_until_it_is(browser: httpx.AsyncClient, api: Api) -> None:
    request = account_pb2.CreateUserRequest(username="bob", password=USER_PASSWORD, password_change_required=True)
    await api.accounts.CreateUser(request, metadata=await api.admin())
    bob = credentials("bob")
    answer = await browser.post("/session/login", json=bob, headers=SAME)
    assert (answer.status_code, answer.json()["reason"]) == (403, "PASSWORD_CHANGE_REQUIRED")
    form = await browser.post("/session/login", data=bob, headers=PAGE)
    assert form.headers["location"] == "/password?reason=PASSWORD_CHANGE_REQUIRED"
    assert not browser.cookies
    short = await browser.post("/session/password", json=bob | {"new_password": "short"}, headers=SAME)
    assert (short.status_code, short.json()["reason"]) == (400, "INVALID_FIELD")
    assert short.json()["message"].startswith("new_password: at least 12")
    changed = await browser.post("/session/password", json=bob | {"new_password": NEW_PASSWORD}, headers=SAME)
    assert changed.status_code == 200
    assert (await browser.get("/account")).text == await account_id(api, "bob")


# -- fixation and planted cookies ----------------------------------------------------------------------------------


@pytest.mark.requirement("R16")
@pytest.mark.requirement("R41")
async def test_a_session_offered_before_the_log_in_is_neither_adopted_nor_left_alive(
    site: Site, browser: httpx.AsyncClient, api: Api
) -> None:
    await api.create_user("mallory")
    async with site.browser() as attacker:
        planted = cookie_of(await log_in(attacker, username="mallory"))
        given = cookie_of(
            await browser.post("/session/login", json=credentials(), headers=SAME | {"cookie": f"{COOKIE}={planted}"})
        )
        assert given != planted
        ended = await until_answer(lambda: attacker.get("/account"), lambda answer: answer.status_code == 401)
        assert ended.json()["reason"] == "TOKEN_REVOKED"
    assert (await browser.get("/account")).text == await account_id(api)


async def test_a_failed_log_in_leaves_the_session_before_alone(browser: httpx.AsyncClient) -> None:
    await log_in(browser)
    await browser.post("/session/login", json=credentials(password="wrong wrong wrong"), headers=SAME)
    assert (await browser.get("/account")).status_code == 200


@pytest.mark.requirement("R16")
async def test_two_cookies_of_one_name_are_refused_whichever_is_good(site: Site, browser: httpx.AsyncClient) -> None:
    token = cookie_of(await log_in(browser))
    async with site.browser() as client:
        for value in (
            f"{COOKIE}={token}; {COOKIE}=x",
            f"{COOKIE}=; {COOKIE}={token}",
            f"{COOKIE}={token};{COOKIE}={token}",
        ):
            answer = await client.get("/account", headers={"cookie": value})
            assert (answer.status_code, answer.json()["reason"]) == (400, "COOKIE_REPEATED")
        split = httpx.Headers([("cookie", f"{COOKIE}={token}"), ("cookie", f"{COOKIE}=x")])
        assert (await client.get("/account", headers=split)).json()["reason"] == "COOKIE_REPEATED"


@pytest.mark.parametrize(
    "disguise", [b"\xe2\x80\x80%b", b"\xa0%b", b"\x85%b", b"\x0b%b", b"__host-session", b"%b ", b'"%b"', b"$Path=%b"]
)
async def test_a_cookie_whose_name_only_looks_like_ours_is_not_ours(
    browser: httpx.AsyncClient, site: Site, disguise: bytes
) -> None:
    token = cookie_of(await log_in(browser))
    name = disguise.replace(b"%b", COOKIE.encode())
    async with site.browser() as client:
        answer = await client.get("/account", headers=[(b"cookie", name + b"=" + token.encode())])
    assert answer.json()["reason"] == "CREDENTIALS_MISSING"


async def test_a_cookie_that_is_not_good_makes_nobody_of_its_bearer_and_is_taken_back(
    browser: httpx.AsyncClient, site: Site
) -> None:
    token = cookie_of(await log_in(browser))
    await browser.post("/session/logout", headers=SAME)
    async with site.browser() as client:
        for value in ("x", token[:-1] + "A", "idk_" + token[4:], "a.b.c", token):
            cookie = {"cookie": f"{COOKIE}={value}"}
            answer = await until_answer(
                partial(client.get, "/", headers=cookie), lambda answer: answer.text == "nobody"
            )
            assert "Max-Age=0" in answer.headers["set-cookie"]
            page = await client.get("/account?q=1", headers=cookie | PAGE)
            assert (page.status_code, page.headers["location"]) == (303, "/login?next=%2Faccount%3Fq%3D1")
            assert "Max-Age=0" in page.headers["set-cookie"]
            form = await client.post("/account?q=1", headers=cookie | PAGE)
            assert (form.status_code, form.headers["location"]) == (303, "/login")


async def test_code_of_a_page_never_clears_a_cookie_for_it_may_be_answered_after_a_log_in(site: Site) -> None:
    async with site.browser() as client:
        headers = {"cookie": f"{COOKIE}=x", "sec-fetch-mode": "cors", "sec-fetch-site": "same-origin"}
        for path in ("/", "/account"):
            assert "set-cookie" not in (await client.get(path, headers=headers)).headers


async def test_an_api_key_does_not_pass_for_a_session_in_the_cookie(site: Site, api: Api) -> None:
    request = credential_pb2.CreateApiKeyRequest(
        username="alice",
        terms=credential_pb2.CredentialTerms(display_name="key", audiences=["internal"]),
        use=credential_pb2.API_KEY_USE_BEARER,
    )
    key = (await api.credentials.CreateApiKey(request, metadata=await api.admin())).api_key
    async with site.browser() as client:
        as_bearer = await client.get("/account", headers={"authorization": f"Bearer {key}"})
        as_cookie = await client.get("/account", headers={"cookie": f"{COOKIE}={key}"})
    assert (as_bearer.text, as_cookie.json()["reason"]) == (await account_id(api), "TOKEN_MALFORMED")


async def test_more_cookies_than_a_browser_sends_are_not_even_searched(site: Site) -> None:
    async with site.browser() as client:
        answer = await client.get("/", headers={"cookie": "a=b; " * 4_000})
    assert (answer.status_code, answer.json()["reason"]) == (431, "COOKIES_TOO_LARGE")


# -- bearers beside cookies ----------------------------------------------------------------------------------------


@pytest.mark.requirement("R16")
async def test_api_callers_use_bearers_on_the_same_paths_and_need_no_origin(site: Site, api: Api) -> None:
    access = (await api.login("alice")).access_token
    opaque = await api.authentication.Authenticate(
        authentication_pb2.AuthenticateRequest(
            password=authentication_pb2.PasswordCredential(username="alice", password=USER_PASSWORD),
            grant_type=authentication_pb2.GRANT_TYPE_SESSION,
        )
    )
    async with site.browser() as client:
        for text in (access, opaque.session.session_token):
            answer = await client.delete("/account", headers={"authorization": f"bearer {text}"})
            assert (answer.status_code, answer.text) == (200, await account_id(api))
            assert "set-cookie" not in answer.headers


async def test_a_bad_bearer_is_refused_even_where_anyone_may_come_in(site: Site, api: Api) -> None:
    tokens = await api.login("alice")
    async with site.browser() as client:
        for value in (
            "Bearer x",
            f"Bearer {tokens.refresh_token}",
            "Basic eDp5",
            "Bearer",
            f"Bearer {tokens.access_token}x",
        ):
            answer = await client.get("/", headers={"authorization": value} | PAGE)
            assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer")
            assert "location" not in answer.headers


async def test_cookie_and_bearer_together_are_refused(site: Site, browser: httpx.AsyncClient, api: Api) -> None:
    await log_in(browser)
    access = (await api.login("alice")).access_token
    for value in (f"Bearer {access}", "Bearer x"):
        for path in ("/", "/account"):
            answer = await browser.get(path, headers={"authorization": value})
            assert (answer.status_code, answer.json()["reason"]) == (400, "CREDENTIALS_AMBIGUOUS")
    for route in ("login", "logout"):
        answer = await browser.post(f"/session/{route}", headers=SAME | {"authorization": "Bearer x"})
        assert answer.json()["reason"] == "CREDENTIALS_AMBIGUOUS"


async def test_two_authorization_headers_are_refused_whichever_is_good(site: Site, api: Api) -> None:
    access = (await api.login("alice")).access_token
    for values in (
        ["x", f"Bearer {access}"],
        [f"Bearer {access}", f"Bearer {access}"],
        [f"Bearer {access}", "Basic eDp5"],
    ):
        async with site.browser() as client:
            headers = httpx.Headers([("authorization", value) for value in values])
            answer = await client.get("/account", headers=headers)
        assert (answer.status_code, answer.json()["reason"]) == (401, "CREDENTIALS_MALFORMED")


async def test_a_token_bound_to_a_certificate_is_refused_for_nobody_sees_the_certificate_here(
    site: Site, api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    access = (await api.login("alice")).access_token
    monkeypatch.setattr("identity_client.principal.Principal.certificate_thumbprint", "thumbprint")
    async with site.browser() as client:
        answer = await client.get("/account", headers={"authorization": f"Bearer {access}"})
    assert answer.json()["reason"] == "CERTIFICATE_MISMATCH"


# -- paths ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path", ["//account", "/x/%2e%2e/account", "/%2e/account", "/x/%2E%2e", "/x%2f..%2faccount", "/a%5cb", "/a%00"]
)
async def test_a_path_that_could_be_read_in_two_ways_is_refused(site: Site, path: str) -> None:
    async with site.browser() as client:
        request = client.build_request("GET", "/")
        request.url = httpx.URL("https://shop.example", raw_path=path.encode())
        answer = await client.send(request)
    assert (answer.status_code, answer.json()["reason"]) == (400, "PATH_AMBIGUOUS")


async def test_what_stands_below_a_path_is_closed_with_it_and_what_only_begins_alike_is_not(site: Site) -> None:
    async with site.browser() as client:
        for path, status in [("/account/x/y", 401), ("/%61ccount", 401), ("/accounts", 404)]:
            assert (await client.get(path)).status_code == status


# -- caches, logs, outages -----------------------------------------------------------------------------------------


async def test_what_a_cookie_lets_one_see_stays_out_of_caches_unless_the_application_says_otherwise(
    browser: httpx.AsyncClient,
) -> None:
    assert "cache-control" not in (await browser.get("/")).headers
    await log_in(browser)
    assert (await browser.get("/")).headers["cache-control"] == "no-store"
    assert (await browser.get("/account/kept")).headers["cache-control"] == "private, max-age=60"


@pytest.mark.requirement("R48")
async def test_no_secret_reaches_a_log_an_answer_or_a_location(
    browser: httpx.AsyncClient, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    answers = [await log_in(browser)]
    token = cookie_of(answers[0])
    answers.append(await browser.post("/session/login", data=credentials() | {"next": "/x"}, headers=PAGE))
    answers.append(
        await browser.post("/session/login", data=credentials(password="wrong " + USER_PASSWORD), headers=PAGE)
    )
    answers.append(
        await browser.post(
            "/session/login", content=b"{" + USER_PASSWORD.encode(), headers=SAME | {"content-type": "application/json"}
        )
    )
    answers.append(await browser.get("/account"))
    answers.append(await browser.post("/session/logout", headers=PAGE))
    shown = caplog.text + "".join(answer.text + answer.headers.get("location", "") for answer in answers)
    for secret in (USER_PASSWORD, token, token[4:40]):
        assert secret not in shown


async def test_while_the_identity_service_is_down_nobody_is_logged_out(
    api: Api, identity: Identity, browser: httpx.AsyncClient
) -> None:
    await log_in(browser)
    await api.server.stop()
    for path in ("login", "logout", "logout-everywhere"):
        answer = await browser.post(f"/session/{path}", json=credentials(), headers=SAME)
        assert (answer.status_code, answer.json()["reason"]) == (503, "DEPENDENCY_DOWN")
        assert int(answer.headers["retry-after"]) >= 1
        assert "set-cookie" not in answer.headers
    answer = await browser.get("/account")
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
    assert (await browser.get("/")).text == "nobody"
    assert browser.cookies[COOKIE]


async def test_a_flood_of_log_ins_is_told_to_wait(
    browser: httpx.AsyncClient, api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert api.server.house is not None
    monkeypatch.setattr(api.server.house.pool, "_limit", 0)
    answer = await browser.post("/session/login", json=credentials(), headers=SAME)
    assert (answer.status_code, answer.json()["reason"]) == (429, "OVERLOADED")
    assert int(answer.headers["retry-after"]) >= 1


async def test_a_guesser_is_told_to_wait_and_where_the_user_is_logged_in_nothing_changes(
    site: Site, browser: httpx.AsyncClient
) -> None:
    await log_in(browser)
    async with site.browser(client=("203.0.113.66", 1)) as guesser:
        wrong = credentials(password="wrong wrong wrong")
        answer = await until_answer(
            lambda: guesser.post("/session/login", json=wrong, headers=SAME), lambda answer: answer.status_code != 401
        )
    assert (answer.status_code, answer.json()["reason"]) == (429, "THROTTLED")
    assert int(answer.headers["retry-after"]) >= 1
    assert (await browser.get("/account")).status_code == 200
    await log_in(browser)


# -- where the user is ---------------------------------------------------------------------------------------------


async def test_the_identity_service_is_told_where_the_user_is(site: Site, api: Api) -> None:
    forged = {"x-forwarded-for": "203.0.113.1", "user-agent": "Tester/1.0"}
    async with site.browser(client=("198.51.100.7", 1)) as browser:
        await browser.post("/session/login", json=credentials(), headers=SAME | forged)
    [session] = await sessions_of_alice(api)
    assert (session.ip_address, session.user_agent) == ("198.51.100.7", "Tester/1.0")


async def test_a_front_end_that_may_not_forward_says_so_in_its_log_and_to_nobody_else(
    api: Api, caplog: pytest.LogCaptureFixture
) -> None:
    await api.create_user("alice")
    async with connected(api, "storefront", "peer") as identity, Site(identity).browser() as browser:
        answer = await browser.post("/session/login", json=credentials(), headers=SAME)
    assert (answer.status_code, answer.json()["reason"]) == (500, "INTERNAL")
    assert "give the account of this front end a role with the scope identity.forward" in caplog.text


async def test_our_own_token_is_renewed_when_the_service_no_longer_takes_it(
    api: Api, identity: Identity, browser: httpx.AsyncClient
) -> None:
    token = await identity.tokens.get()
    await api.tokens.Revoke(token_pb2.RevokeRequest(token=token.raw_token))
    await log_in(browser)

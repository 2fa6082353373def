"""The storefront in a real Chromium: what browsers keep, send and refuse, attacks from other sites included."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from urllib.parse import urlencode

import grpc
import httpx
import pytest

from identity.v1 import account_pb2, token_pb2
from identity_client.aio.identity import Identity
from tests.rpc.api import USER_PASSWORD, Api
from tests.web.browser import BROWSER, DRIVER, MISSING, Browser, chromium
from tests.web.site import credentials, until_answer
from tests.web.stage import Stage, play, staged

pytestmark = pytest.mark.skipif(not (BROWSER and DRIVER), reason=MISSING)

SESSION, ACCESS, REFRESH = "__Host-session", "__Host-access", "__Secure-refresh"


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Browser]:
    with chromium(tmp_path / "profile") as running:
        yield running


@pytest.fixture
async def stage(identity: Identity) -> AsyncIterator[Stage]:
    async with staged(identity, "session") as running:
        yield running


@pytest.fixture
async def jwt_stage(identity: Identity) -> AsyncIterator[Stage]:
    async with staged(identity, "jwt") as running:
        yield running


def log_in(browser: Browser, stage: Stage, username: str = "alice") -> None:
    browser.open(f"{stage.origin}/login")
    browser.fill(**credentials(username))
    browser.press("Log in")
    browser.wait(lambda: browser.url == f"{stage.origin}/account")


def attributes(cookie: dict[str, object]) -> dict[str, object]:
    names = ("domain", "path", "secure", "httpOnly", "sameSite", "session")
    return {name: cookie[name] for name in names}


def strict(path: str = "/") -> dict[str, object]:
    return {
        "domain": "shop.site.localhost",
        "path": path,
        "secure": True,
        "httpOnly": True,
        "sameSite": "Strict",
        "session": True,
    }


# -- people --------------------------------------------------------------------------------------------------------


@pytest.mark.requirement("R16")
async def test_a_person_is_sent_to_log_in_and_back_and_code_cannot_read_the_cookie(
    browser: Browser, stage: Stage
) -> None:
    def story() -> None:
        browser.open(stage.origin)
        browser.shoot("1-home")
        browser.press("Add to basket")
        browser.wait(lambda: browser.url == f"{stage.origin}/login")
        browser.open(f"{stage.origin}/account")
        assert browser.url == f"{stage.origin}/login?next=%2Faccount"
        browser.fill(username="alice", password="wrong wrong wrong")
        browser.press("Log in")
        browser.wait(lambda: "is not right" in browser.text)
        browser.shoot("2-refused")
        browser.fill(username="alice", password=USER_PASSWORD)
        browser.press("Log in")
        browser.wait(lambda: browser.url == f"{stage.origin}/account")
        browser.shoot("3-account")
        cookies = browser.cookies()
        assert list(cookies) == [SESSION]
        assert attributes(cookies[SESSION]) == strict()
        assert cookies[SESSION]["value"].startswith("ids_")
        assert browser.run("return document.cookie") == ""
        browser.open(stage.origin)
        browser.press("Add to basket")
        browser.wait(lambda: "In your basket: 1 x Sencha" in browser.text)
        browser.shoot("4-basket")

    await play(story)
    assert not any(USER_PASSWORD in path for _, path, _ in stage.seen)


@pytest.mark.requirement("R16")
@pytest.mark.requirement("R5")
async def test_a_log_out_in_one_tab_ends_the_other(browser: Browser, stage: Stage) -> None:
    def story() -> None:
        log_in(browser, stage)
        first = browser.driver.current_window_handle
        second = browser.open_tab(f"{stage.origin}/account")
        for tab in (first, second):
            browser.switch(tab)
            browser.wait(lambda: browser.run("return document.documentElement.dataset.live") == "yes")
        browser.press("Log out")
        browser.wait(lambda: browser.url == f"{stage.origin}/login")
        browser.switch(first)
        browser.wait(lambda: browser.url == f"{stage.origin}/login?next=%2Faccount")
        assert browser.cookies() == {}

    await play(story)


async def test_a_log_out_goes_where_it_says_though_the_tab_learns_first_that_its_session_is_over(
    browser: Browser, stage: Stage
) -> None:
    async def until_reloaded() -> None:
        """Until the tab asks for its page again, or time enough to do so has gone by."""
        for _ in range(20):
            if stage.seen[-1][:2] != ("POST", "/session/logout"):
                return
            await asyncio.sleep(0.05)

    stage.held["/session/logout"] = until_reloaded

    def story() -> None:
        log_in(browser, stage)
        browser.wait(lambda: browser.run("return document.documentElement.dataset.live") == "yes")
        browser.press("Log out")
        browser.wait(lambda: browser.url != f"{stage.origin}/account")
        assert browser.url == f"{stage.origin}/login"

    await play(story)


async def test_what_was_seen_logged_in_is_not_shown_by_the_back_button_afterwards(
    browser: Browser, stage: Stage
) -> None:
    def story() -> None:
        log_in(browser, stage)
        browser.press("Log out")
        browser.wait(lambda: browser.url == f"{stage.origin}/login")
        browser.driver.back()
        browser.wait(lambda: "/login" in browser.url)
        assert "Your account" not in browser.text

    await play(story)


async def test_a_password_that_must_be_changed_is_changed_on_its_page(browser: Browser, stage: Stage, api: Api) -> None:
    request = account_pb2.CreateUserRequest(username="bob", password=USER_PASSWORD, password_change_required=True)
    await api.accounts.CreateUser(request, metadata=await api.admin())

    def story() -> None:
        browser.open(f"{stage.origin}/login")
        browser.fill(**credentials("bob"))
        browser.press("Log in")
        browser.wait(lambda: browser.url.startswith(f"{stage.origin}/password?reason="))
        assert browser.cookies() == {}
        browser.shoot("5-password")
        browser.fill(username="bob", password=USER_PASSWORD, new_password="another long enough secret")
        browser.press("Change it")
        browser.wait(lambda: SESSION in browser.cookies())

    await play(story)


# -- attacks -------------------------------------------------------------------------------------------------------


@pytest.mark.requirement("R16")
@pytest.mark.parametrize(("attacker", "sends_cookie", "status"), [("sibling", True, 403), ("stranger", False, 303)])
async def test_another_site_can_buy_nothing_for_who_is_logged_in(
    browser: Browser, stage: Stage, attacker: str, sends_cookie: bool, status: int
) -> None:
    def story() -> None:
        log_in(browser, stage)
        to = f"{stage.origin}/basket?item=sencha"
        browser.open(f"{getattr(stage, attacker)}/form?{urlencode({'to': to})}")
        browser.wait(lambda: ("POST", "/basket", status) in stage.answers)
        # Strict cookies are not sent from another site, but they are from a sibling host: there the middleware decides.
        assert ("cookie" in stage.headers_of("POST", "/basket")) == sends_cookie
        browser.open(f"{stage.origin}/account")
        assert "Your account" in browser.text
        assert "In your basket" not in browser.text

    await play(story)


@pytest.mark.requirement("R16")
@pytest.mark.parametrize("attacker", ["sibling", "stranger"])
async def test_another_site_can_log_nobody_in_or_out(browser: Browser, stage: Stage, api: Api, attacker: str) -> None:
    await api.create_user("mallory")

    def story() -> None:
        site = getattr(stage, attacker)
        to = f"{stage.origin}/session/login"
        browser.open(f"{site}/form?{urlencode({'to': to} | credentials('mallory'))}")
        browser.wait(lambda: browser.url == to)
        assert "CROSS_SITE_REQUEST" in browser.text
        assert browser.cookies() == {}
        log_in(browser, stage)
        to = f"{stage.origin}/session/logout"
        browser.open(f"{site}/form?{urlencode({'to': to})}")
        browser.wait(lambda: browser.url == to)
        browser.open(f"{stage.origin}/account")
        assert "Your account" in browser.text

    await play(story)


@pytest.mark.requirement("R41")
async def test_a_session_planted_in_the_browser_is_not_adopted_and_does_not_outlive_the_log_in(
    browser: Browser, stage: Stage, api: Api
) -> None:
    await api.create_user("mallory")
    async with httpx.AsyncClient(base_url=stage.origin.replace("shop.site.localhost", "127.0.0.1")) as attacker:
        headers = {"origin": stage.origin, "host": stage.origin.removeprefix("http://")}
        answer = await attacker.post("/session/login", json=credentials("mallory"), headers=headers)
        planted = answer.headers["set-cookie"].partition("=")[2].partition(";")[0]

        def story() -> None:
            browser.open(f"{stage.sibling}/")
            for name in (SESSION, SESSION.lower(), f"\\u2000{SESSION}"):
                browser.run(f"document.cookie = '{name}={planted}; Domain=site.localhost; Path=/; Secure'")
            assert SESSION not in browser.cookies()
            browser.open(f"{stage.origin}/login")
            plant = {"name": SESSION, "value": planted, "url": stage.origin, "path": "/", "secure": True}
            assert browser.driver.execute_cdp_cmd("Network.setCookie", plant)["success"]
            log_in(browser, stage)
            assert browser.cookies()[SESSION]["value"] not in ("", planted)

        await play(story)
        stolen = headers | {"cookie": f"{SESSION}={planted}"}
        await until_answer(lambda: attacker.get("/api/me", headers=stolen), lambda answer: answer.status_code == 401)


@pytest.mark.requirement("R16")
async def test_another_sites_page_can_open_no_socket(browser: Browser, stage: Stage) -> None:
    script = """const socket = new WebSocket('{}/live');
        socket.onopen = () => done('open'); socket.onclose = event => done('closed ' + event.code);"""

    def story() -> None:
        log_in(browser, stage)
        target = script.format(stage.origin.replace("http", "ws"))
        assert browser.run_async(target) == "open"
        for site in (stage.sibling, stage.stranger):
            browser.open(f"{site}/")
            assert browser.run_async(target) == "closed 1006"
        browser.open(f"{stage.sibling}/")
        browser.run_async(target)
        assert "cookie" in stage.headers_of("WS", "/live")

    await play(story)


# -- the single-page application -----------------------------------------------------------------------------------


@pytest.mark.requirement("R18")
async def test_the_application_keeps_two_cookies_and_sends_one_of_them_to_the_renewal_alone(
    browser: Browser, jwt_stage: Stage
) -> None:
    stage = jwt_stage

    def story() -> None:
        browser.open(f"{stage.origin}/app")
        browser.wait(lambda: "Username" in browser.text)
        browser.shoot("6-app-login")
        browser.fill(**credentials())
        browser.press("Log in")
        browser.wait(lambda: "Your basket" in browser.text)
        browser.shoot("7-app")
        cookies = browser.cookies()
        assert {name: attributes(cookie) for name, cookie in cookies.items()} == {
            ACCESS: strict(),
            REFRESH: strict("/session/refresh"),
        }
        assert browser.run("return document.cookie") == ""
        assert REFRESH not in stage.headers_of("GET", "/api/me")["cookie"]

    await play(story)


@pytest.mark.requirement("R18")
async def test_the_application_renews_when_its_token_is_outdated_and_nobody_notices(
    browser: Browser, jwt_stage: Stage, api: Api
) -> None:
    stage = jwt_stage

    def begin() -> None:
        log_in(browser, stage)
        browser.open(f"{stage.origin}/app")
        browser.wait(lambda: "clerk" in browser.text)

    await play(begin)
    before = browser.cookies()
    request = account_pb2.SetRolesRequest(username="alice", roles=["clerk", "manager"])
    await api.accounts.SetRoles(request, metadata=await api.admin())

    def go_on() -> None:
        browser.wait(_outdated)
        browser.press("Add Sencha")
        browser.wait(lambda: "clerk, manager" in browser.text)
        assert "renewed after TOKEN_OUTDATED" in browser.text
        browser.wait(lambda: browser.run("return document.querySelector('#facts').lastChild.textContent") == "1")
        browser.shoot("8-app-renewed")
        after = browser.cookies()
        assert all(after[name]["value"] != before[name]["value"] for name in (ACCESS, REFRESH))
        assert REFRESH in stage.headers_of("POST", "/session/refresh")["cookie"]

    def _outdated() -> bool:
        """Whether the revocation has reached the storefront, asked without the renewal of the application."""
        status = "fetch('/api/basket?item=none', {method: 'POST'}).then(answer => done(answer.status))"
        return bool(browser.run_async(status) == 401)

    await play(go_on)


@pytest.mark.requirement("R18")
async def test_a_page_is_renewed_on_the_way_to_it(browser: Browser, jwt_stage: Stage, api: Api) -> None:
    stage = jwt_stage
    await play(lambda: log_in(browser, stage))
    before = browser.cookies()
    request = account_pb2.SetRolesRequest(username="alice", roles=["clerk", "manager"])
    await api.accounts.SetRoles(request, metadata=await api.admin())

    def story() -> None:
        browser.wait(_shows_manager)
        assert browser.url == f"{stage.origin}/account"
        assert browser.cookies()[REFRESH]["value"] != before[REFRESH]["value"]

    def _shows_manager() -> bool:
        browser.open(f"{stage.origin}/account")
        return "manager" in browser.text

    await play(story)


@pytest.mark.requirement("R18")
async def test_twelve_tabs_that_renew_at_once_stay_logged_in(browser: Browser, jwt_stage: Stage) -> None:
    stage = jwt_stage

    def story() -> None:
        log_in(browser, stage)
        many = "Promise.all(Array.from({length: 12}, () => fetch('/session/refresh', {method: 'POST'})))"
        for _ in range(3):
            assert browser.run_async(f"{many}.then(all => done(all.every(answer => answer.ok)))")
        browser.open(f"{stage.origin}/account")
        assert "Your account" in browser.text
        assert browser.run_async("fetch('/session/refresh', {method: 'POST'}).then(answer => done(answer.ok))")

    await play(story)


@pytest.mark.requirement("R18")
@pytest.mark.requirement("R5")
async def test_a_log_out_of_the_application_clears_both_cookies_and_ends_the_session(
    browser: Browser, jwt_stage: Stage, api: Api
) -> None:
    stage = jwt_stage

    def story() -> None:
        log_in(browser, stage)
        refresh = browser.cookies()[REFRESH]["value"]
        browser.open(f"{stage.origin}/app")
        browser.wait(lambda: "Your basket" in browser.text)
        browser.press("Log out")
        browser.wait(lambda: "Username" in browser.text)
        assert browser.cookies() == {}
        assert REFRESH in stage.headers_of("POST", "/session/refresh/logout")["cookie"]
        ended.append(refresh)

    ended: list[str] = []
    await play(story)
    with pytest.raises(grpc.aio.AioRpcError, match="SESSION_ENDED"):
        await api.tokens.Refresh(token_pb2.RefreshRequest(refresh_token=ended[0]))


@pytest.mark.requirement("R41")
async def test_a_refresh_token_planted_from_a_sibling_host_is_sent_by_the_browser_and_taken_by_nobody(
    browser: Browser, jwt_stage: Stage, api: Api
) -> None:
    stage = jwt_stage
    await api.create_user("mallory")
    planted = (await api.login("mallory")).refresh_token

    def plant() -> None:
        browser.open(f"{stage.sibling}/")
        browser.run(f"document.cookie = '{REFRESH}={planted}; Domain=site.localhost; Path=/session/refresh; Secure'")

    def story() -> None:
        plant()
        browser.open(f"{stage.origin}/session/refresh?next=/account")
        assert planted in stage.headers_of("GET", "/session/refresh")["cookie"]
        assert browser.url.startswith(f"{stage.origin}/login")
        log_in(browser, stage)
        own = browser.cookies()[ACCESS]["value"]
        plant()
        browser.open(f"{stage.origin}/account")
        assert browser.run_async("fetch('/session/refresh', {method: 'POST'}).then(answer => done(answer.ok))")
        assert browser.cookies()[ACCESS]["value"] != own
        assert alice in browser.driver.page_source

    request = account_pb2.GetAccountRequest(username="alice")
    alice = (await api.accounts.GetAccount(request, metadata=await api.admin())).account.account_id
    await play(story)

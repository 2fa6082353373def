"""Cross-site request forgery, tried as every browser would send it: methods x Fetch Metadata x Origin x credential."""

from __future__ import annotations

from collections.abc import AsyncIterator

import httpx
import pytest

from identity_client.aio.identity import Identity
from tests.rpc.api import Api
from tests.web.site import ORIGIN, SAME, Site, credentials, log_in

OWN: list[dict[str, str]] = [
    {"sec-fetch-site": "same-origin", "origin": ORIGIN},
    {"sec-fetch-site": "same-origin"},
    {"sec-fetch-site": "same-origin", "origin": "null"},  # under Referrer-Policy: no-referrer
    {"origin": ORIGIN},
    {"origin": ORIGIN, "referer": "https://evil.example/"},
    {"referer": f"{ORIGIN}/page?x=1"},
]
"""What may come with an unsafe request and a cookie."""

FOREIGN: list[dict[str, str]] = [
    {},
    {"sec-fetch-site": "cross-site", "origin": "https://evil.example"},
    {"sec-fetch-site": "cross-site", "origin": ORIGIN},
    {"sec-fetch-site": "same-site", "origin": "https://other.shop.example"},
    {"sec-fetch-site": "same-site", "origin": ORIGIN},
    {"sec-fetch-site": "none"},
    {"sec-fetch-site": "none", "origin": ORIGIN},
    {"sec-fetch-site": "", "origin": ORIGIN},
    {"sec-fetch-site": "SAME-ORIGIN", "origin": ORIGIN},
    {"sec-fetch-site": "same-origin", "origin": "https://evil.example"},
    {"origin": "https://evil.example"},
    {"origin": "null"},
    {"origin": "null", "referer": f"{ORIGIN}/"},
    {"origin": ""},
    {"origin": f"{ORIGIN}.evil.example"},
    {"origin": "https://evil.example/" + ORIGIN},
    {"origin": "http://shop.example"},
    {"origin": f"{ORIGIN}:444"},
    {"origin": f"{ORIGIN}/"},
    {"origin": f"{ORIGIN}, https://evil.example"},
    {"referer": "https://evil.example/?" + ORIGIN},
    {"referer": "https://shop.example@evil.example/"},
    {"referer": "https://user:x@shop.example/"},
    {"referer": "https://[shop.example/"},
    {"referer": ORIGIN.replace("https", "http") + "/"},
    {"host": "evil.example", "origin": "https://evil.example"},
]
"""What may not."""


@pytest.fixture
def site(identity: Identity) -> Site:
    return Site(identity)


@pytest.fixture
async def browser(site: Site) -> AsyncIterator[httpx.AsyncClient]:
    async with site.browser() as client:
        await log_in(client)
        yield client


@pytest.mark.requirement("R16")
@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE", "TRACE", "BREW"])
async def test_with_a_cookie_an_unsafe_method_is_taken_from_the_sites_own_pages_alone(
    browser: httpx.AsyncClient, method: str
) -> None:
    for headers in OWN:
        answer = await browser.request(method, "/account", headers=headers)
        assert answer.status_code == (200 if method not in ("TRACE", "BREW") else 405), headers
    for path in ("/account", "/", "/absent"):
        for headers in FOREIGN:
            answer = await browser.request(method, path, headers=headers)
            assert answer.status_code == 403, headers
            assert answer.json()["reason"] == "CROSS_SITE_REQUEST"


@pytest.mark.requirement("R16")
async def test_a_cookie_that_is_no_longer_good_opens_no_way_round(site: Site) -> None:
    async with site.browser() as client:
        for headers in FOREIGN:
            answer = await client.post("/", headers=headers | {"cookie": "__Host-session=x"})
            assert (answer.status_code, answer.json()["reason"]) == (403, "CROSS_SITE_REQUEST")


@pytest.mark.parametrize("method", ["GET", "HEAD", "OPTIONS"])
async def test_a_safe_method_is_taken_from_everywhere(browser: httpx.AsyncClient, method: str) -> None:
    for headers in FOREIGN:
        assert (await browser.request(method, "/account", headers=headers)).status_code == 200


async def test_without_a_cookie_nothing_can_be_forged(site: Site, api: Api) -> None:
    authorization = {"authorization": f"Bearer {(await api.login('alice')).access_token}"}
    async with site.browser() as client:
        for headers in FOREIGN:
            assert (await client.post("/", headers=headers)).text == "nobody"
            assert (await client.post("/account", headers=headers | authorization)).status_code == 200


@pytest.mark.requirement("R16")
@pytest.mark.parametrize("route", ["login", "logout", "logout-everywhere", "password"])
async def test_nobody_is_logged_in_or_out_by_another_site(site: Site, route: str) -> None:
    async with site.browser() as client:
        for headers in FOREIGN:
            answer = await client.post(f"/session/{route}", data=credentials(), headers=headers)
            assert (answer.status_code, answer.json()["reason"]) == (403, "CROSS_SITE_REQUEST")
            assert "set-cookie" not in answer.headers


@pytest.mark.parametrize("name", ["origin", "sec-fetch-site", "referer"])
async def test_a_header_that_stands_twice_decides_nothing(browser: httpx.AsyncClient, name: str) -> None:
    values = {"origin": ORIGIN, "sec-fetch-site": "same-origin", "referer": f"{ORIGIN}/"}
    answer = await browser.post("/account", headers=[(name, values[name])] * 2)
    assert (answer.status_code, answer.json()["reason"]) == (400, "HEADER_REPEATED")


@pytest.mark.parametrize(
    ("headers", "body", "status", "reason"),
    [
        ({"content-type": "text/plain"}, b'{"username":"alice"}', 415, "MEDIA_TYPE_UNKNOWN"),
        ({"content-type": "multipart/form-data; boundary=x"}, b"--x--", 415, "MEDIA_TYPE_UNKNOWN"),
        ({}, b"username=alice", 415, "MEDIA_TYPE_UNKNOWN"),
        ({"content-type": "application/json"}, b"[", 400, "BODY_MALFORMED"),
        ({"content-type": "application/json"}, b"[]x", 400, "BODY_MALFORMED"),
        ({"content-type": "application/json"}, b'["username"]', 400, "BODY_MALFORMED"),
        ({"content-type": "application/json"}, b'{"username":1}', 400, "BODY_MALFORMED"),
        ({"content-type": "application/json"}, b'{"username":"\\ud800"}', 400, "BODY_MALFORMED"),
        ({"content-type": "application/json"}, b'{"username":"a","username":"b"}', 400, "BODY_MALFORMED"),
        ({"content-type": "application/json"}, b"[" * 16_000, 400, "BODY_MALFORMED"),
        ({"content-type": "application/json"}, b"\xff\xfe", 400, "BODY_MALFORMED"),
        ({"content-type": "application/x-www-form-urlencoded"}, b"username=a&username=b", 400, "BODY_MALFORMED"),
        ({"content-type": "application/x-www-form-urlencoded"}, b"username=%ff", 400, "BODY_MALFORMED"),
        ({"content-type": "application/x-www-form-urlencoded"}, b"a=1&" * 100 + b"a=1", 400, "BODY_MALFORMED"),
        ({"content-type": "application/x-www-form-urlencoded"}, b"password=" + b"x" * 16_384, 413, "BODY_TOO_LARGE"),
        ({"content-type": "application/x-www-form-urlencoded"}, b"", 400, "INVALID_FIELD"),
        (
            {"content-type": "application/json"},
            b'{"username":"alice","password":"' + b"x" * 1_025 + b'"}',
            400,
            "INVALID_FIELD",
        ),
        ({"content-type": "application/json"}, b'{"username":"alice","password":"a\\u0000b"}', 400, "INVALID_FIELD"),
    ],
)
async def test_a_body_that_is_no_log_in_is_refused_before_or_by_the_service(
    site: Site, headers: dict[str, str], body: bytes, status: int, reason: str
) -> None:
    async with site.browser() as client:
        answer = await client.post("/session/login", content=body, headers=SAME | headers)
    assert (answer.status_code, answer.json()["reason"]) == (status, reason)


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "DELETE", "OPTIONS"])
async def test_people_log_in_by_post_alone(site: Site, method: str) -> None:
    async with site.browser() as client:
        for route in ("login", "logout", "logout-everywhere", "password"):
            answer = await client.request(method, f"/session/{route}", headers=SAME)
            assert (answer.status_code, answer.headers["allow"]) == (405, "POST")

"""The pure rules of a front end: its origins, its rules for paths, where a user is, where a user is sent."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from identity_client.web import IdentityMiddleware, Rule, RuleError
from identity_client.web.asgi import Request
from identity_client.web.forms import local_target
from identity_client.web.origins import Origins
from identity_client.web.place import Places

PUBLIC = Rule(public=True)


def request(client: tuple[str, int] | None = ("192.0.2.1", 1), *headers: tuple[str, str]) -> Request:
    raw = [(name.encode(), value.encode("latin-1")) for name, value in headers]
    return Request({"type": "http", "method": "GET", "path": "/", "headers": raw, "client": client})


# -- origins -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "origin",
    ["https://shop.example", "https://shop.example:8443", "http://localhost:8000", "http://shop.localhost:8000",
     "http://127.0.0.1:8000", "http://127.8.0.1", "http://[::1]:8000", "https://[2001:db8::1]"],
)  # fmt: skip
def test_an_origin_is_written_as_browsers_write_it(origin: str) -> None:
    Origins([origin])


@pytest.mark.requirement("R16")
@pytest.mark.requirement("R48")
@pytest.mark.parametrize(
    "host", ["shop.example", "10.0.0.7", "127.0.0.1.evil.example", "localhost.evil", "[2001:db8::1]"]
)
def test_there_is_no_way_to_run_log_ins_over_plain_http_beyond_loopback(host: str) -> None:
    with pytest.raises(ValueError, match="https"):
        Origins([f"http://{host}"])


@pytest.mark.parametrize(
    "origin",
    ["", "*", "null", "shop.example", "https://shop.example/", "https://Shop.example", "https://shop.example:443",
     "http://localhost:80", "https://user@shop.example", "https://*.example", "ftp://shop.example", "https://shop.example\n"],
)  # fmt: skip
def test_what_no_browser_would_send_is_no_origin(origin: str) -> None:
    with pytest.raises(ValueError, match=r"origin|port"):
        Origins([origin])


@pytest.mark.parametrize("origins", [[], (), "https://shop.example"])
def test_a_site_says_what_its_origins_are(origins: Any) -> None:
    with pytest.raises(ValueError, match="lists the site's own"):
        Origins(origins)


# -- where a user is -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("trusted", "client", "forwarded", "place"),
    [
        ([], "192.0.2.1", [], "192.0.2.1"),
        ([], "192.0.2.1", ["203.0.113.9"], "192.0.2.1"),
        (["192.0.2.1"], "192.0.2.1", [], "192.0.2.1"),
        (["192.0.2.0/24"], "192.0.2.1", ["203.0.113.9"], "203.0.113.9"),
        (["192.0.2.1"], "192.0.2.1", ["6.6.6.6, 203.0.113.9"], "203.0.113.9"),
        (["192.0.2.1"], "192.0.2.1", ["6.6.6.6", "203.0.113.9"], "203.0.113.9"),
        (["192.0.2.0/24"], "192.0.2.1", ["6.6.6.6, 203.0.113.9,192.0.2.7"], "203.0.113.9"),
        (["192.0.2.1"], "192.0.2.1", ["203.0.113.9, unknown"], "192.0.2.1"),
        (["192.0.2.1"], "192.0.2.1", ["203.0.113.9:80"], "192.0.2.1"),
        (["10.0.0.0/8"], "192.0.2.1", ["203.0.113.9"], "192.0.2.1"),
        (["::1"], "::1", ["2001:DB8::0:1"], "2001:db8::1"),
        ([], "::ffff:192.0.2.1", [], "192.0.2.1"),
        (["192.0.2.1"], "::ffff:192.0.2.1", ["::ffff:203.0.113.9"], "203.0.113.9"),
        (["0.0.0.0/0"], None, ["203.0.113.9"], ""),
        (["0.0.0.0/0"], "testclient", ["203.0.113.9"], ""),
    ],
)
def test_x_forwarded_for_is_believed_back_to_the_first_hop_that_is_not_trusted(
    trusted: list[str], client: str | None, forwarded: list[str], place: str
) -> None:
    headers = [("x-forwarded-for", value) for value in forwarded]
    found = Places(trusted).of(request((client, 1) if client else None, *headers))
    assert found.ip_address == place


def test_a_user_agent_is_cut_and_its_control_characters_are_dropped() -> None:
    found = Places(()).of(request(None, ("user-agent", "a\tb\x85" + "c" * 300)))
    assert found.user_agent == "ab" + "c" * 254


def test_a_proxy_is_an_address_or_a_network() -> None:
    with pytest.raises(ValueError, match="does not appear"):
        Places(["proxy.internal"])


# -- where a user is sent ------------------------------------------------------------------------------------------


ELSEWHERE = [
    None,
    "",
    "a",
    "https://evil.example",
    "//evil.example",
    "/\\evil.example",
    "\\/evil.example",
    "/\t/evil.example",
    "/\n/evil.example",
    " //evil.example",
    "/ /evil.example",
    "/a\r\nset-cookie: x=y",
    "/a\\b",
    "javascript:alert(1)",
    "/" + "a" * 2_000,
    "/\x00",
    "/\x7f",
]


@pytest.mark.parametrize(("target", "location"), [("/", "/"), ("/a?b=%20c&d#e", "/a?b=%20c&d#e"), ("/é", "/%C3%A9")])
def test_a_target_is_a_path_of_this_site(target: str, location: str) -> None:
    assert local_target(target, "") == location


@pytest.mark.parametrize("target", ELSEWHERE)
def test_nobody_is_sent_elsewhere(target: str | None) -> None:
    assert local_target(target, "/home") == "/home"


# -- rules ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"rules": {}}, "need one for the path '/'"),
        ({"rules": {"/": PUBLIC, "account": Rule()}}, "'account'"),
        ({"rules": {"/": PUBLIC, "/account/": Rule()}}, "'/account/'"),
        ({"rules": {"/": Rule()}}, "the page /login must be public"),
        ({"rules": {"/": Rule(), "/login": PUBLIC}}, "the page /password must be public"),
        ({"cookies": "both"}, "cookies is session or jwt"),
        ({"prefix": "session"}, "prefix"),
        ({"prefix": "/"}, "prefix"),
        ({"prefix": "/a;b"}, "prefix"),
    ],
)
def test_a_mistake_in_the_settings_is_found_before_the_first_request(settings: dict[str, Any], problem: str) -> None:
    from identity_client.aio import Connection, Identity

    identity = Identity(Connection("127.0.0.1:1", "storefront", "idc_x"))
    values: dict[str, Any] = {"origins": ["https://shop.example"], "rules": {"/": PUBLIC}}

    async def app(*_: Any) -> None:
        """Never called."""

    with pytest.raises(ValueError, match=problem) as caught:
        IdentityMiddleware(app, identity=identity, name="storefront", **(values | settings))
    assert isinstance(caught.value, RuleError) == ("rules" in settings)


def test_the_middleware_needs_no_framework() -> None:
    block = "".join(f"sys.modules[{name!r}] = None\n" for name in ("starlette", "fastapi", "uvicorn", "sqlalchemy"))
    code = f"import sys\n{block}import identity_client.web"
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)

"""One line for each call that was refused or failed: what became of it, and nothing of who called."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Iterator
from typing import Any

import grpc
import pytest

from identity.logs import JsonFormatter
from identity.rpc import call_log
from identity.rpc.call_log import LINES, CallLog
from identity.server import Server
from identity.v1 import account_pb2, trust_pb2
from tests.rpc.api import Api, MakeSettings, prepare
from tests.rpc.refusals import refused
from tests.rpc.test_leaks import CANARY_WRONG_PASSWORD, tell_every_rpc

Line = dict[str, Any]


class Lines(logging.Handler):
    """What standard error would get."""

    def __init__(self) -> None:
        super().__init__()
        self.texts: list[str] = []
        self.setFormatter(JsonFormatter())

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(self.format(record))

    @property
    def lines(self) -> list[Line]:
        return [json.loads(text) for text in self.texts]


@pytest.fixture
def log() -> Iterator[Lines]:
    logger, lines = logging.getLogger(call_log.__name__), Lines()
    level = logger.level
    logger.addHandler(lines)
    logger.setLevel(logging.INFO)
    yield lines
    logger.removeHandler(lines)
    logger.setLevel(level)


def told(line: Line) -> tuple[str, ...]:
    return tuple(line[name] for name in ("level", "method", "status", "reason"))


async def test_every_refusal_has_its_line_and_what_goes_well_has_none(api: Api, log: Lines) -> None:
    await api.create_user("alice")
    await api.login("alice")
    assert log.lines == []
    await refused(api.login("alice", "not the password"))
    await refused(api.accounts.ListAccounts(account_pb2.ListAccountsRequest()))
    await refused(api.accounts.GetAccount(account_pb2.GetAccountRequest(username="nobody"), metadata=await api.admin()))
    await refused(_read(api.trust.WatchTrust(trust_pb2.WatchTrustRequest())))
    channel: Any = api.channel
    await refused(channel.unary_unary("/identity.v1.TokenService/Invent9ed")(b""))
    assert [told(line) for line in log.lines] == [
        ("info", "AuthenticationService/Authenticate", "UNAUTHENTICATED", "BAD_CREDENTIALS"),
        ("info", "AccountService/ListAccounts", "UNAUTHENTICATED", "CREDENTIALS_MISSING"),
        ("info", "AccountService/GetAccount", "NOT_FOUND", "ACCOUNT_NOT_FOUND"),
        ("info", "TrustService/WatchTrust", "UNAUTHENTICATED", "CREDENTIALS_MISSING"),
        ("info", "unregistered", "UNIMPLEMENTED", ""),
    ]
    assert all(line["milliseconds"] >= 0 for line in log.lines)
    ids = [line["request_id"] for line in log.lines]
    assert len(set(ids)) == len(ids)


async def test_a_call_that_its_caller_gives_up_is_neither_refused_nor_failed(api: Api, log: Lines) -> None:
    stream = api.trust.WatchTrust(trust_pb2.WatchTrustRequest(), metadata=await api.peer())
    await stream.read()
    stream.cancel()
    async with asyncio.timeout(10):
        while api.server.streams.count("/identity.v1.TrustService/WatchTrust"):
            await asyncio.sleep(0.01)
    assert log.lines == []


class Broken(grpc.aio.ServerInterceptor):
    async def intercept_service(self, continuation: Any, handler_call_details: grpc.HandlerCallDetails) -> Any:
        raise ValueError("inner text of alice")


async def test_a_failure_is_an_error(make_settings: MakeSettings, log: Lines) -> None:
    server = Server(make_settings(), interceptors=[Broken()])
    api = Api(server, await server.start())
    assert server.house is not None
    await prepare(server.house)
    await refused(api.login("alice"))
    [line] = log.lines
    assert told(line) == ("error", "AuthenticationService/Authenticate", "INTERNAL", "INTERNAL")
    assert "alice" not in log.texts[0]
    await api.channel.close()
    await server.stop()


async def test_a_flood_of_refusals_has_a_bounded_number_of_lines_and_a_count_and_hides_no_failure(
    log: Lines, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(call_log, "SECONDS", 0.1)
    calls = CallLog()
    for _ in range(2):
        log.texts.clear()
        for _ in range(5 * LINES):
            calls.ended("TokenService/Refresh", "UNAUTHENTICATED", "SESSION_ENDED: over", 0.001)
        calls.ended("TokenService/Refresh", "INTERNAL", "INTERNAL: 1", 0.001)
        assert [line["level"] for line in log.lines] == ["info"] * LINES + ["error"]
        async with asyncio.timeout(10):
            while len(log.texts) == LINES + 1:
                await asyncio.sleep(0.01)
        assert log.lines[-1]["message"] == f"a call was refused, and {4 * LINES} more within the second"


@pytest.mark.requirement("R48")
async def test_no_line_has_a_secret_a_name_or_an_address(api: Api, log: Lines, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(call_log, "LINES", 1_000_000)
    secrets, _ = await tell_every_rpc(api)
    assert len(log.texts) > 100
    text = "\n".join(log.texts)
    known = {**secrets, "the password that was wrong": CANARY_WRONG_PASSWORD}
    known |= {"a name": "canary", "the admin's name": "root", "the address": "127.0.0.1"}
    forms = {name: form if isinstance(form, str) else form.decode("latin-1") for name, form in known.items()}
    assert [name for name, form in forms.items() if form in text] == []
    for line in log.lines:
        assert set(line) == {
            *("time", "level", "logger", "message", "request_id", "method", "status", "reason", "milliseconds")
        }


async def _read(stream: Any) -> None:
    await stream.read()

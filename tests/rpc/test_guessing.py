"""Guessing passwords over the wire: what a guesser is told, what it costs them, and what the victim goes on with."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path
from typing import Any

import grpc
import pytest

from identity.domain import passwords
from identity.domain.guessing import Throttle
from identity.domain.throttle import Reservation
from identity.server import Server
from identity.v1 import account_pb2, authentication_pb2, role_pb2, token_pb2
from identity_client import status
from identity_client.errors import BadCredentials, DependencyDown, Overloaded, Throttled, UnknownAudience
from tests.rpc.api import USER_PASSWORD, Api, MakeSettings, Metadata, MovableClock, bearer, prepare
from tests.rpc.refusals import refusal, refused

WRONG = "not the password at all"
HOME, CAFE, ATTACKER = "192.0.2.7", "192.0.2.200", "198.51.100.66"

pytestmark = pytest.mark.requirement("R51")


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """Every password that is compared with a hash, in this process."""
    compared: list[bytes] = []
    compare = passwords._matches

    def counting(password: bytes, password_hash: str) -> bool:
        compared.append(password)
        return compare(password, password_hash)

    monkeypatch.setattr(passwords, "_matches", counting)
    return compared


@pytest.fixture
def wall() -> MovableClock:
    return MovableClock()


@pytest.fixture
async def api(make_settings: MakeSettings, wall: MovableClock) -> AsyncIterator[Api]:
    """A server with the defaults of production, but for cheap hashes, and with the user carol."""
    server = Server(make_settings(), wall)
    api = Api(server, await server.start())
    assert server.house is not None
    await prepare(server.house)
    await api.create_user("carol")
    yield api
    await api.channel.close()
    await server.stop()


class FrontEnd:
    """A service that may say where people call from."""

    def __init__(self, api: Api, metadata: Metadata) -> None:
        self._api = api
        self._metadata = metadata

    async def log_in(self, place: str, username: str, password: str = USER_PASSWORD) -> authentication_pb2.TokenSet:
        request = authentication_pb2.AuthenticateRequest(
            password=authentication_pb2.PasswordCredential(username=username, password=password),
            client_info=authentication_pb2.ClientInfo(ip_address=place),
        )
        return (await self._api.authentication.Authenticate(request, metadata=self._metadata)).tokens

    async def guess(self, place: str, username: str, many: int = 20) -> list[type[Exception]]:
        """-> the classes of the refusals."""
        return [type(await refusal(self.log_in(place, username, WRONG))) for _ in range(many)]


@pytest.fixture
async def front_end(api: Api) -> FrontEnd:
    admin = await api.admin()
    await api.roles.CreateRole(role_pb2.CreateRoleRequest(name="front", scopes=["identity.forward"]), metadata=admin)
    secret = (await api.create_service("shop", "front")).client_secret
    return FrontEnd(api, bearer((await api.login_service("shop", secret)).access_token))


def answer(error: grpc.aio.AioRpcError) -> tuple[Any, ...]:
    """All that a caller sees of a refusal."""
    return error.code(), error.details(), tuple(error.trailing_metadata() or ()), tuple(error.initial_metadata() or ())


TEN_FREE = [BadCredentials] * 10 + [Throttled] * 10


async def test_twenty_guesses_at_an_existing_and_at_an_unknown_name_are_answered_in_equal_bytes(
    front_end: FrontEnd, hashed: list[bytes]
) -> None:
    sequences = []
    for name, place in (("carol", HOME), ("nobody", CAFE)):
        errors = [await refused(front_end.log_in(place, name, WRONG)) for _ in range(20)]
        assert [type(status.from_rpc_error(error)) for error in errors] == TEN_FREE
        sequences.append([answer(error) for error in errors])
    assert sequences[0] == sequences[1]
    assert len(hashed) == 20


async def test_a_disabled_account_is_counted_like_any_other(api: Api, front_end: FrontEnd) -> None:
    admin = await api.admin()
    await api.accounts.DisableAccount(account_pb2.DisableAccountRequest(username="carol"), metadata=admin)
    refusals = [type(await refusal(front_end.log_in(HOME, "carol", USER_PASSWORD))) for _ in range(20)]
    assert refusals == TEN_FREE


async def test_a_throttled_log_in_is_told_when_to_repeat_and_does_not_see_the_right_password(
    api: Api, front_end: FrontEnd, wall: MovableClock
) -> None:
    await front_end.guess(ATTACKER, "carol", 10)
    error = await refused(front_end.log_in(CAFE, "carol"))
    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    throttled = status.from_rpc_error(error)
    assert isinstance(throttled, Throttled)
    assert throttled.retry_after_seconds == 15
    wall.time += throttled.retry_after_seconds
    assert (await front_end.log_in(CAFE, "carol")).session_id


async def test_every_spelling_of_a_name_shares_its_counter(api: Api, hashed: list[bytes]) -> None:
    spellings = ["carol", "CAROL", "Carol", "\uff43\uff41\uff52\uff4f\uff4c", "ca\uff32ol"]
    refusals = [type(await refusal(api.login(spelling, WRONG))) for spelling in spellings * 4]
    assert refusals == TEN_FREE
    assert len(hashed) == 10


async def test_a_changed_password_is_guessed_at_under_the_same_counter(api: Api) -> None:
    async def change() -> None:
        request = authentication_pb2.ChangePasswordRequest(
            username="carol", current_password=WRONG, new_password="quite another secret"
        )
        await api.authentication.ChangePassword(request)

    refusals = [type(await refusal(api.login("carol", WRONG))) for _ in range(5)]
    refusals += [type(await refusal(change())) for _ in range(15)]
    assert refusals == TEN_FREE


async def test_200_guesses_at_once_are_hashed_no_more_often_than_ten_one_by_one(api: Api, hashed: list[bytes]) -> None:
    refusals = await asyncio.gather(*(refusal(api.login("carol", WRONG)) for _ in range(200)))
    assert sum(isinstance(error, BadCredentials) for error in refusals) == 10
    # Those for whom there was no place among the hashes were refused before anything was counted.
    assert sum(isinstance(error, Throttled | Overloaded) for error in refusals) == 190
    assert len(hashed) == 10


async def test_who_mistypes_twice_and_then_gets_it_right_is_never_throttled(front_end: FrontEnd) -> None:
    for _ in range(20):
        assert await front_end.guess(HOME, "carol", 2) == [BadCredentials] * 2
        assert (await front_end.log_in(HOME, "carol")).session_id


async def test_right_passwords_are_not_counted(api: Api, front_end: FrontEnd) -> None:
    for place in (HOME, CAFE):
        for _ in range(15):
            assert (await front_end.log_in(place, "carol")).session_id
    for number in range(15):
        assert (await front_end.log_in(f"203.0.113.{number}", "carol")).session_id


async def test_a_right_password_is_not_counted_whatever_becomes_of_the_log_in(api: Api) -> None:
    refusals = [type(await refusal(api.login("carol", audience="nowhere"))) for _ in range(15)]
    assert refusals == [UnknownAudience] * 15


async def test_a_log_in_is_not_answered_before_its_attempt_is_uncounted(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(*_: object) -> None:
        raise DependencyDown

    with monkeypatch.context() as patch:
        patch.setattr(Throttle, "succeeded", fail)
        assert isinstance(await refusal(api.login("carol")), DependencyDown)


async def test_while_a_name_is_throttled_its_sessions_refresh_and_usual_place_go_on(
    api: Api, front_end: FrontEnd
) -> None:
    service = await api.create_service("orders", "peer")
    tokens = await front_end.log_in(HOME, "carol")
    assert await front_end.guess(ATTACKER, "carol") == TEN_FREE
    assert isinstance(await refusal(front_end.log_in(CAFE, "carol")), Throttled)

    renewed = (await api.tokens.Refresh(token_pb2.RefreshRequest(refresh_token=tokens.refresh_token))).tokens
    peer = bearer((await api.login_service("orders", service.client_secret)).access_token)
    request = token_pb2.IntrospectRequest(token=renewed.access_token)
    assert (await api.tokens.Introspect(request, metadata=peer)).active
    assert (await front_end.log_in(HOME, "carol")).session_id


async def test_one_origin_guesses_at_a_hundred_names_an_hour_and_others_log_in_meanwhile(front_end: FrontEnd) -> None:
    refusals = [(await front_end.guess(ATTACKER, f"name-{number}", 1))[0] for number in range(110)]
    assert refusals == [BadCredentials] * 100 + [Throttled] * 10
    assert (await front_end.log_in(HOME, "carol")).session_id


async def test_an_ipv6_network_of_64_bits_is_one_origin(front_end: FrontEnd) -> None:
    places = [f"2001:db8:1:2::{number:x}" for number in range(110)]
    refusals = [(await front_end.guess(place, f"name-{place[15:]}", 1))[0] for place in places]
    assert refusals.count(BadCredentials) == 100
    assert await front_end.guess("2001:db8:1:3::1", "name", 1) == [BadCredentials]


async def test_a_shared_origin_has_a_larger_allowance(make_settings: MakeSettings, tmp_path: Path) -> None:
    for networks, allowed in (("127.0.0.0/8",), 30), ((), 20):
        settings = make_settings(
            database=f"sqlite:///{tmp_path / str(allowed)}.db",
            shared_origins=networks,
            throttle_origin_failures=20,
            throttle_shared_origin_failures=30,
        )
        server = Server(settings, MovableClock())
        api = Api(server, await server.start())
        refusals = [await refusal(api.login(f"{allowed}-{number}", WRONG)) for number in range(40)]
        assert sum(isinstance(error, BadCredentials) for error in refusals) == allowed
        await api.channel.close()
        await server.stop()


async def test_a_log_in_that_found_no_place_in_the_hash_pool_is_refused_before_anything_is_written_or_counted(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> passwords.Place:
        raise Overloaded

    def counted(*_: object) -> None:
        raise AssertionError("a refusal for want of room reaches no store")

    with monkeypatch.context() as patch:
        patch.setattr(passwords.HashPool, "hold", full)
        patch.setattr(Throttle, "reserve", counted)
        assert [type(await refusal(api.login("carol"))) for _ in range(20)] == [Overloaded] * 20
    assert (await api.login("carol")).session_id


@pytest.mark.requirement("R52")
async def test_a_log_in_that_is_throttled_gives_its_place_in_the_hash_pool_back(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refuse(*_: object) -> Reservation:
        raise Throttled

    assert api.server.house is not None
    with monkeypatch.context() as patch:
        patch.setattr(Throttle, "reserve", refuse)
        assert isinstance(await refusal(api.login("carol")), Throttled)
    assert api.server.house.pool.held == 0


async def test_a_caller_who_hangs_up_has_used_their_attempt(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    started = asyncio.Queue[None]()

    async def endless(*_: object) -> bool:
        await started.put(None)
        await asyncio.Event().wait()
        raise AssertionError

    with monkeypatch.context() as patch:
        patch.setattr(passwords.PasswordHasher, "matches", endless)
        for _ in range(10):
            call = asyncio.ensure_future(api.login("carol", WRONG))
            await started.get()
            call.cancel()
    assert isinstance(await refusal(api.login("carol")), Throttled)


async def test_throttled_guesses_are_audited_together(front_end: FrontEnd, tmp_path: Path) -> None:
    await front_end.guess(ATTACKER, "carol", 60)
    with closing(sqlite3.connect(tmp_path / "identity.db")) as connection:
        query = (
            "SELECT outcome, account_id IS NULL FROM audit_events JOIN audit_personal USING (event_id) WHERE origin = ?"
        )
        rows = connection.execute(query, (ATTACKER,)).fetchall()
    assert sorted(rows) == [("PASSWORD_WRONG", 0), ("THROTTLED", 1)]


async def test_names_and_addresses_that_were_tried_are_not_kept_in_the_counters(
    front_end: FrontEnd, tmp_path: Path
) -> None:
    await front_end.guess(ATTACKER, "correct-horse-battery", 1)
    await front_end.log_in(HOME, "carol")
    with closing(sqlite3.connect(tmp_path / "identity.db")) as connection:
        keys = [
            key
            for table in ("throttle_buckets", "known_places")
            for (key,) in connection.execute(f"SELECT key FROM {table}")
        ]
    assert len(keys) == 4  # a name, its origin, and where carol and the admin logged in
    assert all(len(key) == 17 and text not in key for key in keys for text in (b"horse", b"carol", b"192.0"))

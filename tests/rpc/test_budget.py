"""Tokens that would not fit gRPC metadata are refused before anything is written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from identity_client.errors import TokenTooLarge
from tests.assertions import AssertionKey, claims_of
from tests.clients.issuer import FixedClock
from tests.contract.builders import dump
from tests.rpc.api import USER_PASSWORD, Api
from tests.rpc.refusals import audited, refusal
from tests.rpc.test_machines import ISSUER, by_assertion, by_secret
from tests.rpc.test_passwords import change

pytestmark = pytest.mark.requirement("R7")

WIDE = tuple(f"orders.department-{number}.{'x' * 40}" for number in range(40))


STATE = ("accounts", "grants", "used_assertions", "revocations", "feed_head")
"""What a token comes from. The attempt itself stands in the audit log, and is counted against guesses."""


async def nothing_is_written(tmp_path: Path, call: Any, before: dict[str, list[tuple[object, ...]]]) -> None:
    assert isinstance(await refusal(call), TokenTooLarge)
    after = dump(f"sqlite:///{tmp_path / 'identity.db'}")
    assert [after[table] for table in STATE] == [before[table] for table in STATE]


async def test_a_log_in_that_would_not_fit_opens_no_session(api: Api, tmp_path: Path) -> None:
    await api.create_role("wide", *WIDE)
    await api.create_user("carol", "wide")
    before = dump(f"sqlite:///{tmp_path / 'identity.db'}")
    await nothing_is_written(tmp_path, api.login("carol"), before)
    narrow = await api.login("carol", scopes=WIDE[:3])
    assert sorted(narrow.scopes) == sorted(WIDE[:3])


async def test_a_renewal_that_would_not_fit_leaves_the_refresh_token_good(api: Api, tmp_path: Path) -> None:
    await api.create_role("wide")
    await api.create_user("carol", "wide")
    first = await api.login("carol")
    second = await api.refresh(first.refresh_token)
    await api.set_scopes("wide", *WIDE)
    for text in (second.refresh_token, first.refresh_token):  # a rotation, and a repeat of the last one
        before = dump(f"sqlite:///{tmp_path / 'identity.db'}")
        await nothing_is_written(tmp_path, api.refresh(text), before)
    await api.set_scopes("wide", *WIDE[:3])
    assert (await api.refresh(second.refresh_token)).access_token


async def test_a_password_change_that_would_not_fit_changes_no_password(api: Api, tmp_path: Path) -> None:
    await api.create_role("wide", *WIDE)
    await api.create_user("carol", "wide")
    before = dump(f"sqlite:///{tmp_path / 'identity.db'}")
    await nothing_is_written(tmp_path, change(api), before)
    assert (await api.login("carol", USER_PASSWORD, scopes=WIDE[:1])).access_token


async def test_a_machine_whose_token_would_not_fit_spends_no_assertion(
    timed_api: Api, server_clock: FixedClock, tmp_path: Path
) -> None:
    key = AssertionKey()
    await timed_api.create_role("wide", *WIDE)
    secret = (await timed_api.create_service("orders", "wide")).client_secret
    await timed_api.create_public_key("orders", key.pem)
    text = key.sign(claims_of("orders", ISSUER, server_clock.wall))
    before = dump(f"sqlite:///{tmp_path / 'identity.db'}")
    await nothing_is_written(tmp_path, by_secret(timed_api, secret), before)
    before = dump(f"sqlite:///{tmp_path / 'identity.db'}")
    await nothing_is_written(tmp_path, by_assertion(timed_api, text), before)
    assert audited(tmp_path, "client_secret.use") == audited(tmp_path, "assertion.use") == ["TOKEN_TOO_LARGE"]
    assert await by_assertion(timed_api, text, scopes=WIDE[:1])


async def test_a_session_token_fits_whatever_it_grants(api: Api) -> None:
    await api.create_role("wide", *WIDE)
    await api.create_user("carol", "wide")
    opened = await api.open_session("carol", "internal")
    assert sorted(opened.scopes) == sorted(WIDE)
    answer = await api.introspect(opened.session_token, await api.peer())
    assert sorted(answer.scopes) == sorted(WIDE)
    assert len(opened.session_token) < 100

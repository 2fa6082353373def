"""A database that was set back, and the fence: nothing that was issued or revoked before is accepted after.

The database is copied while the service runs; then more is issued, more is revoked and a key is rotated, and the copy
is put in its place.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass
from pathlib import Path

import pytest

from identity import failpoints
from identity.config import Settings
from identity.feed import hub as hub_module
from identity.server import Server
from identity.v1 import revocation_pb2, trust_pb2
from identity.v1 import signing_key_pb2 as pb
from identity_client.errors import IdentityError, RefreshInvalid, SessionEnded, StoreSetBack
from tests.rpc.api import Api, MakeSettings, bearer, prepare
from tests.rpc.refusals import audited, refusal

pytestmark = pytest.mark.requirement("R26")


@asynccontextmanager
async def serving(settings: Settings) -> AsyncIterator[Api]:
    server = Server(settings)
    api = Api(server, await server.start())
    try:
        yield api
    finally:
        await api.channel.close()
        await server.stop()


@dataclass
class Issued:
    """What callers hold."""

    access: list[str]
    refresh: list[str]
    sessions: list[str]
    api_keys: list[str]
    peer_secret: str


def copy_database(source: Path, target: Path) -> None:
    """A consistent copy of a database in use."""
    with closing(sqlite3.connect(source)) as connection, closing(sqlite3.connect(target)) as copy:
        connection.backup(copy)


def restore(copy: Path, database: Path) -> None:
    """Put the copy in the place of the database, which nobody has open."""
    for end in ("-wal", "-shm"):
        database.with_name(database.name + end).unlink(missing_ok=True)
    shutil.copyfile(copy, database)


async def live_a_day(api: Api, database: Path, copy: Path) -> Issued:
    """Issue, copy the database, issue more, and take some of it back."""
    assert api.server.house is not None
    await prepare(api.server.house)
    await api.create_user("carol")
    await api.create_user("dave")
    service = await api.create_service("orders", "peer")
    before = [await api.login("carol"), await api.login("dave")]
    session = await api.open_session("carol", "orders")
    key = await api.create_api_key("orders", "orders")
    copy_database(database, copy)
    unknown = await api.login("carol")  # of the copy's key, and of a session that the copy does not know
    signing = (
        await api.signing_keys.PrepareSigningKey(pb.PrepareSigningKeyRequest(), metadata=await api.admin())
    ).signing_key
    activate = pb.ActivateSigningKeyRequest(key_id=signing.key_id, force=True)
    await api.signing_keys.ActivateSigningKey(activate, metadata=await api.admin())
    rotated = await api.refresh(before[0].refresh_token)
    after = [unknown, rotated, await api.login("carol"), await api.login("dave")]
    sessions = [session, await api.open_session("carol", "orders")]
    keys = [key, await api.create_api_key("orders", "orders")]
    admin = await api.admin()
    for raw_token in (before[1].refresh_token, *(each.session_token for each in sessions)):
        request = revocation_pb2.RevokeTokenRequest(token=raw_token)
        await api.revocations.RevokeToken(request, metadata=admin)
    for each in keys:
        await api.revoke_credential(each.credential.credential_id)
    return Issued(
        access=[tokens.access_token for tokens in (*before, *after)],
        refresh=[tokens.refresh_token for tokens in (*before, *after)],
        sessions=[each.session_token for each in sessions],
        api_keys=[each.api_key for each in keys],
        peer_secret=service.client_secret,
    )


def run_fence(settings: Settings, *options: str, **environment: str) -> subprocess.CompletedProcess[str]:
    variables = {
        "IDENTITY_DATABASE": settings.database,
        "IDENTITY_MASTER_KEY_FILE": settings.master_key_file,
        "IDENTITY_ISSUER": settings.issuer,
    }
    command = [sys.executable, "-m", "identity.cli", "fence", *options]
    return subprocess.run(
        command,
        env=os.environ | variables | environment,
        capture_output=True,
        text=True,
        check=False,
        stdin=subprocess.DEVNULL,
        timeout=60,
    )


async def accepted(api: Api, tokens: list[str], peer_secret: str) -> list[str]:
    """Those of *tokens* that introspection calls active."""
    peer = bearer((await api.login_service("orders", peer_secret)).access_token)
    return [token for token in tokens if (await api.introspect(token, peer)).active]


@pytest.fixture
async def day(make_settings: MakeSettings, tmp_path: Path) -> tuple[Settings, Issued]:
    """Settings, whose database is the restored copy, and what was issued before."""
    settings, database, copy = make_settings(), tmp_path / "identity.db", tmp_path / "copy.db"
    async with serving(settings) as api:
        issued = await live_a_day(api, database, copy)
    restore(copy, database)
    return settings, issued


async def test_without_a_fence_a_restored_copy_revives_what_was_revoked(day: tuple[Settings, Issued]) -> None:
    settings, issued = day
    async with serving(settings) as api:
        assert await accepted(api, issued.access[:2] + issued.sessions[:1], issued.peer_secret) != []


async def test_after_a_fence_nothing_is_accepted_that_was_issued_or_revoked_before(
    day: tuple[Settings, Issued],
) -> None:
    settings, issued = day
    done = run_fence(settings, "--yes", "--credentials")
    assert done.returncode == 0, done.stderr
    async with serving(settings) as api:
        assert api.server.house is not None
        for raw_token in issued.access:
            with pytest.raises(IdentityError):
                api.server.house.verifier.verify_any_audience(raw_token)
        for raw_token in issued.refresh:
            error = await refusal(api.refresh(raw_token))
            assert isinstance(error, SessionEnded | RefreshInvalid)
        await api.create_service("warehouse", "peer")
        peer = await api.peer("warehouse-2")
        for raw_token in (*issued.access, *issued.sessions, *issued.api_keys):
            assert not (await api.introspect(raw_token, peer)).active
        error = await refusal(api.login_service("orders", issued.peer_secret))
        assert error.reason == "BAD_CREDENTIALS"
        assert (await api.login("carol")).access_token  # passwords are as they were


async def test_a_fence_without_credentials_ends_sessions_and_tokens_and_says_what_stays(
    day: tuple[Settings, Issued],
) -> None:
    settings, issued = day
    done = run_fence(settings, "--yes")
    assert "live again" in done.stdout
    async with serving(settings) as api:
        assert await accepted(api, issued.access + issued.sessions, issued.peer_secret) == []
        assert await accepted(api, issued.api_keys, issued.peer_secret) == issued.api_keys[:1]


async def test_a_fence_has_to_be_confirmed(day: tuple[Settings, Issued]) -> None:
    settings, _ = day
    before = Path(settings.database.removeprefix("sqlite:///")).read_bytes()
    done = run_fence(settings)
    assert (done.returncode, "--yes" in done.stderr) == (1, True)
    assert Path(settings.database.removeprefix("sqlite:///")).read_bytes() == before


async def test_a_fence_that_is_killed_before_its_commit_has_changed_nothing(
    make_settings: MakeSettings, tmp_path: Path
) -> None:
    settings = make_settings()
    async with serving(settings) as api:
        issued = await live_a_day(api, tmp_path / "identity.db", tmp_path / "copy.db")
    done = run_fence(settings, "--yes", **{failpoints.VARIABLE: "fence.before_commit=kill"})
    assert done.returncode == -signal.SIGKILL
    async with serving(settings) as api:
        live = issued.access[2:]
        assert await accepted(api, live, issued.peer_secret) == live
    assert audited(tmp_path, "service.fence") == []


async def test_a_running_service_and_its_streams_follow_a_fence_within_a_second(
    make_settings: MakeSettings, tmp_path: Path
) -> None:
    settings = make_settings()
    async with serving(settings) as api:
        issued = await live_a_day(api, tmp_path / "identity.db", tmp_path / "copy.db")
        house = api.server.house
        assert house is not None
        epoch, live = house.hub.state.epoch, issued.access[4]
        house.verifier.verify_any_audience(live)
        peer = bearer((await api.login_service("orders", issued.peer_secret)).access_token)
        stream = api.trust.WatchTrust(trust_pb2.WatchTrustRequest(), metadata=peer)
        await stream.read()
        done = await asyncio.to_thread(run_fence, settings, "--yes")
        assert done.returncode == 0, done.stderr
        async with asyncio.timeout(5):
            while house.hub.state.epoch == epoch:
                await asyncio.sleep(0.05)
        with pytest.raises(IdentityError):
            house.verifier.verify_any_audience(live)
        error = await refusal(_read_on(stream))
        assert error.reason in ("DEPENDENCY_DOWN", "UNKNOWN_KEY")
        again = bearer((await api.login_service("orders", issued.peer_secret)).access_token)
        request = trust_pb2.WatchTrustRequest(epoch=epoch, version=house.hub.state.version)
        kinds = []
        async for message in api.trust.WatchTrust(request, metadata=again):
            kinds.append(message.WhichOneof("event"))
            if kinds[-1] == "heartbeat":
                break
        assert "snapshot_start" in kinds


async def _read_on(stream: object) -> None:
    while True:
        await stream.read()  # type: ignore[attr-defined]


async def test_a_refresh_count_from_the_future_begins_a_new_epoch_once_a_minute(
    day: tuple[Settings, Issued], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings, issued = day
    async with serving(settings) as api:
        assert api.server.house is not None
        epoch = api.server.house.hub.state.epoch
        for _ in range(3):
            assert isinstance(await refusal(api.refresh(issued.refresh[3])), StoreSetBack)
        async with asyncio.timeout(5):
            while api.server.house.hub.state.epoch == epoch:
                await asyncio.sleep(0.05)
    assert audited(tmp_path, "feed.renew_epoch") == ["ok"]
    assert "identity fence" in caplog.text


async def test_a_resume_point_from_the_future_begins_a_new_epoch(
    day: tuple[Settings, Issued], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub_module, "PUBLISH_WAIT_SECONDS", 0.3)
    settings, _ = day
    async with serving(settings) as api:
        assert api.server.house is not None
        state = api.server.house.hub.state
        epoch, peer = state.epoch, await api.peer("warehouse")
        request = trust_pb2.WatchTrustRequest(epoch=epoch, version=state.version + 100)
        stream = api.trust.WatchTrust(request, metadata=peer)
        async with asyncio.timeout(5):
            while state.epoch == epoch:
                await asyncio.sleep(0.05)
        stream.cancel()
    assert audited(tmp_path, "feed.renew_epoch") == ["ok"]

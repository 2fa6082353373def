"""The master key is rotated: nothing that callers hold or the service remembers is lost, wherever a step is killed."""

from __future__ import annotations

import asyncio
import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from identity import failpoints
from identity.config import ConfigurationError, Settings
from identity.domain.audit_seals import SealKey
from identity.domain.values import KeyState
from identity.house import LOCAL_ACT, House
from identity.lasting import Label, find_secret
from identity.server import Server
from identity.storage import inspection, key_file
from identity.storage.sealing import MasterKey
from identity.storage.sql.audit_check import check_audit
from identity.storage.sql.sealed import all_secrets, count_sealed
from identity_client.errors import Throttled
from tests.clients.issuer import FixedClock
from tests.databases import KINDS, query
from tests.rpc.api import Api, MakeSettings, bearer, prepare
from tests.rpc.refusals import refusal

pytestmark = pytest.mark.requirement("R26")

NOW = FixedClock(time.time())
"""Of every server: the time stands still, and whoever is throttled stays so."""

STEPS = ("add", "reseal", "forget")
THROTTLED = {"throttle_name_failures": 3, "throttle_delay_seconds": 3_600}
KILLED_AT = (
    ("add", "key_file.before_replace"),
    ("add", "key_file.after_replace"),
    ("reseal", "reseal.before_commit"),
    ("reseal", "reseal.after_commit"),
    ("forget", "key_file.before_replace"),
    ("forget", "key_file.after_replace"),
)


def run(settings: Settings, step: str, **environment: str) -> subprocess.CompletedProcess[str]:
    variables = {
        "IDENTITY_DATABASE": settings.database,
        "IDENTITY_MASTER_KEY_FILE": settings.master_key_file,
        "IDENTITY_ISSUER": settings.issuer,
    }
    return subprocess.run(
        [sys.executable, "-m", "identity.cli", "master-key", step],
        env=os.environ | variables | environment,
        capture_output=True,
        text=True,
        check=False,
        stdin=subprocess.DEVNULL,
        timeout=60,
    )


@asynccontextmanager
async def serving(settings: Settings) -> AsyncIterator[Api]:
    server = Server(settings, NOW)
    api = Api(server, await server.start())
    try:
        yield api
    finally:
        await api.channel.close()
        await server.stop()


async def rotate(settings: Settings) -> None:
    for step in STEPS:
        done = await asyncio.to_thread(run, settings, step)
        assert done.returncode == 0, done.stderr


@dataclass
class Held:
    """What callers hold, and the key that signs. The name `dave` is throttled."""

    access: str
    refresh: str
    session: str
    peer_secret: str
    active_key_id: str


async def guess(api: Api) -> str:
    """The reason why a wrong password is refused."""
    return (await refusal(api.login("dave", "a wrong password"))).reason


def house_of(api: Api) -> House:
    assert api.server.house is not None
    return api.server.house


async def active_key_id(api: Api) -> str:
    keys = await house_of(api).signing_keys.list_all()
    return next(key.key_id for key in keys if key.state is KeyState.ACTIVE)


async def live(api: Api) -> Held:
    await prepare(house_of(api))
    for name in ("carol", "dave"):
        await api.create_user(name)
    peer_secret = (await api.create_service("orders", "peer")).client_secret
    tokens, session = await api.login("carol"), await api.open_session("carol", "orders")
    assert [await guess(api) for _ in range(4)][-1] == Throttled.reason
    await house_of(api).sealer.seal()
    return Held(tokens.access_token, tokens.refresh_token, session.session_token, peer_secret, await active_key_id(api))


async def check(api: Api, held: Held) -> None:
    """Everything goes on. *held* gets the refresh token that comes next."""
    house_of(api).verifier.verify_any_audience(held.access)
    assert await active_key_id(api) == held.active_key_id
    peer = bearer((await api.login_service("orders", held.peer_secret)).access_token)
    assert (await api.introspect(held.session, peer)).active
    held.refresh = (await api.refresh(held.refresh)).refresh_token
    assert await guess(api) == Throttled.reason
    house_of(api).verifier.verify_any_audience((await api.login("carol")).access_token)


async def check_seals(settings: Settings) -> None:
    master = MasterKey.from_file(Path(settings.master_key_file))
    report = await inspection.look(
        settings.database,
        lambda connection: check_audit(
            connection, SealKey(find_secret(all_secrets(connection), master, Label.AUDIT_SEAL))
        ),
    )
    assert report.problems == []
    assert report.newest is not None
    assert report.unsealed_count == 0  # a service that stopped has sealed all, with the key of before


async def numbers(settings: Settings) -> tuple[list[int], set[int]]:
    """Of the keys in the file, and of those that seal."""
    sealed = await inspection.look(settings.database, count_sealed)
    return sorted(key_file.read_keys(Path(settings.master_key_file))), set(sealed)


@pytest.mark.parametrize("service_database", KINDS, indirect=True)
async def test_sessions_seals_counters_and_keys_go_on_while_the_key_is_rotated_and_after_a_restart(
    make_settings: MakeSettings,
) -> None:
    settings = make_settings(**THROTTLED)
    async with serving(settings) as api:
        held = await live(api)
        for step in STEPS:
            done = await asyncio.to_thread(run, settings, step)
            assert done.returncode == 0, done.stderr
            await check(api, held)
        prepared = await house_of(api).signing_keys.prepare(LOCAL_ACT)  # by a service that began with the old key
    assert await numbers(settings) == ([2], {2})
    async with serving(settings) as api:
        await check(api, held)
        await house_of(api).signing_keys.activate(prepared.key_id, LOCAL_ACT, force=True)
        held.active_key_id = prepared.key_id
        await rotate(settings)
        await check(api, held)
    assert await numbers(settings) == ([3], {3})
    await check_seals(settings)
    audited = query(settings.database, "SELECT subject FROM audit_events WHERE action = 'master_key.reseal'")
    assert audited == [("1 -> 2",), ("2 -> 3",)]


@pytest.mark.parametrize(("step", "point"), KILLED_AT)
async def test_a_step_that_is_killed_leaves_a_service_that_starts_and_can_be_repeated(
    make_settings: MakeSettings, step: str, point: str
) -> None:
    settings = make_settings(**THROTTLED)
    async with serving(settings) as api:
        held = await live(api)
    path = Path(settings.master_key_file)
    first = key_file.read_keys(path)[1]
    for each in STEPS[: STEPS.index(step)]:
        assert run(settings, each).returncode == 0
    killed = run(settings, step, **{failpoints.VARIABLE: f"{point}=kill"})
    assert killed.returncode == -signal.SIGKILL
    async with serving(settings) as api:
        await check(api, held)
    for each in STEPS[STEPS.index(step) :]:
        done = run(settings, each)
        assert done.returncode == 0, done.stderr
    assert await numbers(settings) == ([2], {2})
    assert first not in key_file.read_keys(path).values()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert not path.with_name("master.key.new").exists()
    async with serving(settings) as api:
        await check(api, held)
    await check_seals(settings)


async def test_no_step_can_be_taken_before_its_time(make_settings: MakeSettings) -> None:
    settings = make_settings(**THROTTLED)
    async with serving(settings) as api:
        await live(api)
    path = Path(settings.master_key_file)
    assert "0 values" in run(settings, "reseal").stdout
    assert "holds key 1 alone" in run(settings, "forget").stdout
    assert run(settings, "add").returncode == 0
    both = path.read_bytes()
    assert "not everything is sealed under it yet" in run(settings, "add").stdout
    too_early = run(settings, "forget")
    assert (too_early.returncode, path.read_bytes()) == (1, both)
    assert "values are still sealed under key 1: run `identity master-key reseal`" in too_early.stderr


async def test_a_file_of_another_database_is_left_alone(make_settings: MakeSettings) -> None:
    settings = make_settings(**THROTTLED)
    async with serving(settings):
        pass
    path = Path(settings.master_key_file)
    path.unlink()
    MasterKey.generate(path)
    before = path.read_bytes()
    for step in STEPS:
        done = run(settings, step)
        assert (done.returncode, path.read_bytes()) == (1, before)
        assert "this is not the key" in done.stderr
        assert "Traceback" not in done.stderr


@pytest.mark.parametrize("service_database", KINDS, indirect=True)
async def test_a_replica_without_the_new_key_goes_on_and_does_not_start(
    make_settings: MakeSettings, tmp_path: Path
) -> None:
    settings = make_settings(**THROTTLED)
    own = tmp_path / "other machine"
    own.mkdir()
    elsewhere = own / "master.key"
    elsewhere.write_bytes(Path(settings.master_key_file).read_bytes())
    elsewhere.chmod(0o600)
    replica = replace(settings, master_key_file=str(elsewhere))
    async with AsyncExitStack() as stack:
        api = await stack.enter_async_context(serving(settings))
        held = await live(api)
        other = await stack.enter_async_context(serving(replica))
        await rotate(settings)
        await check(other, held)
        await check(api, held)
    server = Server(replica)
    with pytest.raises(ConfigurationError, match="sealed under key 2, and the file holds 1"):
        await server.start()
    await server.stop()
    elsewhere.write_bytes(Path(settings.master_key_file).read_bytes())
    async with serving(replica) as api:
        await check(api, held)

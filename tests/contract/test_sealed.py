"""What is sealed under the master key: replicas that start at once agree on it, and it moves as a whole."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest

from identity import lasting
from identity.config import ConfigurationError
from identity.domain.audit_events import AuditFilter
from identity.domain.values import KeyState, Seconds
from identity.lasting import Label, open_secrets
from identity.signing import generate_key, open_key
from identity.storage import key_file
from identity.storage.database import Stores, open_stores
from identity.storage.sealing import MasterKey, SealBroken
from tests.clients.issuer import FixedClock
from tests.contract.builders import ACT
from tests.databases import execute, is_postgres

pytestmark = pytest.mark.requirement("R26")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    MasterKey.generate(tmp_path / "master.key")
    return tmp_path / "master.key"


@pytest.fixture
def master(path: Path) -> MasterKey:
    return MasterKey.from_file(path)


def add_number(path: Path, number: int) -> MasterKey:
    key_file.replace_keys(path, {**key_file.read_keys(path), number: bytes([number]) * 32})
    return MasterKey.from_file(path)


async def reseal(stores: Stores, master: MasterKey) -> int:
    def anew(sealed: bytes, context: str) -> bytes:
        return master.seal(master.open(sealed, context), context)

    return await stores.sealed.reseal(master.newest, anew, ACT)


async def add_two_keys(stores: Stores, master: MasterKey) -> None:
    await stores.signing_keys.add_active(generate_key(master, Seconds(1)), ACT)
    await stores.signing_keys.prepare(replace(generate_key(master, Seconds(2)), state=KeyState.PREPARED), ACT)


async def resealed(stores: Stores) -> list[str]:
    page = await stores.audit.list_page(AuditFilter(action_prefix="master_key."), None, 10)
    return [event.subject for event in page.events]


async def test_the_first_start_keeps_what_was_derived_before(stores: Stores, master: MasterKey) -> None:
    assert await open_secrets(master, stores.sealed) == {label: master.derive(label) for label in Label}
    held = await stores.sealed.secrets()
    assert held.keys() == set(Label)
    assert not any(master.derive(label) in held[label] for label in Label)


async def test_replicas_that_start_at_once_have_the_same_secrets(
    stores: Stores, url: str, clock: FixedClock, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each would make its own: nothing but the database makes them agree."""
    others = [await open_stores(url, clock) for _ in range(3)]
    masters = [MasterKey(path, {1: bytes([number]) * 32}) for number in range(4)]
    for master in masters:
        monkeypatch.setattr(master, "seal", lambda plaintext, context: plaintext)
        monkeypatch.setattr(master, "open", lambda sealed, context: sealed)
    opened = [open_secrets(master, each.sealed) for master, each in zip(masters, [stores, *others], strict=True)]
    first, *rest = await asyncio.gather(*opened)
    assert all(each == first for each in rest)
    for other in others:
        await other.close()


async def test_a_secret_that_a_later_version_brings_is_the_same_for_replicas_that_start_while_everything_is_sealed_anew(
    stores: Stores, url: str, clock: FixedClock, master: MasterKey, path: Path
) -> None:
    before = await open_secrets(master, stores.sealed)
    others = [await open_stores(url, clock) for _ in range(3)]
    for number in range(2, 10):
        assert execute(url, "DELETE FROM sealed_secrets WHERE label = 'request-ids'") == 1  # as if it were new
        newer = add_number(path, number)
        alike = [MasterKey(path, {0: bytes([each]) * 32, number: bytes([number]) * 32}) for each in range(3)]
        starts = (open_secrets(each, other.sealed) for each, other in zip(alike, others, strict=True))
        _, *opened = await asyncio.gather(reseal(stores, newer), *starts)
        held = await open_secrets(newer, stores.sealed)
        assert opened == [held] * 3
        assert {**held, Label.REQUEST_IDS: b""} == {**before, Label.REQUEST_IDS: b""}
        assert await stores.sealed.count() == {number: len(Label)}
    for other in others:
        await other.close()


async def test_everything_moves_to_the_newest_key_at_once_and_stays_what_it_was(
    stores: Stores, master: MasterKey, path: Path
) -> None:
    await add_two_keys(stores, master)
    before = await open_secrets(master, stores.sealed)
    keys = {key.key_id: open_key(key, master) for key in await stores.signing_keys.list_keys()}
    newer = add_number(path, 2)
    assert await stores.sealed.count() == {1: 7}
    assert await reseal(stores, newer) == 7
    assert await stores.sealed.count() == {2: 7}
    assert await reseal(stores, newer) == 0
    key_file.replace_keys(path, {2: key_file.read_keys(path)[2]})
    alone = MasterKey.from_file(path)
    assert await open_secrets(alone, stores.sealed) == before
    for key in await stores.signing_keys.list_keys():
        private = open_key(key, alone)._private_key.private_numbers()
        assert private == keys[key.key_id]._private_key.private_numbers()
    assert await resealed(stores) == ["1 -> 2"]


async def test_a_key_without_a_private_half_is_left_alone(stores: Stores, master: MasterKey, path: Path) -> None:
    await add_two_keys(stores, master)
    active = next(key for key in await stores.signing_keys.list_keys() if key.state is KeyState.ACTIVE)
    await stores.signing_keys.revoke(active.key_id, generate_key(master, Seconds(3)), "", ACT)
    assert await stores.sealed.count() == {1: 1}
    assert await reseal(stores, add_number(path, 2)) == 1


@pytest.mark.parametrize(
    "tampering",
    [
        "UPDATE sealed_secrets SET sealed_secret = "
        "(SELECT sealed_secret FROM sealed_secrets WHERE label = 'throttle') WHERE label = 'refresh'",
        "UPDATE sealed_secrets SET sealed_secret = "
        "(SELECT sealed_private_key FROM signing_keys WHERE state = 'active') WHERE label = 'refresh'",
        "UPDATE sealed_secrets SET sealed_secret = {spoilt} WHERE label = 'refresh'",
        "UPDATE sealed_secrets SET label = 'other' WHERE label = 'refresh'",
        "UPDATE signing_keys SET sealed_private_key = "
        "(SELECT sealed_private_key FROM signing_keys WHERE state = 'prepared') WHERE state = 'active'",
    ],
)
async def test_what_was_changed_or_moved_is_not_sealed_anew_nor_is_anything_else(
    stores: Stores, url: str, master: MasterKey, path: Path, tampering: str
) -> None:
    await add_two_keys(stores, master)
    await open_secrets(master, stores.sealed)
    spoilt = r"'\x010001'" if is_postgres(url) else "x'010001'"
    assert execute(url, tampering.format(spoilt=spoilt)) == 1
    newer = add_number(path, 2)
    before = await stores.sealed.secrets()
    with pytest.raises(SealBroken):
        await reseal(stores, newer)
    assert await stores.sealed.secrets() == before
    assert await stores.sealed.count() == {1: 7}
    assert await resealed(stores) == []
    if "UPDATE sealed_secrets SET sealed" in tampering:
        with pytest.raises(ConfigurationError, match="the secret refresh"):
            await open_secrets(newer, stores.sealed)


async def test_a_file_without_the_number_is_told_from_another_file(
    stores: Stores, master: MasterKey, path: Path, tmp_path: Path
) -> None:
    await open_secrets(master, stores.sealed)
    old = key_file.read_keys(path)
    await reseal(stores, add_number(path, 2))
    key_file.replace_keys(path, old)
    with pytest.raises(ConfigurationError, match=r"sealed under key 2, and the file holds 1\. Copy the file"):
        await open_secrets(MasterKey.from_file(path), stores.sealed)
    key_file.replace_keys(path, {2: bytes([7]) * 32})
    with pytest.raises(ConfigurationError, match="this is not the key"):
        await open_secrets(MasterKey.from_file(path), stores.sealed)


async def test_keys_that_are_moved_on_while_everything_is_sealed_anew_are_lost_neither_way(
    stores: Stores, url: str, clock: FixedClock, master: MasterKey, path: Path
) -> None:
    other = await open_stores(url, clock)
    await add_two_keys(stores, master)
    await open_secrets(master, stores.sealed)
    for number in range(2, 12):
        newer = add_number(path, number)
        prepared = next(key for key in await stores.signing_keys.list_keys() if key.state is KeyState.PREPARED)
        active = next(key for key in await stores.signing_keys.list_keys() if key.state is KeyState.ACTIVE)
        await asyncio.gather(
            reseal(stores, newer),
            other.signing_keys.activate(prepared.key_id, ACT, force=True),
            other.signing_keys.revoke(active.key_id, generate_key(newer, Seconds(number)), "", ACT),
        )
        await stores.signing_keys.prepare(replace(generate_key(newer, Seconds(number)), state=KeyState.PREPARED), ACT)
        assert (await stores.sealed.count()).keys() == {number}
        for key in await stores.signing_keys.list_keys():
            if key.sealed_private_key:
                open_key(key, newer)
    await other.close()


def test_the_labels_are_those_that_sessions_and_seals_of_before_were_derived_by() -> None:
    assert set(lasting.Label) == {"refresh", "audit-names", "audit-seal", "throttle", "request-ids"}

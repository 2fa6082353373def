"""`identity master-key`: a new key seals what the database holds, in three steps, each of which can be repeated.

`add` puts a new key into the file, `reseal` seals everything under it, `forget` removes the keys that seal nothing any
more. Between any two of them, and wherever one is killed, the service starts, and a running one goes on.
"""

from __future__ import annotations

import secrets
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from identity_client.clock import SystemClock

from . import failpoints
from .config import ConfigurationError, Settings
from .domain.values import Act
from .lasting import not_opened, open_secrets
from .storage import key_file
from .storage.database import open_stores
from .storage.sealing import MasterKey, SealBroken
from .storage.sql.sealed import SqlSealedStore


@dataclass(frozen=True, slots=True)
class _Place:
    """The file, its keys, and what the database holds under them."""

    path: Path
    master: MasterKey
    store: SqlSealedStore
    sealed: Counter[int]
    act: Act

    @property
    def old(self) -> list[int]:
        """The numbers under which values lie that should be sealed anew."""
        return sorted(self.sealed.keys() - {self.master.newest})


async def add(settings: Settings, act: Act) -> str:
    """Put a new key into the file, unless the newest is still to be used; -> what was done, in a sentence.

    Raises ConfigurationError, DependencyDown; so do the other steps.
    """
    async with _opened(settings, act) as place:
        newest = place.master.newest
        if place.old:
            return f"key {newest} is in {place.path}, and not everything is sealed under it yet: {_NEXT_RESEAL}"
        if newest == key_file.HIGHEST_NUMBER:
            raise ConfigurationError([f"master_key_file: there is no number beyond {newest}"])
        keys = key_file.read_keys(place.path)
        key_file.replace_keys(place.path, {**keys, newest + 1: secrets.token_bytes(key_file.KEY_BYTES)})
        return f"key {newest + 1} is added to {place.path}: {_NEXT_RESEAL}"


async def reseal(settings: Settings, act: Act) -> str:
    """Seal every value under the newest key, in one transaction."""
    async with _opened(settings, act) as place:
        try:
            count = await place.store.reseal(place.master.newest, _resealer(place.master), place.act)
        except SealBroken as error:
            raise not_opened("a sealed value", error) from None
        failpoints.hit("reseal.after_commit")
        return f"{count} values were sealed anew; all are sealed under key {place.master.newest}: {_NEXT_FORGET}"


async def forget(settings: Settings, act: Act) -> str:
    """Remove the keys from the file under which nothing is sealed."""
    async with _opened(settings, act) as place:
        if place.old:
            numbers = ", ".join(map(str, place.old))
            raise ConfigurationError([f"values are still sealed under key {numbers}: run `identity master-key reseal`"])
        newest, *forgotten = reversed(place.master.numbers)
        if not forgotten:
            return f"{place.path} holds key {newest} alone, under which everything is sealed"
        key_file.replace_keys(place.path, {newest: key_file.read_keys(place.path)[newest]})
        return f"forgotten: key {', '.join(map(str, reversed(forgotten)))}; {place.path} holds key {newest} alone"


@asynccontextmanager
async def _opened(settings: Settings, act: Act) -> AsyncIterator[_Place]:
    path = Path(settings.master_key_file)
    with key_file.held(path):
        master = MasterKey.from_file(path)
        stores = await open_stores(settings.database, SystemClock(), connections=2)
        try:
            await open_secrets(master, stores.sealed)  # so a file of another database is not changed
            yield _Place(path, master, stores.sealed, await stores.sealed.count(), act)
        finally:
            await stores.close()


def _resealer(master: MasterKey) -> Callable[[bytes, str], bytes]:
    return lambda sealed, context: master.seal(master.open(sealed, context), context)


_NEXT_RESEAL = "bring the file to every replica, then run `identity master-key reseal`"
_NEXT_FORGET = "run `identity master-key forget` next"

"""A server that mirrors into Redis, as a process of its own, with as many live revocations as it is told.

`python -m tests.faults.mirrored_server DIRECTORY REDIS-URL REVOCATIONS` prints its address, then the newest version in
its database for each line on its standard input, and stops where that ends.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from sqlalchemy import Connection, insert, update

from identity.config import Settings
from identity.house import House, open_house
from identity.server import Server
from identity.storage.sealing import MasterKey
from identity.storage.sql.common import Moment
from identity.storage.tables import feed_head, revocations
from identity_client.clock import SystemClock
from identity_client.trust.entries import EntryKind
from tests.attacks.counting_server import settings
from tests.clients.issuer import new_id
from tests.faults.harness.dialogue import Dialogue
from tests.rpc.api import prepare

_LIFETIME_SECONDS = 7_200


class MirroredServer(Dialogue):
    """That process. *folder* is empty."""

    def __init__(self, folder: Path, redis_url: str, revocations: int) -> None:
        MasterKey.generate(folder / "master.key")
        super().__init__("tests.faults.mirrored_server", str(folder), redis_url, str(revocations))

    def version(self) -> int:
        """The newest in the database."""
        return int(self.ask())


async def _serve(directory: Path, redis_url: str, count: int) -> None:
    made = settings(directory, redis_url)
    await _fill(made, count)
    server = Server(made)
    print(await server.start(), flush=True)
    assert server.house is not None
    while await asyncio.to_thread(sys.stdin.readline):
        _, version = await server.house.stores.revocations.head()
        print(version, flush=True)
    await server.stop()


async def _fill(made: Settings, count: int) -> None:
    """*count* revoked tokens, at once rather than one by one."""

    def work(connection: Connection, moment: Moment) -> None:
        terms = {"kind": int(EntryKind.TOKEN), "minimum": 0, "expire_time": moment.now + _LIFETIME_SECONDS}
        rows = [{"version": version, "name": new_id(), **terms} for version in range(1, count + 1)]
        connection.execute(insert(revocations), rows)
        connection.execute(update(feed_head).values(version=count))

    house: House = await open_house(made, SystemClock())
    try:
        await house.stores.revocations._access.write(work)
        await prepare(house)
    finally:
        await house.close()


if __name__ == "__main__":
    asyncio.run(_serve(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])))

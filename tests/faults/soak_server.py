"""A server as a process of its own that says, when asked, what it holds.

`python -m tests.faults.soak_server DIRECTORY DATABASE` prints its address. For each line on its standard input, a
number of seconds, it moves its clock by so much, waits until all that has expired by then is forgotten, and prints its
figures as JSON. The memories that fill up in use (of verified tokens, of changes that resume a stream) are small here,
so that they are full soon and only a leak grows; and what has expired is swept in one heartbeat, not in 64.
"""

from __future__ import annotations

import asyncio
import gc
import json
import sys
from dataclasses import replace
from pathlib import Path

from identity.feed import log
from identity.house import House
from identity.server import Server
from identity_client.tokens.verifier import Verifier
from identity_client.trust import packed
from tests.attacks.counting_server import settings
from tests.clients.issuer import FixedClock
from tests.rpc.api import prepare

_REMEMBERED = 50


async def _serve(directory: Path, database: str) -> None:
    clock = FixedClock()
    # Few connections, so that all of them are open after the warm-up.
    server = Server(replace(settings(directory), database=database, database_connections=4), clock)
    address = await server.start()
    assert server.house is not None
    await prepare(server.house)
    print(address, flush=True)
    while line := await asyncio.to_thread(sys.stdin.readline):
        clock.advance(float(line))
        while server.house.hub.data_age > 1 or server.house.hub.state.entry_count():
            await asyncio.sleep(0.05)
        print(json.dumps(_figures(server.house)), flush=True)
    await server.stop()


def _figures(house: House) -> dict[str, int]:
    gc.collect()
    status = Path("/proc/self/status").read_text().splitlines()
    return {
        "memory_kib": next(int(line.split()[1]) for line in status if line.startswith("VmRSS:")),
        "blocks": sys.getallocatedblocks(),
        "tasks": len(asyncio.all_tasks()),
        "descriptors": len(list(Path("/proc/self/fd").iterdir())),
        "streams": len(house.hub.streams),
    }


def _forget_soon() -> None:
    log.RESUME_ENTRIES = _REMEMBERED
    packed._SWEPT_BUCKETS = packed._BUCKETS
    defaults = Verifier.__init__.__kwdefaults__
    assert defaults is not None and defaults["cache_size"] > _REMEMBERED
    defaults["cache_size"] = _REMEMBERED


if __name__ == "__main__":
    _forget_soon()
    asyncio.run(_serve(Path(sys.argv[1]), sys.argv[2]))

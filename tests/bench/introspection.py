"""Introspect at the real service: a session token, which SQL is asked about, against an access token, which is not; and
a hundred access tokens in one call."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from identity.config import Settings
from identity.server import Server
from identity.storage.sealing import MasterKey
from identity.v1 import token_pb2 as pb
from tests.bench.harness import Figure
from tests.bench.load import Load, ended, in_turns, serving
from tests.rpc.api import Api, bearer, prepare

BATCH = 100
_SERVICE = "/identity.v1.TokenService"


def run(quick: bool) -> Iterable[Figure]:
    calls, rounds = (200, 2) if quick else (2_000, 7)
    with tempfile.TemporaryDirectory() as folder, serving(serve, folder) as ((address, own, session, tokens), pid):
        loads = [
            Load(
                address, pid, f"{_SERVICE}/{method}", [request.SerializeToString() for request in requests], bearer(own)
            )
            for method, requests in (
                ("Introspect", [pb.IntrospectRequest(token=token) for token in tokens]),
                ("Introspect", [pb.IntrospectRequest(token=session)]),
                ("BatchIntrospect", [pb.BatchIntrospectRequest(tokens=tokens)]),
            )
        ]
        signed, opaque = in_turns(loads[:2], calls, rounds)
        [batched] = in_turns(loads[2:], calls // 10, rounds)
    yield Figure("Introspect, warm access token", "per s", [one.rate for one in signed], more_is_better=True)
    yield Figure("Introspect, warm access token: CPU of the server", "us", [one.cpu_seconds * 1e6 for one in signed])
    times = [theirs.cpu_seconds / mine.cpu_seconds for mine, theirs in zip(signed, opaque, strict=True)]
    yield Figure("Introspect, session token over access token: CPU", "x", times)
    yield Figure("Introspect, session token", "per s", [one.rate for one in opaque], more_is_better=True)
    rates = [one.rate * BATCH for one in batched]
    yield Figure(f"BatchIntrospect, {BATCH} warm a call: tokens", "per s", rates, more_is_better=True)


def serve(folder: str, pipe: Any) -> None:
    """A server until told to end; says its address, a peer's access token, a session token, and BATCH access tokens."""

    async def serving() -> None:
        MasterKey.generate(Path(folder) / "master.key")
        server = Server(
            Settings(
                listen="127.0.0.1:0",
                http_listen="",
                database=f"sqlite:///{folder}/identity.db",
                master_key_file=f"{folder}/master.key",
                hash_memory_kib=64,
                hash_iterations=1,
            )
        )
        api = Api(server, await server.start())
        pipe.send((api.address, *await _texts(api)))
        await asyncio.to_thread(ended, pipe)
        await api.channel.close()
        await server.stop()

    asyncio.run(serving())


async def _texts(api: Api) -> tuple[str, str, list[str]]:
    assert api.server.house is not None
    await prepare(api.server.house)
    peer = await api.create_service("orders", "peer")
    await api.create_user("alice")
    own = (await api.login_service("orders", peer.client_secret)).access_token
    session = (await api.open_session("alice")).session_token
    tokens = [(await api.login_service("orders", peer.client_secret, "internal")).access_token for _ in range(BATCH)]
    await _check_active(api, own, [session, *tokens])
    return own, session, tokens


async def _check_active(api: Api, own: str, texts: list[str]) -> None:
    """Raises RuntimeError: a bench of refusals would measure nothing."""
    for text in texts:
        answer = await api.tokens.Introspect(pb.IntrospectRequest(token=text), metadata=bearer(own))
        if not answer.active:
            raise RuntimeError("a text that should be active is not")

"""What a guard costs a peer: an echo behind one against the same echo without, called with the same warm token.

An echo behind an interceptor that does nothing tells grpc's own share of it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

import grpc
import grpc.aio

from identity_client.access.judge import Judge
from identity_client.access.rules import Rule
from identity_client.access.setup import make_judge
from identity_client.aio.guard import Guard
from identity_client.clock import SystemClock
from identity_client.sync.guard import Guard as ThreadedGuard
from tests.bench.echo import METHOD, handler
from tests.bench.harness import Figure
from tests.bench.load import Load, Taken, ended, in_turns, serving
from tests.bench.material import filled
from tests.clients.issuer import Issuer, RunningClock, bearer

_RULES = {METHOD: Rule(scopes=frozenset({"echo.use"}), any_roles=frozenset({"clerk"}))}
_REVOCATIONS = 10_000
_THREADS = 8


def run(quick: bool) -> Iterable[Figure]:
    calls, rounds = (500, 3) if quick else (3_000, 15)
    for face, serve, reach in (("aio", serve_aio, 12), ("threaded", serve_threaded, 18)):
        with ExitStack() as stack:
            servers = [stack.enter_context(serving(serve, kind)) for kind in ("bare", "passed", "guarded")]
            (_, token), _ = servers[-1]
            loads = [Load(address, pid, METHOD, [b"x" * 100], bearer(token)) for (address, _), pid in servers]
            bare, passed, guarded = in_turns(loads, calls, rounds)
        name = f"guard, {face}"
        yield Figure(f"{name}: cost to the server's calls per CPU", "%", _cpu(bare, guarded), reach=reach, moonshot=5)
        yield Figure(f"{name}: cost to the caller's rate", "%", _rate(bare, guarded), reach=reach, moonshot=5)
        yield Figure(f"{name}: cost per CPU, over a bare interceptor", "%", _cpu(passed, guarded))
        for kind, taken in (("echo", bare), ("behind a bare interceptor", passed), ("guarded", guarded)):
            yield Figure(f"{face}, {kind}: CPU of the server", "us", [one.cpu_seconds * 1e6 for one in taken])
        yield Figure(f"{face}, echo", "per s", [one.rate for one in bare], more_is_better=True)


def _cpu(over: Sequence[Taken], work: Sequence[Taken]) -> list[float]:
    """How many per cent fewer calls of *work* than of *over* the same CPU serves, round by round."""
    return [(1 - theirs.cpu_seconds / mine.cpu_seconds) * 100 for mine, theirs in zip(work, over, strict=True)]


def _rate(over: Sequence[Taken], work: Sequence[Taken]) -> list[float]:
    """By how many per cent its rate is lower."""
    return [(1 - mine.rate / theirs.rate) * 100 for mine, theirs in zip(work, over, strict=True)]


class Passing(grpc.aio.ServerInterceptor):
    """What grpc itself takes for an interceptor that does nothing."""

    async def intercept_service(self, continuation: Any, handler_call_details: Any) -> Any:
        return await continuation(handler_call_details)


class ThreadedPassing(grpc.ServerInterceptor):
    """The same for grpc.server."""

    def intercept_service(self, continuation: Any, handler_call_details: Any) -> Any:
        return continuation(handler_call_details)


def serve_aio(kind: str, pipe: Any) -> None:
    """An echo on grpc.aio until told to end; says its address, and a token for it."""

    async def echo(request: bytes, _context: Any) -> bytes:
        return request

    async def serve() -> None:
        judge, token = _judge()
        interceptors: dict[str, list[grpc.aio.ServerInterceptor]] = {
            "bare": [],
            "passed": [Passing()],
            "guarded": [Guard(judge, audience="echo")],
        }
        server = grpc.aio.server(interceptors=interceptors[kind])
        server.add_generic_rpc_handlers((handler(echo),))
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        pipe.send((f"127.0.0.1:{port}", token))
        await asyncio.to_thread(ended, pipe)
        await server.stop(None)

    asyncio.run(serve())


def serve_threaded(kind: str, pipe: Any) -> None:
    """The same on grpc.server."""

    def echo(request: bytes, _context: Any) -> bytes:
        return request

    judge, token = _judge()
    interceptors: dict[str, list[grpc.ServerInterceptor]] = {
        "bare": [],
        "passed": [ThreadedPassing()],
        "guarded": [ThreadedGuard(judge, audience="echo")],
    }
    server = grpc.server(ThreadPoolExecutor(_THREADS), interceptors=interceptors[kind])
    server.add_generic_rpc_handlers((handler(echo),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    pipe.send((f"127.0.0.1:{port}", token))
    ended(pipe)
    server.stop(None).wait()


def _judge() -> tuple[Judge, str]:
    """A judge whose copy of the revocations stays fresh for the run, and a token that it admits."""
    clock = RunningClock()
    issuer = Issuer(clock)
    trust = filled(_REVOCATIONS, clock, issuer.public_key)
    judge = make_judge("echo", (), trust=trust, clock=SystemClock(), rules=_RULES, max_staleness_seconds=3600)
    return judge, issuer.mint(scopes=("echo.read", "echo.use"))

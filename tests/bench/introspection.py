"""Introspect of an access token that was seen before, against an echo and oidc-provider; a hundred of them in one call;
and a session token, which SQL is asked about."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from identity.v1 import token_pb2 as pb
from tests.bench import echo, oidc, service
from tests.bench.contest import Reach, contest
from tests.bench.harness import Figure
from tests.bench.load import Load, in_turns
from tests.bench.service import Caller, Service

BATCH = 100


def run(quick: bool) -> Iterable[Figure]:
    calls, rounds = (400, 3) if quick else (3_000, 9)
    with (
        service.placed(**service.CHEAP_HASH) as place,
        service.running(place) as ours,
        echo.running() as echoing,
        oidc.running() as provider,
    ):
        signed, opaque, batched = _loads(ours)
        yield from contest(
            "Introspect, warm access token",
            ours,
            signed,
            echoing,
            provider,
            provider.introspection() if provider else None,
            calls=calls,
            rounds=rounds,
            reach=Reach(share_of_echo=85, moonshot_over_oidc=1.0),
        )
        yield from _opaque(ours, signed, opaque, calls, rounds)
        yield from _batched(ours, batched, calls // 10, rounds)


def _loads(ours: Service) -> tuple[Load, Load, Load]:
    with Caller(ours) as caller:
        tokens, session, own = [caller.access_token() for _ in range(BATCH)], caller.open_session(), caller.bearer()
        caller.check_active(*tokens, session)
    one, many = pb.IntrospectRequest(token=tokens[0]), pb.BatchIntrospectRequest(tokens=tokens)
    return (
        ours.load("TokenService/Introspect", one, metadata=own),
        ours.load("TokenService/Introspect", pb.IntrospectRequest(token=session), metadata=own),
        ours.load("TokenService/BatchIntrospect", many, metadata=own),
    )


def _opaque(ours: Service, signed: Load, opaque: Load, calls: int, rounds: int) -> Iterator[Figure]:
    by_key, by_sql = in_turns([signed, opaque], calls, rounds)
    times = [theirs.cpu_seconds / mine.cpu_seconds for mine, theirs in zip(by_key, by_sql, strict=True)]
    settings = ours.place.durability
    yield Figure("Introspect, session token over access token: CPU", "x", times, settings=settings)
    rates = [one.rate for one in by_sql]
    yield Figure("Introspect, session token", "per s", rates, more_is_better=True, settings=settings)


def _batched(ours: Service, batched: Load, calls: int, rounds: int) -> Iterator[Figure]:
    [taken] = in_turns([batched], calls, rounds)
    yield Figure(
        f"BatchIntrospect, {BATCH} warm a call: tokens",
        "per s",
        [one.rate * BATCH for one in taken],
        reach=50_000,
        moonshot=100_000,
        more_is_better=True,
        settings=ours.place.durability,
    )
    microseconds = [one.cpu_seconds * 1e6 / BATCH for one in taken]
    yield Figure("BatchIntrospect: CPU of the server for a token", "us", microseconds, settings=ours.place.durability)

"""Authenticate by client secret, each call with its durable row in the audit log, against an echo and oidc-provider."""

from __future__ import annotations

from collections.abc import Iterable

from tests.bench import echo, oidc, service
from tests.bench.contest import Reach, contest
from tests.bench.harness import Figure


def run(quick: bool) -> Iterable[Figure]:
    calls, rounds = (400, 3) if quick else (3_000, 9)
    with (
        service.placed(**service.CHEAP_HASH) as place,
        service.running(place) as ours,
        echo.running() as echoing,
        oidc.running() as provider,
    ):
        request = service.by_secret(service.PEER, place.peer_secret)
        yield from contest(
            "Authenticate by client secret",
            ours,
            ours.load("AuthenticationService/Authenticate", request),
            echoing,
            provider,
            provider.client_credentials() if provider else None,
            calls=calls,
            rounds=rounds,
            reach=Reach(share_of_echo=45, over_oidc=0.8, moonshot_over_oidc=1.3),
        )

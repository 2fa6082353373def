"""The service, an echo and oidc-provider under the same load, in turns: what comes of it as figures."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from tests.bench.echo import Echo
from tests.bench.h2load import Post
from tests.bench.harness import Figure
from tests.bench.load import Load, Taken, in_turns
from tests.bench.oidc import OidcProvider, missing
from tests.bench.service import Service


@dataclass(frozen=True)
class Reach:
    """What one call of ours must be worth: as a share of an echo's rate, and over oidc-provider's."""

    share_of_echo: float
    over_oidc: float | None = None
    moonshot_over_oidc: float | None = None


def contest(
    name: str,
    service: Service,
    load: Load,
    echo: Echo,
    oidc: OidcProvider | None,
    post: Post | None,
    *,
    calls: int,
    rounds: int,
    reach: Reach,
) -> Iterator[Figure]:
    """Figures of *load* at the service, beside an echo of the same messages and, if it is here, *post* at *oidc*."""
    loads: list[Load | Post] = [load, echo.load(load), *([post] if post else [])]
    ours, echoed, *others = in_turns(loads, calls, rounds)
    settings = service.place.durability
    yield _share(name, ours, echoed, reach).over(settings)
    yield from _rates(name, ours, settings)
    yield from _rates(f"echo of {name}", echoed, "")
    if oidc is not None and others:
        yield _over(name, ours, others[0], reach).over(f"{settings}; {oidc.settings}")
        yield from _rates(f"oidc-provider beside {name}", others[0], oidc.settings)
    elif missing():
        print(f"{name} against oidc-provider: {missing()}", flush=True)


def _share(name: str, ours: Sequence[Taken], echoed: Sequence[Taken], reach: Reach) -> Figure:
    shares = [100 * mine.rate / theirs.rate for mine, theirs in zip(ours, echoed, strict=True)]
    return Figure(f"{name}: share of an echo's rate", "%", shares, reach.share_of_echo, more_is_better=True)


def _over(name: str, ours: Sequence[Taken], theirs: Sequence[Taken], reach: Reach) -> Figure:
    ratios = [mine.rate / other.rate for mine, other in zip(ours, theirs, strict=True)]
    return Figure(
        f"{name}: over oidc-provider's rate",
        "x",
        ratios,
        reach.over_oidc,
        reach.moonshot_over_oidc,
        more_is_better=True,
    )


def _rates(name: str, taken: Iterable[Taken], settings: str) -> Iterator[Figure]:
    taken = list(taken)
    for figure in (
        Figure(name, "per s", [one.rate for one in taken], more_is_better=True),
        Figure(f"{name}: CPU of the server", "us", [one.cpu_seconds * 1e6 for one in taken]),
        Figure(f"{name}: p50", "ms", [one.p50_seconds * 1e3 for one in taken]),
        Figure(f"{name}: p99", "ms", [one.p99_seconds * 1e3 for one in taken]),
        Figure(
            f"{name}: ceiling of the load generator",
            "per s",
            [1 / one.generator_seconds for one in taken],
            more_is_better=True,
        ),
    ):
        yield figure.over(settings)

"""How strictly a guard judges: how old its knowledge may be, what happens beyond, and whether refusals are enforced."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeAlias, get_args

OnStale: TypeAlias = Literal["reject", "confirm", "accept"]
"""What happens to a call while the trust state is older than allowed. `reject`: UNAVAILABLE, TRUST_STALE. `confirm`:
the identity service's database is asked about the caller, and only its answer admits. `accept`: judged from what is
held, and counted. Before the first snapshot every call is rejected, whatever is chosen."""


@dataclass(frozen=True, slots=True)
class MethodOptions:
    """What differs for one method from what its guard says; None: nothing. Raises ValueError."""

    max_staleness_seconds: float | None = None
    on_stale: OnStale | None = None
    enforce: bool | None = None

    def __post_init__(self) -> None:
        if self.max_staleness_seconds is not None and not 0 < self.max_staleness_seconds < math.inf:
            raise ValueError("max_staleness_seconds is a positive number of seconds")
        if self.on_stale is not None and self.on_stale not in get_args(OnStale):
            raise ValueError(f"on_stale is one of {', '.join(get_args(OnStale))}")


@dataclass(frozen=True, slots=True)
class Terms:
    """The options of one method, complete."""

    max_staleness_seconds: float = 30.0
    on_stale: OnStale = "reject"
    enforce: bool = True

    def __post_init__(self) -> None:
        MethodOptions(self.max_staleness_seconds, self.on_stale)

    def but(self, options: MethodOptions) -> Terms:
        """These, with what *options* say."""
        return Terms(
            self.max_staleness_seconds if options.max_staleness_seconds is None else options.max_staleness_seconds,
            self.on_stale if options.on_stale is None else options.on_stale,
            self.enforce if options.enforce is None else options.enforce,
        )


@dataclass(frozen=True, slots=True)
class Options:
    """The terms of a guard's methods, by full method name (/package.Service/Method)."""

    default: Terms = field(default_factory=Terms)
    by_method: Mapping[str, Terms] = field(default_factory=dict)

    @classmethod
    def of(cls, default: Terms, exceptions: Mapping[str, MethodOptions]) -> Options:
        """*default*, with what *exceptions* say."""
        return cls(default, {method: default.but(options) for method, options in exceptions.items()})

    def find(self, method: str) -> Terms:
        """The terms of a method."""
        return self.by_method.get(method, self.default)

    @property
    def is_enforced_throughout(self) -> bool:
        """Whether no method is in report-only mode."""
        return self.default.enforce and all(terms.enforce for terms in self.by_method.values())

"""A clock that stands still until it is told."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class FixedClock:
    """Stands still; tests move it. *wall* is in Unix seconds; *steady*, which measures ages, never moves back."""

    wall: float = 1_900_000_000.0
    steady: float = 1_000.0

    def now(self) -> float:
        return self.wall

    def monotonic(self) -> float:
        return self.steady

    def advance(self, seconds: float) -> None:
        """Both clocks move on."""
        self.wall += seconds
        self.steady += seconds

"""How long the threads of a server wait for the identity service: whoever shows made-up session tokens while it is slow
must not keep them all."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from identity_client.clock import Clock
from identity_client.errors import DependencyDown

MAXIMUM_PATIENT = 4
"""So many threads wait until the answer is there; a server with more threads always has some for other calls."""

SHORT_SECONDS = 0.5
"""The others wait so long: while the service answers, they do not notice."""

PAUSE_SECONDS = 1.0
"""Once one of the others has waited in vain, no more than MAXIMUM_PATIENT wait for so long."""


class Waits:
    """The threads of a process that wait for an answer about a session token or API key. Safe to use from any."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._count = 0
        self._paused_until = -math.inf  # monotonic

    @contextmanager
    def waiting(self, patient_seconds: float) -> Iterator[float]:
        """Around the wait of a thread, with the seconds that it may take; DependencyDown raised within tells that they
        were in vain. Raises DependencyDown."""
        seconds = self._enter(patient_seconds)
        try:
            yield seconds
        except DependencyDown:
            if seconds != patient_seconds:
                self._paused_until = self._clock.monotonic() + PAUSE_SECONDS
            raise
        finally:
            with self._lock:
                self._count -= 1

    def _enter(self, patient_seconds: float) -> float:
        with self._lock:
            is_patient = self._count < MAXIMUM_PATIENT
            if not is_patient and self._clock.monotonic() < self._paused_until:
                raise DependencyDown(
                    "The identity service is slow to tell session tokens and API keys: repeat the call later.",
                    PAUSE_SECONDS,
                )
            self._count += 1
        return patient_seconds if is_patient else SHORT_SECONDS

"""What operators and their machines see of a running server: its pages over HTTP, and its gauges."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
from collections.abc import Sequence
from http import HTTPStatus
from pathlib import Path

from cryptography import x509

from identity_client.errors import RetryLater

from .config import ConfigurationError, Settings
from .domain.signing_keys import PEER_REFRESH_SECONDS
from .domain.values import KeyState
from .house import House
from .http_listener import Answer, HttpListener, Page
from .metrics import CONTENT_TYPE, Metrics

_log = logging.getLogger(__name__)

METRICS, LIVEZ, READYZ, JWKS = "/metrics", "/livez", "/readyz", "/.well-known/jwks.json"

SILENT_SECONDS = 5.0
"""Without an answer of the database for so long a server is not ready; it is asked four times a second."""

_GAUGE_SECONDS = 1.0
_SLOW_GAUGE_TURNS = 30


class Readiness:
    """What a server lacks to serve. *house* is None until it is open, *is_serving* False while it starts and stops."""

    def __init__(self) -> None:
        self.house: House | None = None
        self.is_serving = False

    def missing(self) -> list[str]:
        """A sentence for each thing; empty when ready. Redis is never among them: nothing needs it."""
        if self.house is None or not self.is_serving:
            return ["the service is starting or stopping"]
        missing = []
        if not self.house.hub.state.is_ready:
            missing.append("the trust state is not loaded")
        if self.house.hub.data_age > SILENT_SECONDS:
            missing.append("the database does not answer")
        return missing


class Operations:
    """The listener and the gauges of one server."""

    def __init__(self, settings: Settings, metrics: Metrics, readiness: Readiness) -> None:
        self._settings = settings
        self._metrics = metrics
        self._readiness = readiness
        self._listener = HttpListener(settings.http_listen, self._pages()) if settings.http_listen else None
        self._task: asyncio.Task[None] | None = None
        self.address = ""
        """Where the pages are; empty for nowhere."""

    async def start(self) -> None:
        """Serve the pages, before all else, so that probes hear of a long start. Raises ConfigurationError."""
        if self._listener is not None:
            try:
                self.address = await self._listener.start()
            except OSError:
                problem = f"http_listen: {self._settings.http_listen} cannot be bound: is another server running there?"
                raise ConfigurationError([problem]) from None
        self._task = asyncio.create_task(self._keep_gauges())

    async def opened(self, house: House) -> None:
        """The house is open, and can be asked."""
        self._readiness.house = house
        await self._note_keys(house)

    async def stop(self) -> None:
        """End both."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        if self._listener is not None:
            await self._listener.stop()

    def _pages(self) -> dict[str, Page]:
        return {METRICS: self._show_metrics, LIVEZ: alive, READYZ: self._show_readiness, JWKS: self._show_keys}

    async def _show_metrics(self) -> Answer:
        self._note_gauges()
        return Answer(self._metrics.text(), CONTENT_TYPE)

    async def _show_readiness(self) -> Answer:
        return readiness(self._readiness.missing())

    async def _show_keys(self) -> Answer:
        house = self._readiness.house
        if house is None:
            return readiness(["the service is starting or stopping"])
        return Answer(
            house.jwks(),
            "application/jwk-set+json",
            cache_control=f"public, max-age={PEER_REFRESH_SECONDS}",
        )

    # -- gauges ------------------------------------------------------------------------------------------------

    async def _keep_gauges(self) -> None:
        for turn in itertools.count(1):
            try:
                self._note_gauges()
                if turn % _SLOW_GAUGE_TURNS == 0 and self._readiness.house is not None:
                    await self._note_keys(self._readiness.house)
            except Exception:
                _log.exception("the gauges could not be read")
            await asyncio.sleep(_GAUGE_SECONDS)

    def _note_gauges(self) -> None:
        metrics, house = self._metrics, self._readiness.house
        metrics.ready.set(not self._readiness.missing())
        if house is None:
            return
        metrics.hash_pending.set(house.pool.held)
        metrics.feed_version.set(house.hub.state.version)
        metrics.feed_age.set(house.hub.data_age)
        metrics.heartbeat_age.set(house.hub.streams.heartbeat_age)
        metrics.subscribers.set(len(house.hub.streams))
        metrics.revocations.set(house.hub.state.entry_count())
        if house.mirror is not None:
            metrics.mirror_follows(house.mirror.is_following)
        if house.shared_throttle is not None:
            metrics.breaker_stands("throttle", is_open=house.shared_throttle.is_redis_left_alone)

    async def _note_keys(self, house: House) -> None:
        if path := self._settings.tls_certificate_file:
            with contextlib.suppress(OSError, ValueError):  # told by whoever serves with it
                self._metrics.certificate_ends(_end_of(path))
        with contextlib.suppress(RetryLater):
            for key in await house.stores.signing_keys.list_keys():
                if key.state is KeyState.ACTIVE:
                    self._metrics.signing_key_made(key.create_time)


def _end_of(path: str) -> float:
    return x509.load_pem_x509_certificates(Path(path).read_bytes())[0].not_valid_after_utc.timestamp()


async def alive() -> Answer:
    """The event loop answers, which is all that this says."""
    return Answer(b"alive\n")


def readiness(missing: Sequence[str]) -> Answer:
    """200, or 503 with what is missing, a line each."""
    if not missing:
        return Answer(b"ready\n")
    lines = "".join(f"- {sentence}\n" for sentence in missing)
    return Answer(f"not ready\n{lines}".encode(), status=HTTPStatus.SERVICE_UNAVAILABLE)

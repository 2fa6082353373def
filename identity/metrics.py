"""What Prometheus is told. No name, id or text of a caller is ever a label: each label has a few known values.

With PROMETHEUS_MULTIPROC_DIR in the environment before this is imported, values lie in files there, which the
supervisor of the workers adds up.
"""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.registry import Collector

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_RPC_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)
_STORE_BUCKETS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 2.5, 10.0)
_HASH_BUCKETS = (0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)


class Metrics:
    """The instruments of one server. See domain.meters.Meter and rpc.observing.CallMeter for who tells it what."""

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        self._calls = Counter("identity_rpc", "Calls that ended.", ("method", "code"), registry=registry)
        self._call_seconds = Histogram(
            "identity_rpc_seconds", "How long unary calls took.", ("method",), buckets=_RPC_BUCKETS, registry=registry
        )
        self._logins = Counter(
            "identity_logins", "Log-ins by credential and outcome.", ("credential", "outcome"), registry=registry
        )
        self.hash_pending = _gauge(registry, "identity_hash_pending", "Passwords that are hashed or wait.", "livesum")
        self._hash_seconds = Histogram(
            "identity_hash_seconds", "From asking to hash.", buckets=_HASH_BUCKETS, registry=registry
        )
        self._hash_refused = Counter("identity_hash_refused", "Passwords refused for want of room.", registry=registry)
        self._store_pending = Gauge(
            "identity_store_pending",
            "Work that the database does or that waits for it.",
            ("kind",),
            registry=registry,
            multiprocess_mode="livesum",
        )
        self._store_seconds = Histogram(
            "identity_store_seconds",
            "How long the database took, waiting included.",
            ("kind",),
            buckets=_STORE_BUCKETS,
            registry=registry,
        )
        self._store_failures = Counter(
            "identity_store_failures", "Work that the database could not do.", ("kind",), registry=registry
        )
        self.ready = _gauge(registry, "identity_ready", "1 while calls are served, else 0.", "livemax")
        self.feed_version = _gauge(registry, "identity_feed_version", "The newest change that is held.", "livemin")
        self.feed_age = _gauge(registry, "identity_feed_age_seconds", "Since the feed was read.", "livemax")
        self.heartbeat_age = _gauge(
            registry, "identity_feed_heartbeat_age_seconds", "Since the streams had their last heartbeat.", "livemax"
        )
        self.subscribers = _gauge(registry, "identity_trust_subscribers", "Streams of WatchTrust.", "livesum")
        self.revocations = _gauge(registry, "identity_trust_live_revocations", "Revocations in force.", "livemax")
        # Without labels a gauge is 0 until it is set, with one it is absent: these say nothing where there is nothing.
        self._mirror_up = Gauge(
            "identity_mirror_up",
            "1 while the mirror in Redis follows, else 0; absent without Redis.",
            ("backend",),
            registry=registry,
            multiprocess_mode="livemin",
        )
        self._breaker_open = Gauge(
            "identity_redis_breaker_open",
            "1 while Redis does not answer and no call asks it, else 0; absent without Redis.",
            ("use",),
            registry=registry,
            multiprocess_mode="livemax",
        )
        self._key_time = Gauge(
            "identity_signing_key_created_timestamp_seconds",
            "When the active signing key was made.",
            ("state",),
            registry=registry,
            multiprocess_mode="livemax",
        )
        self._certificate_end = Gauge(
            "identity_tls_certificate_not_after_timestamp_seconds",
            "When the server's certificate expires; absent without TLS.",
            ("file",),
            registry=registry,
            multiprocess_mode="livemin",
        )
        self._job_success = Gauge(
            "identity_job_last_success_timestamp_seconds",
            "When background work last ended well.",
            ("job",),
            registry=registry,
            multiprocess_mode="max",
        )
        self._build = Gauge(
            "identity_build_info", "1.", ("version", "python"), registry=registry, multiprocess_mode="max"
        )
        self._build.labels(_version(), platform.python_version()).set(1)
        # A label's child is looked up under a lock for longer than all else takes.
        self._call_children: dict[tuple[str, str], Counter] = {}
        self._seconds_children: dict[str, Histogram] = {}
        self._store_children: dict[str, tuple[Gauge, Histogram]] = {}

    def called(self, method: str, code: str, seconds: float | None) -> None:
        """A call ended; no *seconds* for streams. *method* is one that is registered."""
        counter = self._call_children.get((method, code))
        if counter is None:
            counter = self._call_children[method, code] = self._calls.labels(method, code)
        counter.inc()
        if seconds is None:
            return
        histogram = self._seconds_children.get(method)
        if histogram is None:
            histogram = self._seconds_children[method] = self._call_seconds.labels(method)
        histogram.observe(seconds)

    def logged_in(self, credential: str, outcome: str) -> None:
        self._logins.labels(credential, outcome).inc()

    def hashed(self, seconds: float) -> None:
        self._hash_seconds.observe(seconds)

    def hash_refused(self) -> None:
        self._hash_refused.inc()

    def store_began(self, kind: str) -> None:
        self._store_child(kind)[0].inc()

    def store_ended(self, kind: str, seconds: float, *, is_failed: bool) -> None:
        pending, taken = self._store_child(kind)
        pending.dec()
        taken.observe(seconds)
        if is_failed:
            self._store_failures.labels(kind).inc()

    def _store_child(self, kind: str) -> tuple[Gauge, Histogram]:
        children = self._store_children.get(kind)
        if children is None:
            children = self._store_pending.labels(kind), self._store_seconds.labels(kind)
            self._store_children[kind] = children
        return children

    def job_succeeded(self, name: str) -> None:
        self._job_success.labels(name).set_to_current_time()

    def mirror_follows(self, follows: bool) -> None:
        self._mirror_up.labels("redis").set(follows)

    def breaker_stands(self, use: str, *, is_open: bool) -> None:
        self._breaker_open.labels(use).set(is_open)

    def signing_key_made(self, time: float) -> None:
        self._key_time.labels("active").set(time)

    def certificate_ends(self, time: float) -> None:
        self._certificate_end.labels("tls_certificate_file").set(time)

    def text(self) -> bytes:
        """All of it, as Prometheus reads it."""
        return generate_latest(self._registry)

    def described(self) -> dict[str, str]:
        """Each metric's name and what it says, sorted."""
        return dict(sorted((metric.name, metric.documentation) for metric in self._registry.collect()))


def text_of_workers(directory: str) -> bytes:
    """The same, added up over the processes that write into *directory*."""
    from prometheus_client.multiprocess import MultiProcessCollector

    registry = CollectorRegistry()
    collector: Collector = MultiProcessCollector(registry, path=directory)  # type: ignore[no-untyped-call]
    del collector  # it has registered itself
    return generate_latest(registry)


def forget_worker(directory: str, process_id: int) -> None:
    """A worker has ended: what it said of its present no longer counts, what it counted does."""
    from prometheus_client.multiprocess import mark_process_dead

    mark_process_dead(process_id, directory)  # type: ignore[no-untyped-call]


def _gauge(registry: CollectorRegistry, name: str, documentation: str, mode: str) -> Gauge:
    return Gauge(name, documentation, registry=registry, multiprocess_mode=mode)  # type: ignore[arg-type]


def _version() -> str:
    try:
        return version("grpc-identity")
    except PackageNotFoundError:  # a checkout on the path, installed nowhere
        return "unknown"

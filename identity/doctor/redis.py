"""What `identity doctor` finds in Redis. Loaded only where one is configured."""

from __future__ import annotations

from collections.abc import Iterator

from redis.exceptions import RedisError

from identity_client.redis.schema import FRESH_SECONDS

from ..config import ConfigurationError
from ..storage.redis.client import SAFE_POLICY
from ..storage.redis.inspection import RedisFacts, look
from .findings import Finding, Patient, Severity

_CHECK = "redis"
_START = "Is the service running? It fills the mirror by itself; its log says what keeps it from that."


async def examine_redis(patient: Patient, feed: tuple[str, int] | None) -> list[Finding]:
    """*feed*: the epoch and the newest version in SQL, None where they are not to be seen."""
    try:
        facts = await look(patient.settings.redis_url, patient.settings.redis_prefix)
    except (RedisError, OSError) as error:  # its own text could repeat the password
        found = f"Redis does not answer as it should: {type(error).__name__}"
        advice = "Start it, or correct redis_url. Calls go on meanwhile: SQL counts log-ins, the mirror grows old."
        return [Finding(_CHECK, Severity.WARNING, found, advice)]
    except (ConfigurationError, ValueError):
        return []  # told by the check of the configuration
    return [*_server(facts), *_mirror(facts, feed)]


def _server(facts: RedisFacts) -> Iterator[Finding]:
    if facts.policy != SAFE_POLICY:
        found = f"maxmemory-policy is {facts.policy}, which drops revocations when memory is short"
        yield Finding(_CHECK, Severity.ERROR, found, f"Set it to {SAFE_POLICY}: the service does not start so.")
    if facts.role != "master":
        found = f"its role is {facts.role}: it cannot be written to"
        yield Finding(_CHECK, Severity.WARNING, found, "Let redis_url name the primary.")
    if (facts.policy, facts.role) == (SAFE_POLICY, "master"):
        yield Finding(_CHECK, Severity.OK, "Redis answers, can be written to and drops nothing")


def _mirror(facts: RedisFacts, feed: tuple[str, int] | None) -> Iterator[Finding]:
    sentinel = facts.sentinel
    if sentinel is None:
        found = "the mirror is being built" if facts.is_being_built else "there is no mirror of revocations"
        yield Finding(_CHECK, Severity.WARNING, found, _START)
        return
    age_seconds = max(0, facts.time_ms - sentinel.time_ms) // 1_000
    if age_seconds >= FRESH_SECONDS:
        yield Finding(_CHECK, Severity.WARNING, f"the mirror is {age_seconds:,} seconds old", _START)
    if feed is not None and feed[0] != sentinel.epoch:
        found = "the mirror is that of another epoch of the database, or of another service"
        yield Finding(_CHECK, Severity.WARNING, found, f"Give each service a redis_prefix of its own. {_START}")
        return
    behind = "" if feed is None else f", {max(0, feed[1] - sentinel.version):,} versions behind the database"
    if age_seconds < FRESH_SECONDS:
        yield Finding(_CHECK, Severity.OK, f"the mirror holds {sentinel.count:,} revocations{behind}")

"""SqlThrottleStore: counters of failed log-ins, shared by every process on the database."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    Delete,
    Table,
    bindparam,
    delete,
    false,
    func,
    literal,
    select,
    text,
    true,
    union_all,
)
from sqlalchemy.dialects import postgresql, sqlite

from identity.domain.throttle import Attempt, Bucket, Counter, Reservation, admit
from identity.storage.access import Access
from identity.storage.sql.common import Moment, is_postgres
from identity.storage.tables import known_places, throttle_buckets
from identity_client.errors import Throttled

KNOWN_SECONDS = 30 * 86_400
"""How long a place stays known after a log-in."""

ROW_LIMIT = 100_000
"""Buckets beyond which new names and origins share coarse ones, 65,536 of each: a flood of invented names must not
fill the disk. It takes a failed log-in for 50,000 names within a quarter of an hour to get there."""

COARSE_BYTES = 3
"""Of a coarse key: what is counted, and 16 bits of whose."""

LOOKED_AT = 1_000
"""So many attempts are looked at before they are counted, from the last one that was refused: while somebody guesses,
what is refused does not take the write lock. In peace the look would cost every log-in a transaction more."""

_COUNT_SECONDS = 10.0
_REMOVED_AT_ONCE = 4  # an attempt adds two rows at most: the table shrinks while it is used
_NOTED_AT_ONCE = 100


@dataclass(frozen=True, slots=True)
class Known:
    """What an attempt would be judged by: its buckets by key, the coarse ones too, where something is counted."""

    is_place_known: bool
    buckets: dict[bytes, Bucket]


class SqlThrottleStore:
    """See domain.ports.ThrottleStore."""

    def __init__(self, access: Access, row_limit: int = ROW_LIMIT) -> None:
        self._access = access
        self._row_limit = row_limit
        self._is_crowded = False
        self._counted_time = 0.0
        self._to_be_looked_at = LOOKED_AT

    async def reserve(self, attempt: Attempt) -> Reservation:
        def look(connection: Connection, moment: Moment) -> None:
            admit(self._find(connection, attempt, moment), moment.now_ms)

        def count(connection: Connection, moment: Moment) -> Reservation:
            _hold(connection, attempt.name, attempt.origin, attempt.place)
            counted = admit(self._find(connection, attempt, moment), moment.now_ms)
            _put(connection, {counter.key: bucket for counter, bucket in counted})
            remove_expired(connection, _REMOVED_AT_ONCE, moment)
            return Reservation(attempt, tuple((counter, bucket.next_ms) for counter, bucket in counted))

        try:
            if self._to_be_looked_at:
                self._to_be_looked_at -= 1
                await self._access.read(look)
            return await self._access.write(count)
        except Throttled:
            self._to_be_looked_at = LOOKED_AT
            raise

    async def succeeded(self, reservation: Reservation) -> None:
        place = reservation.attempt.place.key

        def work(connection: Connection, moment: Moment) -> None:
            _give_back(connection, reservation, moment)
            known = {"key": place, "expire_time": moment.now + KNOWN_SECONDS}
            connection.execute(_put_into(known_places, is_postgres(connection)), known)

        await self._access.write(work)

    async def look(self, attempt: Attempt) -> Known:
        """For a store that counts elsewhere."""
        return await self._access.read(lambda connection, moment: _known(connection, attempt, moment))

    async def note(self, failures: Sequence[tuple[Counter, int]]) -> None:
        """Count what was counted elsewhere and let through there, each in its counter at its time (Unix ms)."""
        for start in range(0, len(failures), _NOTED_AT_ONCE):
            await self._access.write(partial(_note, failures=failures[start : start + _NOTED_AT_ONCE]))

    def _find(self, connection: Connection, attempt: Attempt, moment: Moment) -> list[tuple[Counter, Bucket]]:
        self._note_crowd(connection, moment)
        known = _known(connection, attempt, moment)
        buckets = known.buckets
        counters = (
            attempt.place if known.is_place_known else self._folded(attempt.name, buckets),
            self._folded(attempt.origin, buckets),
        )
        return [(counter, buckets.get(counter.key, Bucket())) for counter in counters]

    def _folded(self, counter: Counter, buckets: dict[bytes, Bucket]) -> Counter:
        """The counter itself, or, where the table is crowded and it has no row yet, the coarse one that it falls in."""
        if not self._is_crowded or counter.key in buckets:
            return counter
        return Counter(counter.key[:COARSE_BYTES], counter.limit)

    def _note_crowd(self, connection: Connection, moment: Moment) -> None:
        if 0 <= moment.time - self._counted_time < _COUNT_SECONDS:
            return
        self._counted_time = moment.time
        some = select(literal(1)).select_from(throttle_buckets).limit(self._row_limit).subquery()
        self._is_crowded = connection.execute(select(func.count()).select_from(some)).scalar_one() >= self._row_limit


def remove_expired(connection: Connection, limit: int, moment: Moment) -> None:
    """Remove at most *limit* buckets in which nothing is counted any more, and as many places no longer known."""
    connection.execute(_REMOVE_BUCKETS, {"until": moment.now_ms, "most": limit})
    connection.execute(_REMOVE_PLACES, {"until": moment.now, "most": limit})


def _removal(table: Table, end: ColumnElement[int]) -> Delete:
    """Those that somebody counts at this moment are not expired."""
    expired = select(table.c.key).where(end <= bindparam("until")).limit(bindparam("most"))
    return delete(table).where(table.c.key.in_(expired.with_for_update(skip_locked=True)))


def _known(connection: Connection, attempt: Attempt, moment: Moment) -> Known:
    keys = [attempt.name.key, attempt.origin.key, attempt.place.key]
    keys += [key[:COARSE_BYTES] for key in keys]
    rows = connection.execute(_JUDGED_BY, {"keys": keys, "place": attempt.place.key, "now": moment.now}).all()
    buckets = {row.key: Bucket(row.drained_ms, row.next_ms) for row in rows if not row.is_place}
    return Known(len(buckets) < len(rows), buckets)


def _note(connection: Connection, moment: Moment, failures: Sequence[tuple[Counter, int]]) -> None:
    counters = [counter for counter, _ in failures]
    _hold(connection, *counters)
    buckets = _buckets(connection, [counter.key for counter in counters])
    for counter, time_ms in failures:
        buckets[counter.key] = buckets.get(counter.key, Bucket()).counted(counter.limit, time_ms)
    _put(connection, buckets)
    remove_expired(connection, _REMOVED_AT_ONCE * len(failures), moment)


def _buckets(connection: Connection, keys: list[bytes]) -> dict[bytes, Bucket]:
    rows = connection.execute(_BUCKETS, {"keys": keys})
    return {row.key: Bucket(row.drained_ms, row.next_ms) for row in rows}


def _put(connection: Connection, buckets: Mapping[bytes, Bucket]) -> None:
    """Write them, by key."""
    rows = [{"key": key, "drained_ms": bucket.drained_ms, "next_ms": bucket.next_ms} for key, bucket in buckets.items()]
    if rows:
        connection.execute(_put_into(throttle_buckets, is_postgres(connection)), rows)


@cache
def _put_into(table: Table, is_for_postgres: bool) -> Any:
    """Insert a row, or write it over the one of its key."""
    row = postgresql.insert(table) if is_for_postgres else sqlite.insert(table)
    others = {column.name: row.excluded[column.name] for column in table.c if column.name != "key"}
    return row.on_conflict_do_update(index_elements=["key"], set_=others)


# Built once: to build a statement takes several times as long as to run it.
_BUCKETS = select(throttle_buckets).where(throttle_buckets.c.key.in_(bindparam("keys", expanding=True)))
_KNOWN = select(true().label("is_place"), known_places.c.key, known_places.c.expire_time, literal(0)).where(
    known_places.c.key == bindparam("place"), known_places.c.expire_time > bindparam("now")
)
_JUDGED_BY = union_all(_BUCKETS.with_only_columns(false().label("is_place"), *throttle_buckets.c), _KNOWN)
_DROP = delete(throttle_buckets).where(throttle_buckets.c.key.in_(bindparam("keys", expanding=True)))
_REMOVE_BUCKETS = _removal(throttle_buckets, throttle_buckets.c.drained_ms)
_REMOVE_PLACES = _removal(known_places, known_places.c.expire_time)


def _hold(connection: Connection, *counters: Counter) -> None:
    """Have nobody else count these until the transaction ends: a bucket that is not there yet has no row to lock."""
    if is_postgres(connection):
        numbers = sorted({int.from_bytes(counter.key[:COARSE_BYTES], "big") for counter in counters})
        connection.execute(_HOLD, {"numbers": numbers})


_HOLD = text("SELECT pg_advisory_xact_lock(2, number) FROM unnest(CAST(:numbers AS integer[])) AS number")


def _give_back(connection: Connection, reservation: Reservation, moment: Moment) -> None:
    """Uncount it, and empty the bucket of its place."""
    keys, kept = [counter.key for counter, _ in reservation.counted], {}
    if keys:
        _hold(connection, *(counter for counter, _ in reservation.counted))
        buckets = _buckets(connection, keys)  # some may be forgotten meanwhile
        for counter, next_ms in reservation.counted:
            if counter.key in buckets:
                kept[counter.key] = buckets[counter.key].given_back(counter.limit, next_ms)
    place = reservation.attempt.place.key
    kept = {key: bucket for key, bucket in kept.items() if bucket.drained_ms > moment.now_ms and key != place}
    _put(connection, kept)
    connection.execute(_DROP, {"keys": [key for key in {*keys, place} if key not in kept]})

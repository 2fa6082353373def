"""Passwords: their form, and their hashing in a bounded pool that cannot starve the rest of the service.

Hashes are Argon2id in PHC form (RFC 9106), at least 19 MiB and 2 passes (OWASP's floor). The pool's threads run at the
lowest priority, its queue is bounded, and what does not fit is refused before any work is done for it.
"""

from __future__ import annotations

import asyncio
import os
import sys
import threading
import time
import unicodedata
from collections import Counter
from collections.abc import Awaitable, Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Self, TypeVar

from cryptography.exceptions import InvalidKey
from cryptography.hazmat.primitives.kdf.argon2 import Argon2id

from identity_client.errors import InvalidRequest, Overloaded

from .meters import Meter, NoMeter
from .randomness import Randomness
from .secrets import refuse_token_text

MINIMUM_CHARACTERS = 12
MAXIMUM_BYTES = 1024

_SALT_BYTES = 16
_HASH_BYTES = 32
_LOWEST_PRIORITY = 19

T = TypeVar("T")


def prepare_password(raw_password: str, field: str = "password") -> bytes:
    """The bytes to hash: NFC, so that a password is the same however it was typed (RFC 8265 section 4.2).

    Never truncates. Raises InvalidRequest: empty, over 1,024 bytes before or after normalisation, a control character.
    """
    if not raw_password:
        raise InvalidRequest("a password is needed", field)
    if len(raw_password) > MAXIMUM_BYTES:
        raise InvalidRequest(f"at most {MAXIMUM_BYTES:,} bytes", field)
    normal = unicodedata.normalize("NFC", raw_password)
    if any(unicodedata.category(character) == "Cc" for character in normal):
        raise InvalidRequest("control characters are not allowed", field)
    encoded = normal.encode("utf-8", "strict")
    if len(encoded) > MAXIMUM_BYTES:
        raise InvalidRequest(f"at most {MAXIMUM_BYTES:,} bytes", field)
    return encoded


def check_new_password(raw_password: str, normalised_username: str, field: str = "password") -> bytes:
    """As prepare_password, and fit to be chosen: long, not common, not the name, no token. No rule asks for kinds of
    characters (NIST SP 800-63B section 3.1.1.2). Raises InvalidRequest.
    """
    refuse_token_text(raw_password, field)
    prepared = prepare_password(raw_password, field)
    text = prepared.decode("utf-8")
    if len(text) < MINIMUM_CHARACTERS:
        raise InvalidRequest(f"at least {MINIMUM_CHARACTERS} characters", field)
    folded = unicodedata.normalize("NFKC", text).casefold()
    if folded == normalised_username:
        raise InvalidRequest("the password must differ from the username", field)
    if folded in common_passwords() or len(set(folded)) == 1:
        raise InvalidRequest("this is one of the passwords that guessers try first: choose another", field)
    return prepared


@lru_cache(maxsize=1)
def common_passwords() -> frozenset[str]:
    """Common passwords that are long enough to be chosen, case-folded; common_passwords.txt names their source."""
    lines = Path(__file__).with_name("common_passwords.txt").read_text("utf-8").splitlines()
    return frozenset(line for line in lines if not line.startswith("#"))


@dataclass(frozen=True, slots=True)
class HashParameters:
    """The cost of one Argon2id hash."""

    memory_kib: int = 19_456
    iterations: int = 2
    lanes: int = 1

    def phc_prefix(self) -> str:
        """How the text of a hash of this cost begins."""
        return f"$argon2id$v=19$m={self.memory_kib},t={self.iterations},p={self.lanes}$"


class Place:
    """Room in a pool for one piece of work. Whoever leaves it without having run any gives it back."""

    def __init__(self, pool: HashPool, origin: str | None) -> None:
        self._pool = pool
        self._origin = origin
        self._is_used = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if not self._is_used:
            self._pool.give_back(self._origin)

    async def run(self, work: Callable[[], T]) -> T:
        """Run *work*, once."""
        future = self._pool.submit(work)
        self._is_used = True
        future.add_done_callback(lambda _: self._pool.give_back(self._origin))
        return await self._pool.measured(asyncio.wrap_future(future))


class HashPool:
    """A few low-priority threads with a bounded queue. A place is held until the work ends, whoever stopped waiting.

    One origin may hold half of the places: a flood from there leaves the others theirs.
    """

    def __init__(
        self, workers: int, queue_limit: int, seconds_per_item: float = 0.05, meter: Meter | None = None
    ) -> None:
        self._executor = ThreadPoolExecutor(workers, "password-hash", initializer=_yield_to_everyone)
        self._limit = workers + queue_limit
        self._limit_of_one = (self._limit + 1) // 2
        self._workers = workers
        self._seconds_per_item = seconds_per_item
        self._meter = meter or NoMeter()
        self._held = 0
        self._held_by: Counter[str] = Counter()
        self._lock = threading.Lock()

    @property
    def held(self) -> int:
        """How many pieces of work run or wait."""
        return self._held

    def hold(self, origin: str | None = None) -> Place:
        """A place for *origin* or for the house itself. Raises Overloaded at once when none is free."""
        self._take_place(origin)
        return Place(self, origin)

    async def run(self, work: Callable[[], T], origin: str | None = None) -> T:
        """Run *work* in a place of its own. Raises Overloaded at once when none is free."""
        with self.hold(origin) as place:
            return await place.run(work)

    def submit(self, work: Callable[[], T]) -> Future[T]:
        """Queue *work*. For a Place."""
        return self._executor.submit(work)

    async def measured(self, hashing: Awaitable[T]) -> T:
        """Wait for work that was queued just now. For a Place."""
        began = time.perf_counter()
        result = await hashing
        self._meter.hashed(time.perf_counter() - began)
        return result

    def give_back(self, origin: str | None) -> None:
        """Free a place. For a Place, from any thread."""
        with self._lock:
            self._held -= 1
            if origin is not None:
                self._held_by[origin] -= 1
                if not self._held_by[origin]:
                    del self._held_by[origin]

    def close(self) -> None:
        """Drop what waits and end the threads."""
        self._executor.shutdown(wait=True, cancel_futures=True)

    def _take_place(self, origin: str | None) -> None:
        with self._lock:
            held_by_origin = 0 if origin is None else self._held_by[origin]
            if self._held >= self._limit or held_by_origin >= self._limit_of_one:
                retry_after = max(1.0, self._held * self._seconds_per_item / self._workers)
                self._meter.hash_refused()
                raise Overloaded("Too many passwords are waiting to be checked: repeat the call later.", retry_after)
            self._held += 1
            if origin is not None:
                self._held_by[origin] += 1


class PasswordHasher:
    """Hashes and compares passwords in the pool."""

    def __init__(self, parameters: HashParameters, pool: HashPool, randomness: Randomness) -> None:
        self._parameters = parameters
        self._pool = pool
        self._randomness = randomness
        self._dummy: str | None = None

    async def hash(self, password: bytes, origin: str | None = None) -> str:
        """A PHC string with a fresh salt."""
        return await self._pool.run(lambda: self._hash(password), origin)

    def hold(self, origin: str) -> Place:
        """Room for one comparison. Raises Overloaded at once when there is none."""
        return self._pool.hold(origin)

    async def matches(self, password: bytes, password_hash: str | None, place: Place) -> bool:
        """Whether *password* has this hash. None (an unknown name) costs the same and never matches."""
        if password_hash is None:
            await place.run(lambda: _matches(password, self._dummy_hash()))
            return False
        return await place.run(lambda: _matches(password, password_hash))

    def is_outdated(self, password_hash: str) -> bool:
        """Whether the hash was made at another cost than new ones are."""
        return not password_hash.startswith(self._parameters.phc_prefix())

    def prepare_dummy(self) -> None:
        """Make the hash that unknown names are compared with: a real one, of a secret that nobody knows."""
        self._dummy_hash()

    def _dummy_hash(self) -> str:
        if self._dummy is None:
            self._dummy = self._hash(self._randomness.token_bytes(32))
        return self._dummy

    def _hash(self, password: bytes) -> str:
        parameters = self._parameters
        argon2id = Argon2id(
            salt=self._randomness.token_bytes(_SALT_BYTES),
            length=_HASH_BYTES,
            iterations=parameters.iterations,
            lanes=parameters.lanes,
            memory_cost=parameters.memory_kib,
        )
        return argon2id.derive_phc_encoded(password)


def _matches(password: bytes, password_hash: str) -> bool:
    try:
        Argon2id.verify_phc_encoded(password, password_hash)
    except InvalidKey:
        return False
    return True


def _yield_to_everyone() -> None:
    # Linux gives each thread a priority of its own; elsewhere it belongs to the process and is left alone.
    if sys.platform == "linux":
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _LOWEST_PRIORITY)

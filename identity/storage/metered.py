"""Measures how long the database takes, whichever kind it is."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

from identity.domain.meters import Meter
from identity.storage.access import Access, Work
from identity_client.errors import DependencyDown, Overloaded

T = TypeVar("T")


class MeteredAccess:
    """See access.Access: the same, and *meter* is told."""

    def __init__(self, access: Access, meter: Meter) -> None:
        self._access = access
        self._meter = meter

    async def read(self, work: Work[T], *, is_long: bool = False) -> T:
        return await self._measured("read", self._access.read(work, is_long=is_long))

    async def look_up(self, work: Work[T]) -> T:
        return await self._measured("read", self._access.look_up(work))

    async def write(self, work: Work[T], *, is_long: bool = False) -> T:
        return await self._measured("write", self._access.write(work, is_long=is_long))

    async def issue(self, work: Work[T]) -> T:
        return await self._measured("write", self._access.issue(work))

    def set_doorbell(self, ring: Callable[[], None]) -> None:
        self._access.set_doorbell(ring)

    async def close(self) -> None:
        await self._access.close()

    async def _measured(self, kind: str, working: Awaitable[T]) -> T:
        began, is_failed = time.perf_counter(), False
        self._meter.store_began(kind)
        try:
            return await working
        except (DependencyDown, Overloaded):
            is_failed = True
            raise
        finally:
            self._meter.store_ended(kind, time.perf_counter() - began, is_failed=is_failed)

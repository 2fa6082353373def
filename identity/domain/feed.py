"""The way from a committed revocation to the peers, as use-cases see it."""

from __future__ import annotations

from typing import Protocol


class Feed(Protocol):
    """What has been committed reaches this replica's own trust state and its streams."""

    async def published(self, version: int | None) -> None:
        """Return once *version* is in force here and on its way to every stream; None returns at once.

        Never fails the act: it is committed already. Gives up waiting after a second.
        """

    async def keys_changed(self) -> None:
        """Return once the set of keys, as it is committed, is in force here and on its way to every stream.

        Never fails the act either: where the set cannot be read now, it is read again within a second.
        """

    async def set_back(self) -> None:
        """Somebody holds what we have never said, so the database was set back: begin a new epoch, and sound the alarm.

        At most once a minute; never fails the act.
        """

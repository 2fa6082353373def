"""Signing keys: how one follows another, by rule and by hand.

prepared -> active -> retired -> removed, and revoked from any. A prepared key is published before it signs, so that
every peer knows it by then; a retired one verifies until its last token has expired. The next key is prepared as soon
as there is none: when the active one has to be revoked, its successor is known everywhere.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import timedelta

from identity_client.clock import Clock
from identity_client.errors import AlreadyExists, FailedPrecondition, NotFound
from identity_client.tokens.keys import PublicKey, base64url

from .feed import Feed
from .ports import SigningKeyStore
from .values import Act, KeyState, Seconds, SigningKeyRecord

_log = logging.getLogger(__name__)

PEER_REFRESH_SECONDS = 300
"""The longest that whoever verifies goes by the keys it has fetched. Peers on the stream know a new one in a second;
readers of the JWKS document are told this as its max-age."""

PUBLISHED_SECONDS = 2 * PEER_REFRESH_SECONDS
"""How long a key is published before it signs."""

KEPT_SECONDS = 3_600 + 30 + 600
"""How long a retired or revoked key is kept: the longest lifetime of an access token, the widest leeway, and ten
minutes for clocks and for replicas that learn late."""

MAXIMUM_PUBLISHED = 16
"""The most keys that peers take in one set."""

_AUTOMATIC = Act(request_id="", origin="local")


def is_usable(key: SigningKeyRecord, now: Seconds) -> bool:
    """Whether a prepared key has been published for long enough."""
    return now >= usable_time(key)


def usable_time(key: SigningKeyRecord) -> Seconds:
    """From when on it is."""
    return Seconds(key.create_time + PUBLISHED_SECONDS)


def remove_time(key: SigningKeyRecord) -> Seconds | None:
    """When a key that is out of use is removed; None for one that is not."""
    out_since = max(filter(None, (key.retire_time, key.revoke_time)), default=None)
    return None if out_since is None else Seconds(out_since + KEPT_SECONDS)


@dataclass(frozen=True, slots=True)
class Prepare:
    """A successor is missing."""


@dataclass(frozen=True, slots=True)
class Activate:
    """The time of the prepared key has come."""

    key_id: str


def next_step(keys: Sequence[SigningKeyRecord], now: Seconds, lifetime: timedelta) -> Prepare | Activate | None:
    """What is due. *lifetime*: for how long a key signs."""
    active = _in_state(keys, KeyState.ACTIVE)
    prepared = _in_state(keys, KeyState.PREPARED)
    if prepared is None:
        return Prepare() if sum(key.is_published for key in keys) < MAXIMUM_PUBLISHED else None
    if active is None:
        return None  # the next start makes one
    since = active.create_time if active.activate_time is None else active.activate_time
    is_old = now >= since + lifetime.total_seconds()
    return Activate(prepared.key_id) if is_old and is_usable(prepared, now) else None


class SigningKeyKeeper:
    """Lists keys and moves them on. Several may run: what two do at once is done once, by the store's constraints."""

    def __init__(
        self,
        keys: SigningKeyStore,
        feed: Feed,
        make_key: Callable[[Seconds], SigningKeyRecord],
        lifetime: timedelta,
        clock: Clock,
    ) -> None:
        """*make_key* makes one of the given time. *lifetime*: for how long a key signs, zero for no rotation."""
        self._keys = keys
        self._feed = feed
        self._make_key = make_key
        self._lifetime = lifetime
        self._clock = clock

    async def list_all(self) -> list[SigningKeyRecord]:
        """Every key that is not removed, the oldest first."""
        return await self._keys.list_keys()

    async def prepare(self, act: Act) -> SigningKeyRecord:
        """Make and publish the next key. Raises SigningKeyAlreadyPrepared, TooManySigningKeys."""
        prepared = await self._keys.prepare(self._new_key(), act)
        await self._feed.keys_changed()
        return prepared

    async def activate(self, key_id: str, act: Act, *, force: bool = False) -> SigningKeyRecord:
        """Sign with the prepared key, and retire the one before.

        Raises SigningKeyNotFound, SigningKeyMisplaced, SigningKeyTooNew (unless *force*).
        """
        activated = await self._keys.activate(key_id, act, force=force)
        await self._feed.keys_changed()
        return activated

    async def retire(self, key_id: str, act: Act) -> SigningKeyRecord:
        """Withdraw a prepared key. Raises SigningKeyNotFound, SigningKeyMisplaced."""
        retired = await self._keys.retire(key_id, act)
        await self._feed.keys_changed()
        return retired

    async def revoke(self, key_id: str, note: str, act: Act) -> tuple[SigningKeyRecord, str]:
        """Refuse every token of a key, everywhere; -> the key, and the id of the active one.

        The active key's place is taken in the same transaction. Raises SigningKeyNotFound.
        """
        revoked, active_key_id, version = await self._keys.revoke(key_id, self._new_key(), note, act)
        await self._feed.keys_changed()
        await self._feed.published(version)
        return revoked, active_key_id

    async def tend(self) -> None:
        """Do what is due: prepare the next key, activate it, remove those that nothing needs any more."""
        has_removed = await self._keys.remove_old()
        if self._lifetime and await self._rotate():
            return
        if has_removed:
            await self._feed.keys_changed()

    async def _rotate(self) -> bool:
        try:
            match next_step(await self._keys.list_keys(), self._now(), self._lifetime):
                case Prepare():
                    prepared = await self.prepare(_AUTOMATIC)
                    _log.info("the next signing key is %s", prepared.key_id)
                case Activate(key_id):
                    await self.activate(key_id, _AUTOMATIC)
                    _log.info("tokens are signed with key %s from now on", key_id)
                case None:
                    return False
        except (AlreadyExists, FailedPrecondition, NotFound) as error:
            _log.info("the signing keys were moved on by another: %s", error.reason)
        return True

    def _new_key(self) -> SigningKeyRecord:
        return self._make_key(self._now())

    def _now(self) -> Seconds:
        return Seconds(int(self._clock.now()))


def jwks(keys: Iterable[PublicKey]) -> bytes:
    """The JWK Set of *keys* (RFC 7517 section 5; RFC 7518 section 6.2.1), in their order."""
    members = [
        {
            "kty": "EC",
            "use": "sig",
            "alg": "ES256",
            "kid": key.key_id,
            "crv": "P-256",
            "x": base64url(key.x),
            "y": base64url(key.y),
        }
        for key in keys
    ]
    return json.dumps({"keys": members}, separators=(",", ":")).encode("ascii")


def _in_state(keys: Sequence[SigningKeyRecord], state: KeyState) -> SigningKeyRecord | None:
    return next((key for key in keys if key.state is state), None)

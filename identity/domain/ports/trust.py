"""What peers trust by: keys that sign, and what is revoked; and who of several replicas does a piece of work."""

from __future__ import annotations

from typing import Protocol

from identity_client.tokens.claims import Claims
from identity_client.trust.entries import Batch, Entry, EntryKind

from ..grants import (
    TokenStatus,
)
from ..values import (
    Act,
    SigningKeyRecord,
    Standing,
    TokenIdentity,
)


class Signer(Protocol):
    """A private key in use; the key itself never leaves it."""

    @property
    def key_id(self) -> str:
        """The RFC 7638 thumbprint of its public half."""

    def sign(self, claims: Claims) -> str:
        """The token's text. *claims* name this key."""


class SigningKeyStore(Protocol):
    """The service's own keys."""

    async def add_active(self, key: SigningKeyRecord, act: Act) -> SigningKeyRecord:
        """Insert as the active key unless there is one; -> the active key, whoever won."""

    async def list_keys(self) -> list[SigningKeyRecord]:
        """Every key that is not removed, the oldest first."""

    async def prepare(self, key: SigningKeyRecord, act: Act) -> SigningKeyRecord:
        """Insert as the prepared key. Raises SigningKeyAlreadyPrepared, TooManySigningKeys; RequestIdReused, and
        SigningKeyNotFound where a repeat comes after the key was removed.
        """

    async def activate(self, key_id: str, act: Act, *, force: bool) -> SigningKeyRecord:
        """Make the prepared key the active one, and retire that; the active one stays as it is.

        Raises SigningKeyNotFound, SigningKeyMisplaced, SigningKeyTooNew (unless *force*).
        """

    async def retire(self, key_id: str, act: Act) -> SigningKeyRecord:
        """Retire a prepared key; a retired one stays as it is. Raises SigningKeyNotFound, SigningKeyMisplaced."""

    async def revoke(
        self, key_id: str, spare: SigningKeyRecord, note: str, act: Act
    ) -> tuple[SigningKeyRecord, str, int | None]:
        """Revoke a key, and append it to the feed; a revoked one stays as it is. The active key's place is taken by
        the prepared one, or by *spare* where none is.

        -> the key, the id of the active one, the feed's version. Raises SigningKeyNotFound.
        """

    async def remove_old(self) -> bool:
        """Remove the keys whose last token has expired; whether there were any."""


class RevocationStore(Protocol):
    """Revoked tokens, and the feed that peers follow."""

    async def revoke_token(self, token: TokenIdentity, expire_time: int, note: str, act: Act) -> int | None:
        """Record a jti until its expiry; -> feed version, None if it was recorded before or is past.

        Where holders (an act without a caller) revoke too many tokens of one grant, a session is ended instead; where
        the account's holder has ended too much besides, its generation is raised instead, and its sessions end (see
        GrantStore). Of a credential, either raises Overloaded.
        """

    async def standings(self, tokens: list[TokenIdentity]) -> list[Standing]:
        """Judge by the rows alone: grant, account, generation, jti and key."""

    async def find_status(self, token: TokenIdentity) -> TokenStatus:
        """What was taken back of a token besides its grant."""

    async def list_page(self, kind: EntryKind | None, below: int | None, limit: int) -> list[tuple[int, Entry]]:
        """At most *limit* live entries with versions less than *below*, the newest first."""

    async def entries_since(self, version: int, limit: int) -> list[tuple[int, Entry]]:
        """(version, entry) with versions greater than *version*, in order and without gaps."""

    async def head(self) -> tuple[str, int]:
        """(epoch, version) of the feed."""

    async def live_entries(self) -> tuple[str, int, list[Batch]]:
        """(epoch, version, every entry not yet expired, in any order, a few thousand a batch), read at one instant."""


class LeaseStore(Protocol):
    """Leases of jobs that one replica at a time should do. They spare work and nothing else: a replica that was held
    up may go on after its lease, so what a job does must be safe when two do it at once.
    """

    async def take(self, name: str, holder: str, seconds: float) -> bool:
        """Take the lease *name*, or renew one's own; whether *holder* has it for some time from now."""

    async def release(self, holder: str) -> None:
        """Give back every lease of *holder*, which stops."""

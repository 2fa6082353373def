"""What use-cases need from the outside. Each store method is one transaction: wholly done and durable when it returns.

A method that acts for an administrator takes an Act whose caller is confirmed in the same transaction: the caller's
grant live, their account enabled and of the same generation, their token not revoked, the required scope still granted
by their roles; else TokenRevoked, TokenOutdated or PermissionMissing and nothing is changed. Each writes its audit row
in that transaction, too. Every method raises DependencyDown when the store does not answer.
"""

from __future__ import annotations

from typing import Protocol

from identity_client.tokens.claims import Claims
from identity_client.trust.entries import Batch, Entry

from .values import (
    Account,
    AccountRef,
    Act,
    Ended,
    EndReason,
    GrantSnapshot,
    NewAccount,
    NewClientSecret,
    NewSession,
    PasswordRecord,
    SecretRecord,
    SessionRecord,
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


class AccountStore(Protocol):
    """Accounts, and the password of a user."""

    async def create(self, account: NewAccount, secret: NewClientSecret | None, act: Act) -> Account:
        """Insert. *secret* is a service's first one. Raises AccountAlreadyExists."""

    async def get(self, ref: AccountRef) -> Account:
        """Raises AccountNotFound."""

    async def list_page(self, after_username: str, limit: int) -> list[Account]:
        """At most *limit* accounts whose normalised username is greater than *after_username*, in that order."""

    async def set_roles(self, ref: AccountRef, roles: tuple[str, ...], act: Act) -> tuple[Account, int | None]:
        """Replace the roles; a real change raises the generation and is a feed entry. -> account, feed version."""

    async def disable(self, ref: AccountRef, act: Act) -> tuple[Account, int | None]:
        """Disable, raise the generation, end the sessions (EndReason.ACCOUNT_DISABLED). Idempotent."""

    async def enable(self, ref: AccountRef, act: Act) -> Account:
        """Enable. Idempotent."""

    async def find_password(self, normalised_username: str) -> PasswordRecord | None:
        """What a login by password compares with."""

    async def replace_hash(self, account_id: str, old_hash: str, new_hash: str) -> None:
        """Store the same password under another hash, where the old one still stands; no other change."""

    async def is_audience(self, name: str) -> bool:
        """Whether a service account has this username."""


class GrantStore(Protocol):
    """Sessions and machine credentials: whatever tokens hang off."""

    async def open_session(self, session: NewSession, act: Act) -> GrantSnapshot:
        """Insert a session if the account is enabled and its credential version unchanged.

        Raises BadCredentials (changed meanwhile; nothing inserted), ScopeNotGranted.
        """

    async def find_secret(self, grant_id: str) -> SecretRecord | None:
        """What a login by client secret compares with."""

    async def use_secret(
        self, grant_id: str, audience: str, requested_scopes: tuple[str, ...], access_lifetime: int, act: Act
    ) -> GrantSnapshot:
        """Note that an access token is issued. Raises BadCredentials (no longer live), ScopeNotGranted."""

    async def find_session(self, grant_id: str) -> SessionRecord | None:
        """The session row as it stands, ended and expired ones included."""

    async def rotate(
        self, session: SessionRecord, grace_lifetime: int, access_lifetime: int, act: Act
    ) -> GrantSnapshot | None:
        """Move the count on by one where id, count and liveness still hold as read; None where they do not.

        Also sets grace_until = now + grace_lifetime and extends the idle expiry. Raises BadCredentials when the
        account is disabled.
        """

    async def repeat(self, session: SessionRecord, access_lifetime: int, act: Act) -> GrantSnapshot | None:
        """Issue fresh access for the newest count again, where count and liveness still hold; audited as a repeat."""

    async def end(self, grant_id: str, reason: EndReason, note: str, act: Act) -> Ended:
        """End one grant. Raises GrantNotFound; a grant ended before answers Ended(0, None)."""

    async def end_all(self, ref: AccountRef, note: str, act: Act) -> Ended:
        """End every grant of an account and raise its generation. Raises AccountNotFound."""


class RevocationStore(Protocol):
    """Revoked tokens, and the feed that peers follow."""

    async def revoke_token(self, token: TokenIdentity, expire_time: int, note: str, act: Act) -> int | None:
        """Record a jti until its expiry; -> feed version, None if it was recorded before or is past."""

    async def standings(self, tokens: list[TokenIdentity]) -> list[Standing]:
        """Judge by the rows alone: grant, account, generation, jti and key."""

    async def entries_since(self, version: int, limit: int) -> list[tuple[int, Entry]]:
        """(version, entry) with versions greater than *version*, in order and without gaps."""

    async def live_entries(self) -> tuple[str, int, list[Batch]]:
        """(epoch, version, every entry not yet expired, in any order, a few thousand a batch), read at one instant."""


class SigningKeyStore(Protocol):
    """The service's own keys."""

    async def add_active(self, key: SigningKeyRecord) -> SigningKeyRecord:
        """Insert as the active key unless there is one; -> the active key, whoever won."""

    async def list_keys(self) -> list[SigningKeyRecord]:
        """Every key that is not removed."""


class AuditStore(Protocol):
    """The audit log."""

    async def note_refusal(self, action: str, reason: str, name_digest: str, act: Act) -> None:
        """Record a refused attempt: at most one row per name, origin, reason and minute."""

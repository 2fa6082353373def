"""Accounts, and the roles that they hold."""

from __future__ import annotations

from typing import Protocol

from ..grants import (
    NewCredential,
)
from ..values import (
    EVERY_ACCOUNT,
    Account,
    AccountChange,
    AccountFilter,
    AccountRef,
    Act,
    Ended,
    NewAccount,
    PasswordRecord,
    Role,
    RoleChange,
)


class AccountStore(Protocol):
    """Accounts, and the password of a user."""

    async def create(self, account: NewAccount, credential: NewCredential | None, act: Act) -> Account:
        """Insert. *credential* is a service's first one.

        A repeat answers the account as it is now. Raises AccountAlreadyExists, UnknownRole, RequestIdReused,
        SecretAlreadyShown (a repeat with a credential), AccountNotFound (a repeat, and it is gone).
        """

    async def get(self, ref: AccountRef) -> Account:
        """Raises AccountNotFound."""

    async def list_page(self, after_username: str, limit: int, which: AccountFilter = EVERY_ACCOUNT) -> list[Account]:
        """At most *limit* accounts whose normalised username is greater than *after_username*, in that order."""

    async def update(self, ref: AccountRef, change: AccountChange, act: Act) -> Account:
        """Change a user. Raises AccountNotFound, InvalidRequest (a service), AccountAlreadyExists."""

    async def delete(self, ref: AccountRef, note: str, act: Act) -> Ended:
        """Remove the account, its grants and all that is personal; its tokens are outdated.

        Raises AccountNotFound, LastAdmin.
        """

    async def set_password(
        self, ref: AccountRef, password_hash: str, is_change_required: bool, act: Act
    ) -> tuple[Account, Ended]:
        """Replace a user's hash, end all sessions, raise credential version and generation.

        Raises AccountNotFound, InvalidRequest (a service).
        """

    async def set_roles(self, ref: AccountRef, roles: tuple[str, ...], act: Act) -> tuple[Account, int | None]:
        """Replace the roles; a real change raises the generation and is a feed entry. -> account, feed version.

        Raises AccountNotFound, UnknownRole, LastAdmin.
        """

    async def disable(self, ref: AccountRef, act: Act) -> tuple[Account, int | None]:
        """Disable, raise the generation, end the sessions (EndReason.ACCOUNT_DISABLED). Idempotent.

        Raises AccountNotFound, LastAdmin.
        """

    async def enable(self, ref: AccountRef, act: Act) -> Account:
        """Enable. Idempotent."""

    async def find_password(self, normalised_username: str) -> PasswordRecord | None:
        """What a login by password compares with."""

    async def replace_hash(self, account_id: str, old_hash: str, new_hash: str) -> None:
        """Store the same password under another hash, where the old one still stands; no other change."""

    async def note_challenge(self, account_id: str, act: Act) -> None:
        """Audit that a right password was answered with a challenge."""

    async def is_audience(self, name: str) -> bool:
        """Whether a service account has this username."""


class RoleStore(Protocol):
    """Roles. Every change moves the policy version."""

    async def create(self, name: str, scopes: tuple[str, ...], description: str, act: Act) -> Role:
        """A repeat answers the role as it is now. Raises RoleAlreadyExists, RequestIdReused, RoleNotFound."""

    async def get(self, name: str) -> Role:
        """Raises RoleNotFound."""

    async def list_page(self, after_name: str, limit: int) -> list[Role]:
        """At most *limit* roles whose name is greater than *after_name*, in that order."""

    async def update(self, name: str, change: RoleChange, act: Act) -> tuple[Role, int | None]:
        """Change; where a scope is taken away, tokens of an older policy that carry the role are outdated, by one feed
        entry. -> role, feed version. Raises RoleNotFound, RoleBuiltIn.
        """

    async def delete(self, name: str, act: Act) -> None:
        """Raises RoleNotFound, RoleBuiltIn, RoleInUse."""

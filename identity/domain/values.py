"""The nouns that use-cases and stores exchange. Times are whole Unix seconds, ids 22 characters of base64url."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import NewType

Seconds = NewType("Seconds", int)

FIRST_PARTY = "first-party"
"""The client_id of a person's own log-in, without a client between; no service may have this name."""


class AccountKind(enum.StrEnum):
    USER = "user"
    SERVICE = "service"


class EndReason(enum.StrEnum):
    """Why a grant ended, as stored and audited."""

    REVOKED = "revoked"
    REFRESH_REUSED = "refresh_reused"
    ACCOUNT_DISABLED = "account_disabled"
    ACCOUNT_REVOKED = "account_revoked"
    PASSWORD_CHANGED = "password_changed"  # noqa: S105 - a reason, not a password
    LOGGED_OUT = "logged_out"
    EXPIRED = "expired"
    TOO_MANY_ENDED = "too_many_ended"


@dataclass(frozen=True, slots=True)
class AccountRef:
    """Names an account by exactly one of its id and its (not yet normalised) username."""

    account_id: str | None = None
    username: str | None = None


@dataclass(frozen=True, slots=True)
class Account:
    """A user or a service as an administrator sees it."""

    account_id: str
    kind: AccountKind
    username: str
    roles: tuple[str, ...]
    generation: int
    create_time: Seconds
    update_time: Seconds
    disable_time: Seconds | None
    password_change_required: bool = False


@dataclass(frozen=True, slots=True)
class NewAccount:
    """An account to insert; *password_hash* is None for a service."""

    account_id: str
    kind: AccountKind
    username: str  # as shown
    normalised_username: str  # as compared; unique
    roles: tuple[str, ...]
    password_hash: str | None = None
    password_change_required: bool = False


@dataclass(frozen=True, slots=True)
class AccountChange:
    """New values; None leaves the old one."""

    username: str | None = None  # as shown
    normalised_username: str | None = None  # as compared
    password_change_required: bool | None = None


@dataclass(frozen=True, slots=True)
class AccountFilter:
    """Which accounts to list; None and "" admit all."""

    kind: AccountKind | None = None
    role: str = ""
    is_disabled: bool | None = None
    username_prefix: str = ""  # normalised


EVERY_ACCOUNT = AccountFilter()


@dataclass(frozen=True, slots=True)
class Role:
    """A role as an administrator sees it."""

    name: str
    scopes: tuple[str, ...]
    description: str
    is_built_in: bool
    create_time: Seconds
    update_time: Seconds


@dataclass(frozen=True, slots=True)
class RoleChange:
    """New values; None leaves the old one."""

    scopes: tuple[str, ...] | None = None
    description: str | None = None


@dataclass(frozen=True, slots=True)
class PasswordRecord:
    """What a password login reads before it hashes."""

    account_id: str
    password_hash: str
    credential_version: int
    is_enabled: bool
    password_change_required: bool


@dataclass(frozen=True, slots=True)
class PasswordChange:
    """Another password for an account whose credential version is still as read."""

    account_id: str
    credential_version: int
    password_hash: str


@dataclass(frozen=True, slots=True)
class TokenIdentity:
    """The ids inside a token, without its text."""

    token_id: str
    grant_id: str
    account_id: str
    generation: int
    policy_version: int
    key_id: str
    roles: tuple[str, ...]


class Standing(enum.Enum):
    """How the database sees a token."""

    LIVE = "live"
    REVOKED = "revoked"
    OUTDATED = "outdated"


@dataclass(frozen=True, slots=True)
class Caller:
    """The grant that someone acts with; confirmed live in the transaction of the act."""

    account_id: str
    grant_id: str
    token_id: str  # "" for a session token or API key
    generation: int
    required_scope: str  # "" where being the account itself is enough


@dataclass(frozen=True, slots=True)
class Once:
    """A request that acts once however often it is sent: its name, chosen by the caller, and what was asked for."""

    name: str
    method: str
    digest: bytes


@dataclass(frozen=True, slots=True)
class Act:
    """Who does something and from where: what the audit row of a use-case says besides its outcome."""

    request_id: str
    origin: str  # the caller's address without its port; "" when unknown
    caller: Caller | None = None
    user_agent: str = ""  # what the caller's program calls itself
    once: Once | None = None


@dataclass(frozen=True, slots=True)
class Ended:
    """The outcome of a revocation: the grants that fell, and the version that tells peers (None: nobody is told)."""

    grant_count: int
    version: int | None
    is_caller_among: bool = False  # one of them was the caller's own, where many fall at once


class KeyState(enum.StrEnum):
    """Where in its life a signing key is: see domain.signing_keys."""

    PREPARED = "prepared"
    ACTIVE = "active"
    RETIRED = "retired"
    REVOKED = "revoked"


@dataclass(frozen=True, slots=True)
class SigningKeyRecord:
    """A signing key as stored: the public half in the clear, the private half sealed, and gone once it is not to sign
    any more."""

    key_id: str
    state: KeyState
    public_x: bytes
    public_y: bytes
    sealed_private_key: bytes = field(repr=False)
    create_time: Seconds  # when it was published, too
    activate_time: Seconds | None = None
    retire_time: Seconds | None = None
    revoke_time: Seconds | None = None

    @property
    def is_published(self) -> bool:
        """Whether its tokens, if there are any, are to be accepted."""
        return self.state is not KeyState.REVOKED

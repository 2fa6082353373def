"""The nouns that use-cases and stores exchange. Times are whole Unix seconds, ids 22 characters of base64url."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import NewType

Seconds = NewType("Seconds", int)

FIRST_PARTY = "first-party"
"""The client_id of a person's own log-in, without a client between; no service may have this name."""


class AccountKind(enum.StrEnum):
    USER = "user"
    SERVICE = "service"


class GrantKind(enum.StrEnum):
    SESSION = "session"
    CLIENT_SECRET = "client_secret"  # noqa: S105 - the name of a kind, not a secret


class EndReason(enum.StrEnum):
    """Why a grant ended, as stored and audited."""

    REVOKED = "revoked"
    REFRESH_REUSED = "refresh_reused"
    ACCOUNT_DISABLED = "account_disabled"
    ACCOUNT_REVOKED = "account_revoked"


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


@dataclass(frozen=True, slots=True)
class NewAccount:
    """An account to insert; *password_hash* is None for a service."""

    account_id: str
    kind: AccountKind
    username: str  # as shown
    normalised_username: str  # as compared; unique
    roles: tuple[str, ...]
    password_hash: str | None


@dataclass(frozen=True, slots=True)
class NewClientSecret:
    """A client secret to insert: the id in its text, and the SHA-256 of its random part."""

    grant_id: str
    secret_hash: bytes


@dataclass(frozen=True, slots=True)
class PasswordRecord:
    """What a password login reads before it hashes."""

    account_id: str
    password_hash: str
    credential_version: int
    is_enabled: bool


@dataclass(frozen=True, slots=True)
class SecretRecord:
    """What a client secret login reads before it compares."""

    account_id: str
    normalised_username: str
    secret_hash: bytes
    is_live: bool  # neither ended nor expired, and its account enabled


@dataclass(frozen=True, slots=True)
class SessionTerms:
    """How long a new session may live, in seconds."""

    idle_lifetime: int
    absolute_lifetime: int


@dataclass(frozen=True, slots=True)
class NewSession:
    """A session to insert, if the credential it was born from still holds."""

    grant_id: str
    account_id: str
    credential_version: int
    audience: str
    requested_scopes: tuple[str, ...]  # empty: all that the roles grant
    refresh_salt: bytes | None  # None: the session has no refresh token
    access_lifetime: int
    terms: SessionTerms


@dataclass(frozen=True, slots=True)
class GrantSnapshot:
    """One grant and its account at one instant, read by the statement that wrote: all that a token is made of."""

    grant_id: str
    account_id: str
    client_id: str
    audience: str
    scopes: tuple[str, ...]
    roles: tuple[str, ...]
    generation: int
    policy_version: int
    issue_time: Seconds  # the time of that statement: iat
    authentication_time: Seconds | None
    authentication_methods: tuple[str, ...]
    refresh_expire_time: Seconds | None = None  # min(now + idle, absolute) for a session with a refresh token


@dataclass(frozen=True, slots=True)
class SessionRecord:
    """What Refresh reads before it decides."""

    grant_id: str
    account_id: str
    count: int  # the rotation count: the count of the newest refresh token
    salt: bytes
    grace_until: Seconds  # until then the token before the newest may be repeated
    expire_time: Seconds  # min(last use + idle, login + absolute)
    end_time: Seconds | None


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
    """The grant that an administrator acts with; confirmed live in the transaction of the act."""

    account_id: str
    grant_id: str
    token_id: str
    generation: int
    required_scope: str


@dataclass(frozen=True, slots=True)
class Act:
    """Who does something and from where: what the audit row of a use-case says besides its outcome."""

    request_id: str
    origin: str  # the caller's address without its port; "" when unknown
    caller: Caller | None = None


@dataclass(frozen=True, slots=True)
class Ended:
    """The outcome of a revocation: the grants that fell, and the version that tells peers (None: nobody is told)."""

    grant_count: int
    version: int | None


class KeyState(enum.StrEnum):
    ACTIVE = "active"
    RETIRED = "retired"
    REVOKED = "revoked"


@dataclass(frozen=True, slots=True)
class SigningKeyRecord:
    """A signing key as stored: the public half in the clear, the private half sealed."""

    key_id: str
    state: KeyState
    public_x: bytes
    public_y: bytes
    sealed_private_key: bytes
    create_time: Seconds

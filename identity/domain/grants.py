"""The nouns of grants: sessions and machine credentials, whatever tokens hang off."""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass, field
from ipaddress import IPv4Network, IPv6Network

from .values import AccountRef, Seconds


class GrantKind(enum.StrEnum):
    SESSION = "session"
    CLIENT_SECRET = "client_secret"  # noqa: S105 - the name of a kind, not a secret
    API_KEY = "api_key"
    PUBLIC_KEY = "public_key"
    CERTIFICATE = "certificate"


class ApiKeyUse(enum.StrEnum):
    """What an API key is good for: never both."""

    EXCHANGE = "exchange"  # Authenticate takes it
    BEARER = "bearer"  # peers take it, and introspect it


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
    idle_expire_time: Seconds | None = None  # of a session: min(now + idle, absolute)
    absolute_expire_time: Seconds | None = None
    latest_expire_time: int | None = None  # what is issued now must expire by then: the grant itself does
    certificate_thumbprint: str = ""
    actors: tuple[str, ...] = ()
    is_limited: bool = False  # to the scopes that were asked for: its roles open nothing


@dataclass(frozen=True, slots=True)
class Derivation:
    """Another token of a grant: of which subject token (token_id is empty for an opaque one), and for whom.

    *is_own*: the account itself asks, so that the audiences of its credential bind it.
    """

    grant_id: str
    token_id: str
    generation: int
    access_lifetime: int
    audience: str
    is_own: bool


Admit = Callable[[GrantSnapshot], None]
"""Called with a snapshot inside the transaction that issues: what it raises undoes that transaction."""


# -- sessions ------------------------------------------------------------------------------------------------------


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
    audiences: tuple[str, ...]
    requested_scopes: tuple[str, ...]  # empty: all that the roles grant
    access_lifetime: int
    terms: SessionTerms
    refresh_salt: bytes | None = None  # None: the session has no refresh token
    token_hash: bytes | None = None  # None: the session has no session token


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
class Session:
    """A live session as its account sees it."""

    session_id: str
    account_id: str
    is_opaque: bool
    has_refresh: bool
    audiences: tuple[str, ...]
    create_time: Seconds
    last_used_time: Seconds
    idle_expire_time: Seconds
    absolute_expire_time: Seconds
    ip_address: str
    user_agent: str


@dataclass(frozen=True, slots=True)
class SessionFilter:
    """Which sessions: all conditions that are given hold together; none is everyone's."""

    account: AccountRef | None = None
    issued_before: int | None = None
    origin: IPv4Network | IPv6Network | None = None

    def __str__(self) -> str:
        account = "" if self.account is None else f"account={self.account.account_id}"
        before = "" if self.issued_before is None else f"issued_before={self.issued_before}"
        origin = "" if self.origin is None else f"origin={self.origin}"
        return " ".join(filter(None, (account, before, origin))) or "all"


Place = tuple[str, int, str]
"""Where a walk through the sessions of all accounts stands: account id, time of creation, grant id."""


@dataclass(frozen=True, slots=True)
class SessionPart:
    """The sessions behind one place, up to another one; None: from the beginning, to the end.

    *addresses* are those among them that a filter's network holds, where it has one.
    """

    after: Place | None
    through: Place | None
    addresses: tuple[str, ...] | None = None


# -- credentials ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class CredentialTerms:
    """What a credential is limited by. Nothing named: no limit."""

    display_name: str = ""
    audiences: tuple[str, ...] = ()
    scopes: tuple[str, ...] = ()
    expire_time: int | None = None


@dataclass(frozen=True, slots=True)
class NewCredential:
    """A credential to insert. *lookup_name* names it where no id is presented; only one live credential may have it."""

    grant_id: str
    kind: GrantKind
    terms: CredentialTerms = CredentialTerms()
    secret_hash: bytes | None = None
    use: ApiKeyUse | None = None
    lookup_name: str | None = None
    public_key: tuple[bytes, bytes] | None = None  # x and y


@dataclass(frozen=True, slots=True)
class Credential:
    """A live credential as administrators see it."""

    grant_id: str
    account_id: str
    kind: GrantKind
    terms: CredentialTerms
    create_time: Seconds
    last_used_time: Seconds | None
    use: ApiKeyUse | None
    lookup_name: str | None


@dataclass(frozen=True, slots=True)
class CredentialRecord:
    """What a machine's log-in compares with."""

    grant_id: str
    kind: GrantKind
    normalised_username: str
    is_live: bool  # neither ended nor expired, and its account enabled
    audiences: tuple[str, ...]
    secret_hash: bytes | None = field(repr=False)
    use: ApiKeyUse | None
    public_key: tuple[bytes, bytes] | None


@dataclass(frozen=True, slots=True)
class UsedAssertion:
    """An assertion that must not be used again before it expires (RFC 7523 section 3, jti)."""

    assertion_hash: bytes
    expire_time: int


@dataclass(frozen=True, slots=True)
class CredentialUse:
    """A machine's log-in that was proved: for which token."""

    audience: str
    requested_scopes: tuple[str, ...]
    access_lifetime: int
    assertion: UsedAssertion | None = None


Prove = Callable[[CredentialRecord | None], CredentialUse]
"""Called with a credential, None if there is none of the id, inside the transaction that issues: what it raises
undoes that transaction. It judges whether the credential is live, and may be called again."""


# -- bearers -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class BearerRecord:
    """A session token or an API key for bearer use as it stands: what its introspection says, if its secret fits."""

    kind: GrantKind
    secret_hash: bytes = field(repr=False)
    audiences: tuple[str, ...]
    snapshot: GrantSnapshot  # of no audience yet
    expire_time: int | None
    is_live: bool
    last_used_time: int | None


# -- explanations --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class GrantStatus:
    """Everything about a grant and its account that decides whether a text of it is good."""

    kind: GrantKind
    snapshot: GrantSnapshot  # as it would be issued now
    audiences: tuple[str, ...]
    secret_hash: bytes | None = field(repr=False)
    use: ApiKeyUse | None
    create_time: Seconds
    expire_time: int | None
    end_time: int | None
    end_reason: str
    is_account_disabled: bool


@dataclass(frozen=True, slots=True)
class TokenStatus:
    """What was taken back of an access token besides its grant."""

    is_revoked: bool
    is_key_revoked: bool
    outdated_roles: tuple[str, ...]  # narrowed since it was issued, or gone

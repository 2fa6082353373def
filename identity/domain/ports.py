"""What use-cases need from the outside. Each store method is one transaction: wholly done and durable when it returns.

A method that acts for an administrator takes an Act whose caller is confirmed in the same transaction: the caller's
grant live, their account enabled and of the same generation, their token not revoked, the required scope still granted
by their roles; else TokenRevoked, TokenOutdated or PermissionMissing and nothing is changed. Each writes its audit row
in that transaction, too. Every method raises DependencyDown when the store does not answer.
"""

from __future__ import annotations

from typing import Protocol

from identity_client.tokens.claims import Claims
from identity_client.trust.entries import Batch, Entry, EntryKind

from .audit_events import AuditFilter, AuditPage
from .audit_seals import Seal, SealedRow, SealHead
from .grants import (
    Admit,
    BearerRecord,
    Credential,
    CredentialRecord,
    Derivation,
    GrantKind,
    GrantSnapshot,
    GrantStatus,
    NewCredential,
    NewSession,
    Place,
    Prove,
    Session,
    SessionFilter,
    SessionPart,
    SessionRecord,
    TokenStatus,
)
from .throttle import Attempt, Reservation
from .values import (
    EVERY_ACCOUNT,
    Account,
    AccountChange,
    AccountFilter,
    AccountRef,
    Act,
    Ended,
    EndReason,
    NewAccount,
    PasswordChange,
    PasswordRecord,
    Role,
    RoleChange,
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


class SessionStore(Protocol):
    """Sessions: log-ins of accounts. A live one has neither ended nor expired, and its account is enabled.

    *admit* is called inside the transaction with the snapshot that it will answer; what it raises undoes everything.
    """

    async def open(self, session: NewSession, admit: Admit, act: Act) -> GrantSnapshot:
        """Insert a session if the account is enabled and its credential version unchanged.

        Raises BadCredentials (changed meanwhile; nothing inserted), ScopeNotGranted.
        """

    async def change_password(
        self, change: PasswordChange, session: NewSession, admit: Admit, act: Act
    ) -> tuple[GrantSnapshot, int | None]:
        """Replace the hash where the credential version is still as read, end all sessions, raise the generation,
        insert *session*. -> its snapshot, feed version. Raises BadCredentials (changed meanwhile), ScopeNotGranted.
        """

    async def find(self, grant_id: str) -> SessionRecord | None:
        """The row of a session with a refresh token as it stands, ended and expired ones included."""

    async def rotate(
        self, session: SessionRecord, grace_lifetime: int, access_lifetime: int, admit: Admit, act: Act
    ) -> GrantSnapshot | None:
        """Move the count on by one where id, count and liveness still hold as read; None where they do not.

        Also sets grace_until = now + grace_lifetime and extends the idle expiry. Raises SessionEnded when the account
        is disabled.
        """

    async def repeat(
        self, session: SessionRecord, access_lifetime: int, admit: Admit, act: Act
    ) -> GrantSnapshot | None:
        """Issue fresh access for the newest count again, where count and liveness still hold; audited as a repeat."""

    async def get(self, account_id: str, grant_id: str) -> Session:
        """A live session of this account. Raises GrantNotFound."""

    async def list_page(self, account_id: str, before: tuple[int, str] | None, limit: int) -> list[Session]:
        """At most *limit* live sessions by (create_time, grant_id), descending, below *before*."""


class CredentialStore(Protocol):
    """Machine credentials. A live one has neither ended nor expired, and its account is enabled."""

    async def create(self, ref: AccountRef, credential: NewCredential, act: Act) -> Credential:
        """Insert. An expired one of the same lookup name makes way. A repeat answers the credential as it is now.

        Raises AccountNotFound, InvalidRequest (the account is a user, and the kind is for services), ScopeNotGranted
        (the account's roles do not grant it now), CredentialAlreadyExists, RequestIdReused, SecretAlreadyShown (a
        repeat, and the credential has a secret), GrantNotFound (a repeat, and it is gone).
        """

    async def list_page(self, ref: AccountRef, before: tuple[int, str] | None, limit: int) -> list[Credential]:
        """At most *limit* credentials that have neither ended nor expired, by (create_time, grant_id), descending,
        below *before*. Raises AccountNotFound.
        """

    async def find_by_name(self, kind: GrantKind, lookup_name: str) -> CredentialRecord | None:
        """The credential that is not ended and has this lookup name."""

    async def use(self, grant_id: str, prove: Prove, admit: Admit, action: str, act: Act) -> GrantSnapshot:
        """Note that an access token is issued, if *prove* has nothing against it. *action* names the log-in in the
        audit log.

        Raises BadCredentials (not live, or the assertion was used before), ScopeNotGranted.
        """


class BearerStore(Protocol):
    """Session tokens and API keys for bearer use, as they are introspected."""

    async def find_bearer(self, grant_id: str) -> BearerRecord | None:
        """Scopes and roles live; None for another kind of grant."""

    async def touch(self, grant_id: str) -> None:
        """Note the use of a live grant, and extend a session's idle expiry."""


class GrantStore(Protocol):
    """What is common to sessions and credentials: they end, and everything that hangs off them with them.

    Where the holder of a grant (an act without a caller, or of the same account) ends too many within a short time,
    end, end_session and end_credential end every session of the account beside it, and raise its generation: so one
    account cannot fill the feed. Ended counts them all.
    """

    async def derive(self, derivation: Derivation, admit: Admit, act: Act) -> GrantSnapshot:
        """Note that another access token of a grant is issued, on behalf of *act*'s caller; -> all that it grants now.

        Raises TokenRevoked (ended, expired or disabled), TokenOutdated (another generation).
        """

    async def find_secret_hash(self, grant_id: str) -> bytes | None:
        """The hash of the grant's secret, if it has one."""

    async def end(self, grant_id: str, reason: EndReason, note: str, act: Act) -> Ended:
        """End one grant. Raises GrantNotFound; a grant ended before answers Ended(0, None)."""

    async def end_session(self, account_id: str, grant_id: str, reason: EndReason, act: Act) -> Ended:
        """End a live session of this account. Raises GrantNotFound."""

    async def end_sessions(self, account_id: str, reason: EndReason, act: Act) -> Ended:
        """End every session of an account and raise its generation."""

    async def end_credential(self, grant_id: str, reason: EndReason, note: str, act: Act) -> Ended:
        """As end, for credentials only. Raises GrantNotFound."""

    async def end_all(self, ref: AccountRef, note: str, act: Act) -> Ended:
        """End every grant of an account and raise its generation. Raises AccountNotFound."""

    async def find_status(self, grant_id: str) -> GrantStatus | None:
        """The grant as it stands, ended and expired ones included. Notes no use."""


class SessionSelection(Protocol):
    """Live sessions of any number of accounts, in parts that hold nobody up. A filter names its account by id."""

    async def next_part(self, which: SessionFilter, after: Place | None, limit: int) -> SessionPart:
        """The next *limit* sessions, of which a filter's network may admit fewer."""

    async def count(self, which: SessionFilter, part: SessionPart) -> int:
        """How many sessions of the part *which* admits."""

    async def end(self, which: SessionFilter, part: SessionPart, note: str, act: Act, *, confirm: bool) -> Ended:
        """End the sessions of the part that *which* admits.

        *confirm*: whether the caller is confirmed; a part of an act may end the caller's own session, and tells so.
        """


class Sweeper(Protocol):
    """Removes rows that nothing asks for any more."""

    async def sweep(self, after: str, limit: int) -> str:
        """Look at *limit* grants after the id *after*; remove those ended or expired for a day, and at most *limit*
        expired revocations, assertions, requests and counters of log-ins. -> the id to go on after, "" at the end.
        """


class RevocationStore(Protocol):
    """Revoked tokens, and the feed that peers follow."""

    async def revoke_token(self, token: TokenIdentity, expire_time: int, note: str, act: Act) -> int | None:
        """Record a jti until its expiry; -> feed version, None if it was recorded before or is past.

        Where holders (an act without a caller) revoke too many tokens of one grant, a session is ended instead; of a
        credential raises Overloaded. Where the account's holder has ended too much besides, its generation is raised
        instead, and its sessions end (see GrantStore).
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


class LeaseStore(Protocol):
    """Leases of jobs that one replica at a time should do. They spare work and nothing else: a replica that was held
    up may go on after its lease, so what a job does must be safe when two do it at once.
    """

    async def take(self, name: str, holder: str, seconds: float) -> bool:
        """Take the lease *name*, or renew one's own; whether *holder* has it for some time from now."""

    async def release(self, holder: str) -> None:
        """Give back every lease of *holder*, which stops."""


class AuditStore(Protocol):
    """The audit log: what was refused goes in, everything comes out."""

    async def note_refusal(
        self,
        action: str,
        reason: str,
        name_hash: str,
        act: Act,
        account_id: str | None = None,
        subject: str = "",
    ) -> None:
        """Record a refused attempt: at most one row per name (where none was given: account and caller's grant),
        subject, origin, reason and minute, which counts.

        *account_id*: at whose credential, or by whom, it was made, where that is known; *subject*: what was refused.
        """

    async def list_page(self, wanted: AuditFilter, before: int | None, limit: int) -> AuditPage:
        """At most *limit* events with ids below *before*, the newest first. next_id: give it as *before*."""

    async def read_after(self, wanted: AuditFilter, after: int, limit: int) -> AuditPage:
        """At most *limit* events with ids above *after*, the oldest first. next_id: give it as *after*; never None."""

    async def newest_id(self) -> int:
        """The highest id that an event ever had, 0 for none."""


class AuditSealStore(Protocol):
    """The seals of the audit log."""

    async def find_end(self) -> tuple[SealHead | None, Seal | None]:
        """The head and the newest seal, read at one instant."""

    async def rows_after(self, event_id: int, limit: int) -> list[SealedRow]:
        """At most *limit* rows after *event_id*, as they are sealed, in order."""

    async def add(self, seal: Seal, head: SealHead | None, new_head: SealHead) -> bool:
        """Append *seal* where *head* is still the head; whether it was."""

    async def sealed_before(self, removed_through: int, time_ms: int, event_limit: int) -> Seal | None:
        """The last of the seals next after *removed_through* that are all older than *time_ms* and hold together at
        most *event_limit* events, or one seal's; None if the next is younger.
        """

    async def remove_events(self, head: SealHead, new_head: SealHead, last: Seal) -> None:
        """Remove all events to the end of *last*, where *head* is still the head."""


class ThrottleStore(Protocol):
    """Counts failed log-ins, for every replica together; counts survive a restart."""

    async def reserve(self, attempt: Attempt) -> Reservation:
        """Count a failure in the place's bucket if the place is known, else in the name's, and in the origin's.

        Raises Throttled, and counts nowhere, where one of them is to wait.
        """

    async def succeeded(self, reservation: Reservation) -> None:
        """Uncount it, make the place known and empty its bucket. What others have counted since stays."""

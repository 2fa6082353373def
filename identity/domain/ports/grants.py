"""Grants of every kind: sessions, credentials, and what bearers of their tokens are told."""

from __future__ import annotations

from typing import Protocol

from ..grants import (
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
)
from ..values import (
    AccountRef,
    Act,
    Ended,
    EndReason,
    PasswordChange,
)


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
        """Note that an access token is issued, if *prove* has nothing against it and what it saw still stands then.
        *action* names the log-in in the audit log. Nobody waits for a caller that proves nothing.

        Raises BadCredentials (the assertion was used before), ScopeNotGranted.
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

"""People: a password in, a session out; and another password in the place of the first.

All failures after the look-up are one: BadCredentials, with one hash and one audit write each, whether the name is
unknown, the password wrong or the account disabled (R50). What would tell them apart is checked only afterwards.
Before the look-up a place for the hash is taken and the attempt is counted (R51): Overloaded depends on the load and
the origin alone, Throttled on the name and the origin.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace

from identity import failpoints
from identity_client.errors import BadCredentials, InvalidRequest, RetryLater, Throttled, TokenTooLarge
from identity_client.tokens import opaque

from .accounts import normalise_username
from .feed import Feed
from .grants import Admit, GrantSnapshot, NewSession, SessionTerms
from .guessing import Throttle
from .minting import Issued, Minter, OpenedSession
from .origins import unit_of
from .passwords import PasswordHasher, check_new_password, prepare_password
from .ports import AccountStore, SessionStore
from .randomness import Randomness, new_id
from .refresh_tokens import SALT_BYTES, RefreshTokens
from .refusals import Cause, RefusalLog, Rejected
from .secrets import hash_secret
from .throttle import Reservation
from .values import Act, PasswordChange, PasswordRecord
from .wanted import Audiences, Form, Wanted


@dataclass(frozen=True, slots=True)
class ChangeRequired:
    """The password is right, and must be changed before anything is issued."""


@dataclass(frozen=True, slots=True)
class Lifetimes:
    """How long the sessions of each form may live."""

    with_refresh: SessionTerms
    opaque: SessionTerms

    def of(self, form: Form, access_lifetime: int) -> SessionTerms:
        """A session that has nothing but its access token ends with it."""
        match form:
            case Form.TOKENS:
                return self.with_refresh
            case Form.SESSION:
                return self.opaque
            case Form.ACCESS_TOKEN:
                return SessionTerms(access_lifetime, access_lifetime)


class Authenticator:
    """Checks passwords, opens sessions, changes passwords."""

    def __init__(
        self,
        accounts: AccountStore,
        sessions: SessionStore,
        feed: Feed,
        refusals: RefusalLog,
        throttle: Throttle,
        audiences: Audiences,
        hasher: PasswordHasher,
        minter: Minter,
        refresh_tokens: RefreshTokens,
        lifetimes: Lifetimes,
        randomness: Randomness,
    ) -> None:
        self._accounts = accounts
        self._sessions = sessions
        self._feed = feed
        self._refusals = refusals
        self._throttle = throttle
        self._audiences = audiences
        self._hasher = hasher
        self._minter = minter
        self._refresh_tokens = refresh_tokens
        self._lifetimes = lifetimes
        self._randomness = randomness

    async def by_password(
        self, raw_username: str, raw_password: str, wanted: Wanted, act: Act
    ) -> Issued | OpenedSession | ChangeRequired:
        """Log a person in.

        Raises InvalidRequest, Throttled, BadCredentials, UnknownAudience, ScopeNotGranted, TokenTooLarge, Overloaded.
        """
        username = normalise_username(raw_username, "password.username")
        password = prepare_password(raw_password, "password.password")
        async with self._checked(username, password, "session.open", act) as record:
            try:
                if record.password_change_required:
                    await self._accounts.note_challenge(record.account_id, act)
                    return ChangeRequired()
                opening = await self._opening(record, record.credential_version, wanted)
                await failpoints.reach("login.before_write")
                snapshot = await self._sessions.open(opening.session, self._admit(wanted), act)
            except (BadCredentials, InvalidRequest, TokenTooLarge) as error:
                raise await self._refusals.noted(error, "session.open", username, act, record.account_id) from None
        await self._renew_hash(record, password)
        return self._issue(opening, snapshot)

    async def change_password(
        self, raw_username: str, raw_password: str, raw_new_password: str, wanted: Wanted, act: Act
    ) -> Issued | OpenedSession:
        """Replace a password, end every other session, log in. The current one is checked as by a log-in.

        Raises as by_password; InvalidRequest names new_password where it breaks a rule.
        """
        username = normalise_username(raw_username, "username")
        password = prepare_password(raw_password, "current_password")
        new_password = check_new_password(raw_new_password, username, "new_password")
        async with self._checked(username, password, "password.change", act) as record:
            try:
                if new_password == password:
                    raise InvalidRequest("the new password must differ from the current one", "new_password")
                opening = await self._opening(record, record.credential_version + 1, wanted)
                new_hash = await self._hasher.hash(new_password, unit_of(act.origin))
                await failpoints.reach("change_password.before_write")
                change = PasswordChange(record.account_id, record.credential_version, new_hash)
                snapshot, version = await self._sessions.change_password(
                    change, opening.session, self._admit(wanted), act
                )
            except (BadCredentials, InvalidRequest, TokenTooLarge) as error:
                raise await self._refusals.noted(error, "password.change", username, act, record.account_id) from None
        await self._feed.published(version)
        return self._issue(opening, snapshot)

    @contextlib.asynccontextmanager
    async def _checked(self, username: str, password: bytes, action: str, act: Act) -> AsyncIterator[PasswordRecord]:
        """Check the password; while the body acts on that, the attempt is uncounted: both can share a transaction."""
        with self._hasher.hold(unit_of(act.origin)) as place:  # first: a flood must cost us nothing but its refusal
            reservation = await self._reserved(username, action, act)
            record = await self._accounts.find_password(username)
            matches = await self._hasher.matches(password, record.password_hash if record else None, place)
        if record is None:
            raise await self._refusals.noted(Rejected(Cause.NAME_UNKNOWN), action, username, act)
        if not matches or not record.is_enabled:
            cause = Cause.ACCOUNT_DISABLED if matches else Cause.PASSWORD_WRONG
            raise await self._refusals.noted(Rejected(cause), action, username, act, record.account_id)
        uncounting = asyncio.create_task(self._throttle.succeeded(reservation))
        try:
            yield record
        finally:
            await uncounting

    async def _reserved(self, username: str, action: str, act: Act) -> Reservation:
        try:
            return await self._throttle.reserve(username, act.origin)
        except Throttled as error:
            raise await self._refusals.noted(error, action, username, act) from None

    async def _opening(self, record: PasswordRecord, credential_version: int, wanted: Wanted) -> _Opening:
        audiences = await self._audiences.resolve(wanted.audiences)
        self._minter.check_scopes(audiences, wanted.scopes)
        salt = self._randomness.token_bytes(SALT_BYTES) if wanted.form is Form.TOKENS else None
        secret = self._randomness.token_bytes(opaque.SECRET_BYTES) if wanted.form is Form.SESSION else None
        session = NewSession(
            grant_id=new_id(self._randomness),
            account_id=record.account_id,
            credential_version=credential_version,
            audiences=audiences,
            requested_scopes=wanted.scopes,
            access_lifetime=self._minter.lifetime,
            terms=self._lifetimes.of(wanted.form, self._minter.lifetime),
            refresh_salt=salt,
            token_hash=None if secret is None else hash_secret(secret),
        )
        return _Opening(session, secret)

    def _admit(self, wanted: Wanted) -> Admit:
        return _admit_all if wanted.form is Form.SESSION else self._minter.check_budget

    def _issue(self, opening: _Opening, snapshot: GrantSnapshot) -> Issued | OpenedSession:
        session = opening.session
        if opening.secret is not None:
            text = opaque.encode_secret(opaque.Kind.SESSION, session.grant_id, opening.secret)
            scopes = self._minter.fitting(session.audiences, snapshot.scopes)
            return OpenedSession(replace(snapshot, scopes=scopes), session.audiences, text)
        salt = session.refresh_salt
        refresh_text = None if salt is None else self._refresh_tokens.text(session.grant_id, 0, salt)
        return self._minter.issue(snapshot, refresh_text)

    async def _renew_hash(self, record: PasswordRecord, password: bytes) -> None:
        """Bring the stored hash to today's cost. The log-in is done: what fails now is left to the next one."""
        if self._hasher.is_outdated(record.password_hash):
            with contextlib.suppress(RetryLater):
                new_hash = await self._hasher.hash(password)
                await self._accounts.replace_hash(record.account_id, record.password_hash, new_hash)


@dataclass(frozen=True, slots=True)
class _Opening:
    """A session about to be inserted, and the random part of its token if it has one."""

    session: NewSession
    secret: bytes | None


def _admit_all(_: GrantSnapshot) -> None:
    """A session token is looked up, not carried: whatever it grants fits."""

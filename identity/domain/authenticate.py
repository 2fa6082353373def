"""Logging in: a credential in, a grant out.

All failures after the look-up are one: BadCredentials, with one hash and one audit write each, whether the name is
unknown, the password wrong or the account disabled (R50). What would tell them apart is checked only afterwards.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
from dataclasses import dataclass

from identity_client.errors import BadCredentials, IdentityError, InvalidRequest, RetryLater, TokenMalformed
from identity_client.tokens import opaque

from .accounts import normalise_username
from .audiences import Audiences
from .minting import Issued, Minter
from .passwords import PasswordHasher, prepare_password
from .ports import AccountStore, AuditStore, GrantStore
from .randomness import Randomness, new_id
from .refresh_tokens import SALT_BYTES, RefreshTokens
from .secrets import is_secret
from .values import Act, NewSession, PasswordRecord, SecretRecord, SessionTerms

_NO_HASH = bytes(32)


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a login asks for. No audience means the default, no scopes mean all."""

    audience: str = ""
    scopes: tuple[str, ...] = ()
    with_refresh: bool = False


class Authenticator:
    """Checks credentials and issues tokens."""

    def __init__(
        self,
        accounts: AccountStore,
        grants: GrantStore,
        audit: AuditStore,
        audiences: Audiences,
        hasher: PasswordHasher,
        minter: Minter,
        refresh_tokens: RefreshTokens,
        terms: SessionTerms,
        name_key: bytes,
        randomness: Randomness,
    ) -> None:
        self._accounts = accounts
        self._grants = grants
        self._audit = audit
        self._audiences = audiences
        self._hasher = hasher
        self._minter = minter
        self._refresh_tokens = refresh_tokens
        self._terms = terms
        self._name_key = name_key
        self._randomness = randomness

    async def by_password(self, raw_username: str, raw_password: str, wanted: Wanted, act: Act) -> Issued:
        """Log a person in. Raises InvalidRequest, BadCredentials, UnknownAudience, ScopeNotGranted, Overloaded."""
        username = normalise_username(raw_username, "password.username")
        password = prepare_password(raw_password)
        record = await self._accounts.find_password(username)
        matches = await self._hasher.matches(password, record.password_hash if record else None)
        if record is None or not matches or not record.is_enabled:
            raise await self._noted(BadCredentials(), "session.open", username, act)
        try:
            audience = await self._audiences.resolve(wanted.audience)
            issued = await self._open_session(record, audience, wanted, act)
        except InvalidRequest as error:
            raise await self._noted(error, "session.open", username, act) from None
        await self._renew_hash(record, password)
        return issued

    async def by_client_secret(self, client_id: str, raw_secret: str, wanted: Wanted, act: Act) -> Issued:
        """Log a service in. Raises InvalidRequest, BadCredentials, UnknownAudience, ScopeNotGranted."""
        username = normalise_username(client_id, "client_secret.client_id")
        try:
            grant_id, secret = opaque.split_secret(raw_secret, opaque.Kind.CLIENT_SECRET)
        except TokenMalformed:
            raise InvalidRequest("this is not the text of a client secret", "client_secret.client_secret") from None
        record = await self._grants.find_secret(grant_id)
        if not _is_client(record, username, secret):
            raise await self._noted(BadCredentials(), "secret.use", username, act)
        try:
            audience = await self._audiences.resolve(wanted.audience)
            self._minter.check_scopes(audience, wanted.scopes)
            snapshot = await self._grants.use_secret(grant_id, audience, wanted.scopes, self._minter.lifetime, act)
        except InvalidRequest as error:
            raise await self._noted(error, "secret.use", username, act) from None
        return self._minter.issue(snapshot)

    async def _open_session(self, record: PasswordRecord, audience: str, wanted: Wanted, act: Act) -> Issued:
        self._minter.check_scopes(audience, wanted.scopes)
        salt = self._randomness.token_bytes(SALT_BYTES) if wanted.with_refresh else None
        session = NewSession(
            grant_id=new_id(self._randomness),
            account_id=record.account_id,
            credential_version=record.credential_version,
            audience=audience,
            requested_scopes=wanted.scopes,
            refresh_salt=salt,
            access_lifetime=self._minter.lifetime,
            terms=self._terms,
        )
        snapshot = await self._grants.open_session(session, act)
        refresh_text = None if salt is None else self._refresh_tokens.text(session.grant_id, 0, salt)
        return self._minter.issue(snapshot, refresh_text)

    async def _renew_hash(self, record: PasswordRecord, password: bytes) -> None:
        """Bring the stored hash to today's cost. The log-in is done: what fails now is left to the next one."""
        if self._hasher.is_outdated(record.password_hash):
            with contextlib.suppress(RetryLater):
                new_hash = await self._hasher.hash(password)
                await self._accounts.replace_hash(record.account_id, record.password_hash, new_hash)

    async def _noted(self, error: IdentityError, action: str, username: str, act: Act) -> IdentityError:
        """*error*, once it stands in the audit log: whoever tries credentials leaves a trace, right ones included."""
        # A name that was typed may be a password in the wrong field: the log gets a keyed hash of it.
        digest = hmac.digest(self._name_key, username.encode(), hashlib.sha256).hex()
        await self._audit.note_refusal(action, error.reason, digest, act)
        return error


def _is_client(record: SecretRecord | None, username: str, secret: bytes) -> bool:
    is_right = is_secret(secret, record.secret_hash if record else _NO_HASH)
    return record is not None and is_right and record.is_live and record.normalised_username == username

"""Administration of accounts: the rules for names and roles, and one method a use-case."""

from __future__ import annotations

import re
import unicodedata
from dataclasses import replace

from identity_client.errors import InvalidRequest
from identity_client.tokens import opaque

from .feed import Feed
from .grants import GrantKind, NewCredential, Session
from .passwords import PasswordHasher, check_new_password
from .ports import AccountStore, SessionStore
from .randomness import Randomness, new_id
from .roles import check_role_name, check_roles
from .secrets import hash_secret, refuse_token_text
from .values import EVERY_ACCOUNT, Account, AccountChange, AccountFilter, AccountKind, AccountRef, Act, NewAccount

MAXIMUM_USERNAME = 128

_SERVICE_NAME = re.compile(r"[a-z][a-z0-9._-]{0,63}")


def normalise_username(raw_username: str, field: str = "username") -> str:
    """The form that names are compared in: NFKC and case-folded (RFC 8265 section 3.3), so equal however typed.

    Raises InvalidRequest: empty, over 128 characters, a space at an end, or a control or unassigned character.
    """
    if len(raw_username) > MAXIMUM_USERNAME:
        raise InvalidRequest(f"at most {MAXIMUM_USERNAME} characters", field)
    normal = _folded(raw_username)
    if not normal or len(normal) > MAXIMUM_USERNAME or normal != normal.strip():
        raise InvalidRequest(f"1-{MAXIMUM_USERNAME} characters without spaces at the ends", field)
    if any(unicodedata.category(character).startswith("C") for character in normal):
        raise InvalidRequest("control, format and unassigned characters are not allowed", field)
    return normal


def normalise_prefix(raw_prefix: str, field: str) -> str:
    """The beginning of a username in the form that names are compared in; "" for every name. Raises InvalidRequest."""
    if len(raw_prefix) > MAXIMUM_USERNAME:
        raise InvalidRequest(f"at most {MAXIMUM_USERNAME} characters", field)
    refuse_token_text(raw_prefix, field)
    return _folded(raw_prefix)


def check_service_name(name: str) -> str:
    """A service's name is an audience and a client id, too. Raises InvalidRequest."""
    if not _SERVICE_NAME.fullmatch(name):
        raise InvalidRequest("1-64 of a-z, 0-9, '.', '_' and '-', beginning with a letter", "username")
    return name


def normalise_ref(ref: AccountRef) -> AccountRef:
    """The reference with its username, if it has one, as stored. Raises InvalidRequest."""
    return ref if ref.username is None else replace(ref, username=normalise_username(ref.username))


def _folded(text: str) -> str:
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())


class AccountAdmin:
    """What administrators do to accounts."""

    def __init__(
        self,
        accounts: AccountStore,
        sessions: SessionStore,
        feed: Feed,
        hasher: PasswordHasher,
        randomness: Randomness,
        reserved_names: frozenset[str],
    ) -> None:
        self._accounts = accounts
        self._sessions = sessions
        self._feed = feed
        self._hasher = hasher
        self._randomness = randomness
        self._reserved_names = reserved_names

    async def create_user(
        self, username: str, password: str, roles: tuple[str, ...], act: Act, *, password_change_required: bool = False
    ) -> Account:
        """Create a person. Raises InvalidRequest, UnknownRole, AccountAlreadyExists, RequestIdReused, Overloaded."""
        normalised = normalise_username(username)
        refuse_token_text(username, "username")
        roles = check_roles(roles)
        password_hash = await self._hasher.hash(check_new_password(password, normalised))
        account = self._new_account(AccountKind.USER, username, normalised, roles)
        account = replace(account, password_hash=password_hash, password_change_required=password_change_required)
        return await self._accounts.create(account, None, act)

    async def create_service(self, username: str, roles: tuple[str, ...], act: Act) -> tuple[Account, str, str]:
        """Create a service with its first client secret; -> account, grant id, the secret's text.

        Raises InvalidRequest (also for the name of this service or of a group), UnknownRole, AccountAlreadyExists,
        RequestIdReused, SecretAlreadyShown.
        """
        check_service_name(username)
        if username in self._reserved_names:
            raise InvalidRequest("the name belongs to this service or to a group", "username")
        roles = check_roles(roles)
        grant_id, secret = new_id(self._randomness), self._randomness.token_bytes(opaque.SECRET_BYTES)
        account = self._new_account(AccountKind.SERVICE, username, username, roles)
        first = NewCredential(grant_id, GrantKind.CLIENT_SECRET, secret_hash=hash_secret(secret))
        created = await self._accounts.create(account, first, act)
        return created, grant_id, opaque.encode_secret(opaque.Kind.CLIENT_SECRET, grant_id, secret)

    async def get(self, ref: AccountRef) -> Account:
        """Raises AccountNotFound."""
        return await self._accounts.get(normalise_ref(ref))

    async def list_page(self, after_username: str, limit: int, which: AccountFilter = EVERY_ACCOUNT) -> list[Account]:
        """At most *limit* accounts after the normalised *after_username*, by name. Raises InvalidRequest."""
        if which.role:
            check_role_name(which.role, "role")
        prefix = normalise_prefix(which.username_prefix, "username_prefix")
        return await self._accounts.list_page(after_username, limit, replace(which, username_prefix=prefix))

    async def list_sessions(self, ref: AccountRef, before: tuple[int, str] | None, limit: int) -> list[Session]:
        """At most *limit* live sessions, the newest first, after the one created at and named by *before*.

        Raises AccountNotFound.
        """
        account = await self.get(ref)
        return await self._sessions.list_page(account.account_id, before, limit)

    async def update(self, ref: AccountRef, change: AccountChange, act: Act) -> Account:
        """Change a user. Raises InvalidRequest, AccountNotFound, AccountAlreadyExists."""
        if change.username is not None:
            normalised = normalise_username(change.username, "change.username")
            refuse_token_text(change.username, "change.username")
            change = replace(change, normalised_username=normalised)
        return await self._accounts.update(normalise_ref(ref), change, act)

    async def delete(self, ref: AccountRef, note: str, act: Act) -> int:
        """Remove the account and erase the person; -> how many grants ended. Raises AccountNotFound, LastAdmin."""
        ended = await self._accounts.delete(normalise_ref(ref), note, act)
        await self._feed.published(ended.version)
        return ended.grant_count

    async def set_password(
        self, ref: AccountRef, raw_password: str, act: Act, *, is_change_required: bool = True
    ) -> tuple[Account, int]:
        """Give a user another password and end every session; -> account, how many sessions ended.

        Raises InvalidRequest, AccountNotFound, Overloaded.
        """
        account = await self.get(ref)
        password = check_new_password(raw_password, normalise_username(account.username))
        password_hash = await self._hasher.hash(password)
        by_id = AccountRef(account_id=account.account_id)
        account, ended = await self._accounts.set_password(by_id, password_hash, is_change_required, act)
        await self._feed.published(ended.version)
        return account, ended.grant_count

    async def set_roles(self, ref: AccountRef, roles: tuple[str, ...], act: Act) -> Account:
        """Replace the roles; tokens with the old ones are outdated at once.

        Raises AccountNotFound, UnknownRole, LastAdmin.
        """
        account, version = await self._accounts.set_roles(normalise_ref(ref), check_roles(roles), act)
        await self._feed.published(version)
        return account

    async def disable(self, ref: AccountRef, act: Act) -> Account:
        """Shut the account out at once. Raises AccountNotFound, LastAdmin."""
        account, version = await self._accounts.disable(normalise_ref(ref), act)
        await self._feed.published(version)
        return account

    async def enable(self, ref: AccountRef, act: Act) -> Account:
        """Let the account log in again. Raises AccountNotFound."""
        return await self._accounts.enable(normalise_ref(ref), act)

    def _new_account(self, kind: AccountKind, username: str, normalised: str, roles: tuple[str, ...]) -> NewAccount:
        return NewAccount(new_id(self._randomness), kind, username, normalised, roles)

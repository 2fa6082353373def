"""An identity service in a test's own memory: what it mints, guards admit; what it takes back, they refuse at once."""

from __future__ import annotations

import hashlib
import re
import secrets
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from identity_client.access.certificates import thumbprint
from identity_client.errors import DependencyDown, ScopeNotGranted, TokenMalformed, TokenRevoked
from identity_client.principal import BearerKind, Principal, find_principal, set_principal
from identity_client.testing.clock import FixedClock
from identity_client.testing.credential import Credential, check_issuable, names
from identity_client.testing.signing import SigningKey, new_id
from identity_client.tokens import opaque
from identity_client.tokens.claims import Claims
from identity_client.trust.entries import Entry, EntryKind, id_text
from identity_client.trust.state import TrustState

ISSUER = "https://identity.test"
LONGEST_LIFETIME_SECONDS = 3_600

_ENTRY_SECONDS = LONGEST_LIFETIME_SECONDS + 600
_ID = re.compile(r"[A-Za-z0-9_-]{21}[AQgw]")
_OPAQUE_KINDS = {BearerKind.SESSION: opaque.Kind.SESSION, BearerKind.API_KEY: opaque.Kind.API_KEY}


@dataclass
class _Account:
    generation: int = 1
    roles: tuple[str, ...] = ()


class Issuer:
    """Mints credentials and takes them back. *clock* (the current time to begin with) stands still: move it with
    `clock.advance(seconds)`.

    Guards know what happens here at once, as if a stream had brought it, and are never stale; between `disconnect` and
    `reconnect` they hear nothing, grow stale as the clock is moved, and whatever has to be asked is UNAVAILABLE.
    Accounts need not be created: a username is as good as an id.
    """

    def __init__(self, clock: FixedClock | None = None) -> None:
        self.clock = clock or FixedClock(wall=float(int(time.time())))
        self.trust = PushedTrust(self.clock)
        self._truth = TrustState(self.clock)
        self._keys = [SigningKey()]
        self._policy_version = 1
        self._accounts: dict[str, _Account] = {}
        self._bearers: dict[str, Claims] = {}  # opaque text -> what it stands for now
        self._signed_claims: dict[str, Claims] = {}
        self._live_grants: dict[str, str] = {}  # grant -> account
        self._unheard: list[Entry] = []
        for state in (self.trust, self._truth):
            state.begin_snapshot("test", 0, 0)
            state.touch(0.0)
        self._publish_keys()

    @property
    def signing_key(self) -> SigningKey:
        """What it signs with now: for tests that forge."""
        return self._keys[-1]

    # -- credentials -------------------------------------------------------------------------------------------

    def mint(
        self,
        account: str = "alice",
        *,
        scopes: Sequence[str] = (),
        roles: Sequence[str] | None = None,
        audience: str = "internal",
        lifetime_seconds: int = 600,
        client_id: str = "first-party",
        authentication_age_seconds: int | None = 0,
        certificate: bytes | None = None,
        grant_id: str = "",
        actors: Sequence[str] = (),
    ) -> Credential:
        """An access token of *account* (username or id) for *audience*, a service or a group.

        *roles* not named are those of the last `set_roles`. *authentication_age_seconds*: how long ago a person logged
        in; None for a machine. *certificate* (PEM): the token is good only on a connection that shows it. *grant_id*:
        one more token of an earlier credential's session. *actors*: the accounts that act for this one, the nearest
        first. Raises ValueError for what the service would not issue.
        """
        if not 0 < lifetime_seconds <= LONGEST_LIFETIME_SECONDS:
            raise ValueError(
                f"an access token lives 1 to {LONGEST_LIFETIME_SECONDS} seconds; to see it expire, mint it "
                "and move the clock"
            )
        claims = self._claims(account, scopes, roles, audience, lifetime_seconds, client_id, authentication_age_seconds)
        claims = claims._replace(
            token_id=new_id(),
            key_id=self.signing_key.key_id,
            grant_id=grant_id or claims.grant_id,
            certificate_thumbprint="" if certificate is None else thumbprint(certificate),
            actors=tuple(map(self.account_id, names(actors))),
        )
        return self._signed(claims)

    def mint_session(
        self,
        account: str = "alice",
        *,
        scopes: Sequence[str] = (),
        roles: Sequence[str] | None = None,
        audience: str = "internal",
        lifetime_seconds: int = 86_400,
        authentication_age_seconds: int | None = 0,
    ) -> Credential:
        """An opaque session token; guards ask about it. Its roles are read live: `set_roles` changes them."""
        claims = self._claims(
            account, scopes, roles, audience, lifetime_seconds, "first-party", authentication_age_seconds
        )
        return self._opaque(BearerKind.SESSION, claims)

    def mint_api_key(
        self,
        account: str = "batch",
        *,
        scopes: Sequence[str] = (),
        roles: Sequence[str] | None = None,
        audience: str = "internal",
        lifetime_seconds: int = 86_400,
    ) -> Credential:
        """An opaque API key of a machine; guards ask about it. Its roles are read live: `set_roles` changes them."""
        claims = self._claims(account, scopes, roles, audience, lifetime_seconds, account, None)
        return self._opaque(BearerKind.API_KEY, claims)

    def exchange(self, raw_token: str, *, audience: str, actor: str, scopes: Sequence[str] = ()) -> Credential:
        """A token for *audience* of the session behind *raw_token*, with *scopes* or all it had; *actor* acts with it.
        Raises: TokenMalformed (the text is not active), ScopeNotGranted, DependencyDown while disconnected."""
        self._check_connected()
        received = self._signed_claims.get(raw_token) or self._bearers.get(raw_token)
        if received is None or not self._is_live(received):
            raise TokenMalformed()
        if not set(names(scopes)).issubset(received.scopes):
            raise ScopeNotGranted()
        held, now = self._account(received.account_id), int(self.clock.now())
        return self._signed(
            received._replace(
                audience=audience,
                scopes=names(scopes) or received.scopes,
                issue_time=now,
                expire_time=min(received.expire_time, now + 600),
                generation=held.generation,
                policy_version=self._policy_version,
                token_id=new_id(),
                key_id=self.signing_key.key_id,
                actors=(self.account_id(actor), *received.actors),
            )
        )

    def account_id(self, account: str) -> str:
        """The id of a username; an id is its own."""
        if _ID.fullmatch(account):
            return account
        return id_text(hashlib.blake2b(account.encode(), digest_size=16).digest())

    @contextmanager
    def calling(self, credential: Credential) -> Iterator[Principal]:
        """Within, `current_principal()` is the holder of *credential*: to call a handler without a server."""
        principal = Principal(credential.claims, credential.raw_token, credential.kind)
        before = find_principal()
        set_principal(principal)
        try:
            yield principal
        finally:
            set_principal(before)

    # -- taking back -------------------------------------------------------------------------------------------

    def revoke(self, credential: Credential) -> None:
        """Revokes one access token; the session or API key itself, if it is opaque."""
        if credential.kind is not BearerKind.ACCESS_TOKEN:
            self.revoke_grant(credential.grant_id)
            return
        self._commit(EntryKind.TOKEN, credential.claims.token_id)

    def revoke_grant(self, grant: Credential | str) -> None:
        """Ends a session or credential (by id, or the one behind a token), with every token of it."""
        grant_id = grant if isinstance(grant, str) else grant.grant_id
        self._live_grants.pop(grant_id, None)
        self._commit(EntryKind.GRANT, grant_id)

    def revoke_account(self, account: str) -> None:
        """Ends all of an account. Its access tokens are outdated from now on, and nothing renews them."""
        account_id = self.account_id(account)
        self._live_grants = {grant: owner for grant, owner in self._live_grants.items() if owner != account_id}
        self._outdate(account_id)

    def set_roles(self, account: str, roles: Sequence[str]) -> None:
        """Gives an account other roles. Its access tokens are outdated; sessions and API keys have the new roles."""
        account_id = self.account_id(account)
        self._account(account_id).roles = names(roles)
        self._outdate(account_id)
        self._renew(account_id, roles=names(roles))

    def change_role(self, role: str) -> None:
        """Changes what a role allows: access tokens that carry it are outdated."""
        self._policy_version += 1
        for raw_token, claims in self._bearers.items():
            self._bearers[raw_token] = claims._replace(policy_version=self._policy_version)
        self._commit(EntryKind.ROLE, role, self._policy_version)

    def rotate_key(self) -> None:
        """Signs with a new key from now on; the old one still verifies."""
        self._keys.append(SigningKey())
        self._publish_keys()

    def revoke_key(self) -> None:
        """Revokes the signing key, and with it every access token that it signed; a new one takes over."""
        revoked = self.signing_key.key_id
        self.rotate_key()
        self._commit(EntryKind.KEY, revoked)

    # -- an outage ---------------------------------------------------------------------------------------------

    def disconnect(self) -> None:
        """Guards hear and can ask nothing more, as if the service were down."""
        self.trust.is_connected = False

    def reconnect(self) -> None:
        """The outage is over: guards hear what happened meanwhile."""
        self.trust.is_connected = True
        self._publish_keys()
        unheard, self._unheard = self._unheard, []
        for entry in unheard:
            self.trust.apply(self.trust.version + 1, self.trust.version + 1, [entry])

    # -- what guards ask ---------------------------------------------------------------------------------------

    def introspect(self, raw_token: str) -> Claims | None:
        """What an opaque text stands for now; None if it is not active. Raises DependencyDown while disconnected."""
        self._check_connected()
        claims = self._bearers.get(raw_token)
        return claims if claims is not None and self._is_live(claims) else None

    def confirm(self, principal: Principal) -> None:
        """Whether the grant behind *principal* is live. Raises: TokenRevoked (also for a grant that was never minted),
        TokenOutdated, DependencyDown while disconnected."""
        self._check_connected()
        self._truth.check(principal.claims)
        if principal.grant_id not in self._live_grants:
            raise TokenRevoked()

    def _check_connected(self) -> None:
        if not self.trust.is_connected:
            raise DependencyDown("The identity service does not answer: repeat the call later.")

    # -- within ------------------------------------------------------------------------------------------------

    def _account(self, account_id: str) -> _Account:
        return self._accounts.setdefault(account_id, _Account())

    def _claims(
        self,
        account: str,
        scopes: Sequence[str],
        roles: Sequence[str] | None,
        audience: str,
        lifetime_seconds: int,
        client_id: str,
        authentication_age_seconds: int | None,
    ) -> Claims:
        account_id = self.account_id(account)
        held = self._account(account_id)
        now = int(self.clock.now())
        is_person = authentication_age_seconds is not None
        return Claims(
            issuer=ISSUER,
            account_id=account_id,
            audience=audience,
            expire_time=now + lifetime_seconds,
            issue_time=now,
            token_id="",
            client_id=client_id,
            grant_id=new_id(),
            generation=held.generation,
            policy_version=self._policy_version,
            key_id="",
            scopes=names(scopes),
            roles=held.roles if roles is None else names(roles),
            authentication_time=now - (authentication_age_seconds or 0) if is_person else None,
            authentication_methods=("pwd",) if is_person else (),
        )

    def _is_live(self, claims: Claims) -> bool:
        return claims.grant_id in self._live_grants and self.clock.now() < claims.expire_time

    def _signed(self, claims: Claims) -> Credential:
        raw_token = self.signing_key.sign(claims)
        check_issuable(raw_token, claims)
        self._signed_claims[raw_token] = claims
        self._live_grants[claims.grant_id] = claims.account_id
        return Credential(raw_token, claims, BearerKind.ACCESS_TOKEN)

    def _opaque(self, kind: BearerKind, claims: Claims) -> Credential:
        secret = secrets.token_bytes(opaque.SECRET_BYTES)
        raw_token = opaque.encode_secret(_OPAQUE_KINDS[kind], claims.grant_id, secret)
        self._bearers[raw_token] = claims
        self._live_grants[claims.grant_id] = claims.account_id
        return Credential(raw_token, claims, kind)

    def _outdate(self, account_id: str) -> None:
        account = self._account(account_id)
        account.generation += 1
        self._renew(account_id, generation=account.generation)
        self._commit(EntryKind.ACCOUNT, account_id, account.generation)

    def _renew(self, account_id: str, **changes: object) -> None:
        """What opaque texts of an account stand for is read live."""
        for raw_token, claims in self._bearers.items():
            if claims.account_id == account_id:
                self._bearers[raw_token] = claims._replace(**changes)  # type: ignore[arg-type]

    def _publish_keys(self) -> None:
        if self.trust.is_connected:
            self.trust.set_keys(ISSUER, [key.public_key for key in self._keys])

    def _commit(self, kind: EntryKind, name: str, minimum: int = 0) -> None:
        entry = Entry(kind, name, int(self.clock.now()) + _ENTRY_SECONDS, minimum)
        self._truth.apply(self._truth.version + 1, self._truth.version + 1, [entry])
        if self.trust.is_connected:
            self.trust.apply(self.trust.version + 1, self.trust.version + 1, [entry])
        else:
            self._unheard.append(entry)


class PushedTrust(TrustState):
    """As fresh as a trust state whose stream never stalls, while it is connected."""

    is_connected = True

    def staleness(self) -> float:
        if self.is_connected:
            self.touch(0.0)
        return super().staleness()

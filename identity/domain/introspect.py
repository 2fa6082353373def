"""Saying what a bearer text is worth to the service that asks (RFC 7662): access token, session token or API key."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass

from identity_client.clock import Clock
from identity_client.errors import RetryLater, TokenError, TokenRevoked
from identity_client.principal import BearerKind
from identity_client.tokens import opaque
from identity_client.tokens.claims import NO_END, Claims
from identity_client.tokens.verifier import Verifier

from .grants import BearerRecord, GrantKind, GrantSnapshot
from .minting import Minter
from .ports import BearerStore
from .secrets import is_secret

TOUCH_SECONDS = 60
"""How often at most a use is noted: so exact is the idle time of a session."""


@dataclass(frozen=True, slots=True)
class Active:
    """An accepted text. Of an opaque one the claims name no token and no key, and the audience that the asker is in."""

    kind: BearerKind
    claims: Claims


@dataclass(frozen=True, slots=True)
class Asker:
    """The service that asks, and whether it may ask for all services."""

    name: str
    may_ask_for_any: bool = False


class Introspector:
    """Judges bearer texts for others: JWTs with the very verifier that guards this service, opaque ones from SQL."""

    def __init__(
        self,
        verifier: Verifier,
        bearers: BearerStore,
        minter: Minter,
        issuer: str,
        groups: frozenset[str],
        clock: Clock,
    ) -> None:
        self._verifier = verifier
        self._bearers = bearers
        self._minter = minter
        self._issuer = issuer
        self._groups = groups
        self._clock = clock

    async def introspect(self, raw_token: str, asker: Asker) -> Active | None:
        """What a text that *asker* may accept now says; None for any other text. Raises DependencyDown (opaque texts).

        Why a text is refused is not said: a service learns nothing about tokens that are not meant for it.
        """
        match opaque.kind_of(raw_token):
            case None:
                return self._access_token(raw_token, asker)
            case (opaque.Kind.SESSION | opaque.Kind.API_KEY) as kind:
                return await self._opaque(raw_token, kind, asker)
            case _:
                return None

    async def claims_for(self, raw_token: str, asker: Asker) -> Claims:
        """The same for a guard in this house. Raises TokenRevoked for a text that is not active, DependencyDown."""
        active = await self.introspect(raw_token, asker)
        if active is None:
            raise TokenRevoked()
        return active.claims

    def _access_token(self, raw_token: str, asker: Asker) -> Active | None:
        try:
            claims = self._verifier.verify_any_audience(raw_token)
        except TokenError:
            return None
        return Active(BearerKind.ACCESS_TOKEN, claims) if self._match((claims.audience,), asker) else None

    async def _opaque(self, raw_token: str, kind: opaque.Kind, asker: Asker) -> Active | None:
        try:
            grant_id, secret = opaque.split_secret(raw_token, kind)
        except TokenError:
            return None
        record = await self._bearers.find_bearer(grant_id)
        if record is None or record.kind is not _GRANT_KINDS[kind] or not is_secret(secret, record.secret_hash):
            return None
        audience = self._match(record.audiences, asker)
        if not record.is_live or audience is None:
            return None
        await self._touch(grant_id, record)
        return Active(_BEARER_KINDS[kind], self._claims(record, audience))

    def _match(self, audiences: tuple[str, ...], asker: Asker) -> str | None:
        """The audience by which the asker may accept a text for *audiences*: best its own name."""
        if asker.name in audiences:
            return asker.name
        for audience in audiences:
            if audience in self._groups or asker.may_ask_for_any:
                return audience
        return None

    async def _touch(self, grant_id: str, record: BearerRecord) -> None:
        if record.last_used_time is None or self._clock.now() - record.last_used_time >= TOUCH_SECONDS:
            with contextlib.suppress(RetryLater):  # then the use is not noted; the answer is right all the same
                await self._bearers.touch(grant_id)

    def _claims(self, record: BearerRecord, audience: str) -> Claims:
        snapshot: GrantSnapshot = record.snapshot
        return Claims(
            issuer=self._issuer,
            account_id=snapshot.account_id,
            audience=audience,
            expire_time=NO_END if record.expire_time is None else record.expire_time,
            issue_time=snapshot.issue_time,
            token_id="",
            client_id=snapshot.client_id,
            grant_id=snapshot.grant_id,
            generation=snapshot.generation,
            policy_version=snapshot.policy_version,
            key_id="",
            scopes=self._minter.fitting((audience,), snapshot.scopes),
            roles=snapshot.roles,
            authentication_time=snapshot.authentication_time,
            authentication_methods=snapshot.authentication_methods,
            is_limited=snapshot.is_limited,
        )


_GRANT_KINDS = {opaque.Kind.SESSION: GrantKind.SESSION, opaque.Kind.API_KEY: GrantKind.API_KEY}
_BEARER_KINDS = {opaque.Kind.SESSION: BearerKind.SESSION, opaque.Kind.API_KEY: BearerKind.API_KEY}

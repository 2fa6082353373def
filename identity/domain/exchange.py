"""Token exchange (RFC 8693): a narrower token of the same grant, for the next hop, with the chain of who acts.

A service exchanges what it received: a bearer text that is meant for it or one of its groups. The new token hangs off
the same grant as the old one, has no scope that the old one lacks, and expires no later. The chain of actors grows by
the service. The account itself may exchange, too, with a token that no service was ever meant to see.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from identity_client.errors import InvalidRequest, PermissionMissing, ScopeNotGranted, TokenMalformed
from identity_client.principal import Principal
from identity_client.tokens.claims import Claims
from identity_client.tokens.payload import MAXIMUM_ACTORS

from .grants import Derivation, GrantSnapshot
from .introspect import Asker, Introspector
from .minting import Issued, Minter
from .ports import GrantStore
from .roles import still_granted
from .values import Act, Caller
from .wanted import Audiences

EXCHANGE_SCOPE = "identity.exchange"

_NO_SCOPE = ("",)  # of a subject without scopes nothing can be derived: an empty tuple would ask for all


@dataclass(frozen=True, slots=True)
class Exchanging:
    """What is asked for: the text to exchange, and for whom. No scopes mean all that the subject has."""

    raw_token: str
    audience: str
    scopes: tuple[str, ...] = ()


class Exchanger:
    """Exchanges tokens."""

    def __init__(
        self, introspector: Introspector, grants: GrantStore, audiences: Audiences, minter: Minter, service_name: str
    ) -> None:
        self._introspector = introspector
        self._grants = grants
        self._audiences = audiences
        self._minter = minter
        self._service_name = service_name

    async def exchange(self, wanted: Exchanging, caller: Principal, act: Act) -> Issued:
        """Issue an access token of the subject's grant for *wanted.audience*.

        *act* names *caller*, who is confirmed in the transaction that issues. Raises TokenMalformed (the subject is no
        active text that the caller may hold), PermissionMissing, UnknownAudience, ScopeNotGranted, TokenOutdated,
        TokenRevoked, TokenTooLarge, InvalidRequest (the chain is too long; the subject is bound to a certificate, and
        the caller to none).
        """
        subject, is_own = await self._subject(wanted.raw_token, caller)
        [audience] = await self._audiences.resolve((wanted.audience,) if wanted.audience else ())
        self._minter.check_scopes((audience,), wanted.scopes)
        if not set(wanted.scopes).issubset(subject.scopes):
            raise ScopeNotGranted("the subject token lacks a scope that was asked for")
        actors, thumbprint = (subject.actors, subject.certificate_thumbprint) if is_own else _acting(subject, caller)

        def shaped(snapshot: GrantSnapshot) -> GrantSnapshot:
            return replace(
                snapshot,
                audience=audience,
                scopes=still_granted(snapshot.scopes, wanted.scopes or subject.scopes or _NO_SCOPE),
                latest_expire_time=min(subject.expire_time, snapshot.latest_expire_time or subject.expire_time),
                certificate_thumbprint=thumbprint,
                actors=actors,
                is_limited=snapshot.is_limited or subject.is_limited or bool(wanted.scopes),
            )

        def admit(snapshot: GrantSnapshot) -> None:
            self._minter.check_budget(shaped(snapshot))

        derived = Derivation(
            subject.grant_id, subject.token_id, subject.generation, self._minter.lifetime, audience, is_own
        )
        acting = act if is_own or act.caller is None else replace(act, caller=_with_scope(act.caller))
        return self._minter.issue(shaped(await self._grants.derive(derived, admit, acting)))

    async def _subject(self, raw_token: str, caller: Principal) -> tuple[Claims, bool]:
        """What is exchanged, and whether it is the caller's own."""
        received = await self._introspector.introspect(raw_token, Asker(caller.client_id))
        if received is not None and received.claims.grant_id != caller.grant_id:
            if EXCHANGE_SCOPE not in caller.scopes:
                raise PermissionMissing(f"To act for another account needs the scope {EXCHANGE_SCOPE}.")
            return received.claims, False
        own = await self._introspector.introspect(raw_token, Asker(self._service_name))
        if own is None or own.claims.grant_id != caller.grant_id:
            raise TokenMalformed("The subject token is not active, or not meant for the caller.")
        if own.claims.audience != self._service_name:
            # Whoever received a token for a group could otherwise turn it into one for a service outside the group.
            raise PermissionMissing(f"To exchange a token of one's own needs one for {self._service_name}.")
        if own.claims.actors or caller.actors:
            # It is in the hands of a service, which would go on acting when it may no longer.
            raise PermissionMissing("A token that was exchanged for a service is exchanged by that service alone.")
        return own.claims, True


def _with_scope(caller: Caller) -> Caller:
    return replace(caller, required_scope=EXCHANGE_SCOPE)


def _acting(subject: Claims, caller: Principal) -> tuple[tuple[str, ...], str]:
    """The chain of actors with the caller, and the certificate that the new token is bound to."""
    if len(subject.actors) >= MAXIMUM_ACTORS:
        raise InvalidRequest(f"at most {MAXIMUM_ACTORS} actors may stand in a chain", "subject_token")
    if subject.certificate_thumbprint and not caller.certificate_thumbprint:
        raise InvalidRequest("it is bound to a certificate: call with a token that is bound to yours", "subject_token")
    return (caller.account_id, *subject.actors), caller.certificate_thumbprint

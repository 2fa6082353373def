"""Machines: a client secret, API key, signed assertion or client certificate in, an access token out.

Every failed check is answered alike: BadCredentials; the audit log has the cause. None of these costs a password hash.
"""

from __future__ import annotations

import datetime
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace

from identity import failpoints
from identity_client.clock import Clock
from identity_client.errors import BadCredentials, InvalidRequest, TokenMalformed, TokenTooLarge
from identity_client.tokens import opaque
from identity_client.tokens.keys import PublicKey

from .accounts import normalise_username
from .assertions import check_assertion, parse_assertion
from .certificates import ClientAuthorities, read_certificate
from .grants import ApiKeyUse, CredentialRecord, CredentialUse, GrantKind, GrantSnapshot, UsedAssertion
from .minting import Issued, Minter
from .ports import CredentialStore
from .refusals import Cause, RefusalLog, Rejected
from .secrets import is_secret
from .values import Act
from .wanted import Audiences, Wanted

_NO_HASH = bytes(32)


@dataclass(frozen=True, slots=True)
class _Proof:
    """What a machine shows: of which credential, how that is checked, and what a token is to say of it.

    *check* gives the credential back if it fits and is live, or raises BadCredentials, InvalidRequest.
    """

    grant_id: str
    check: Callable[[CredentialRecord | None], CredentialRecord]
    assertion: UsedAssertion | None = None
    thumbprint: str = ""

    def bound(self, snapshot: GrantSnapshot) -> GrantSnapshot:
        """*snapshot*, bound to the certificate if that is the credential."""
        return replace(snapshot, certificate_thumbprint=self.thumbprint)


class MachineAuthenticator:
    """Checks the credentials of services, and API keys for exchange."""

    def __init__(
        self,
        credentials: CredentialStore,
        refusals: RefusalLog,
        audiences: Audiences,
        minter: Minter,
        authorities: ClientAuthorities,
        issuer: str,
        leeway_seconds: int,
        clock: Clock,
    ) -> None:
        self._credentials = credentials
        self._refusals = refusals
        self._audiences = audiences
        self._minter = minter
        self._authorities = authorities
        self._issuer = issuer
        self._leeway = leeway_seconds
        self._clock = clock

    async def by_client_secret(self, client_id: str, raw_secret: str, wanted: Wanted, act: Act) -> Issued:
        """Raises InvalidRequest, BadCredentials, UnknownAudience, ScopeNotGranted, TokenTooLarge."""
        username = normalise_username(client_id, "client_secret.client_id")
        kind, field = opaque.Kind.CLIENT_SECRET, "client_secret.client_secret"
        grant_id, secret = _split(raw_secret, kind, field, "this is not the text of a client secret")
        proof = self._prove_secret(grant_id, secret, username)
        return await self._log_in(proof, "client_secret.use", username, wanted, act)

    async def by_api_key(self, raw_key: str, wanted: Wanted, act: Act) -> Issued:
        """Raises InvalidRequest, BadCredentials, UnknownAudience, ScopeNotGranted, TokenTooLarge."""
        grant_id, secret = _split(raw_key, opaque.Kind.API_KEY, "api_key.api_key", "this is not the text of an API key")
        return await self._log_in(self._prove_api_key(grant_id, secret), "api_key.use", grant_id, wanted, act)

    async def by_assertion(self, raw_assertion: str, wanted: Wanted, act: Act) -> Issued:
        """Raises BadCredentials, InvalidRequest, UnknownAudience, ScopeNotGranted, TokenTooLarge."""
        return await self._log_in(self._prove_assertion(raw_assertion), "assertion.use", "", wanted, act)

    async def by_certificate(self, chain_pem: bytes | None, wanted: Wanted, act: Act) -> Issued:
        """*chain_pem*: what the connection showed. The token is bound to the certificate (RFC 8705 section 3).

        Raises BadCredentials, InvalidRequest, UnknownAudience, ScopeNotGranted, TokenTooLarge.
        """
        return await self._log_in(self._prove_certificate(chain_pem), "certificate.use", "", wanted, act)

    async def _log_in(self, proof: Awaitable[_Proof], action: str, name: str, wanted: Wanted, act: Act) -> Issued:
        try:
            return await self._issue(await proof, wanted, action, act)
        except (BadCredentials, InvalidRequest, TokenTooLarge) as error:
            raise await self._refusals.noted(error, action, name, act) from None

    async def _issue(self, proof: _Proof, wanted: Wanted, action: str, act: Act) -> Issued:
        asked = await self._audiences.asked(wanted.audiences)

        def prove(record: CredentialRecord | None) -> CredentialUse:
            audiences = asked.among(proof.check(record).audiences)
            self._minter.check_scopes(audiences, wanted.scopes)
            return CredentialUse(audiences[0], wanted.scopes, self._minter.lifetime, proof.assertion)

        def admit(snapshot: GrantSnapshot) -> None:
            self._minter.check_budget(proof.bound(snapshot))

        await failpoints.reach("machine_login.before_write")
        return self._minter.issue(proof.bound(await self._credentials.use(proof.grant_id, prove, admit, action, act)))

    async def _prove_secret(self, grant_id: str, secret: bytes, username: str) -> _Proof:
        def check(record: CredentialRecord | None) -> CredentialRecord:
            found = _fitting(record, GrantKind.CLIENT_SECRET, secret)
            if found.normalised_username != username:
                raise Rejected(Cause.CLIENT_ID_WRONG)
            return _live(found)

        return _Proof(grant_id, check)

    async def _prove_api_key(self, grant_id: str, secret: bytes) -> _Proof:
        def check(record: CredentialRecord | None) -> CredentialRecord:
            found = _live(_fitting(record, GrantKind.API_KEY, secret))
            if found.use is not ApiKeyUse.EXCHANGE:
                raise InvalidRequest("this API key is for bearer use: send it to the service itself", "api_key.api_key")
            return found

        return _Proof(grant_id, check)

    async def _prove_assertion(self, raw_assertion: str) -> _Proof:
        assertion = parse_assertion(raw_assertion)
        record = await self._credentials.find_by_name(GrantKind.PUBLIC_KEY, assertion.key_id)
        if record is None or record.public_key is None:
            raise Rejected(Cause.ASSERTION_KEY_UNKNOWN)
        key = PublicKey.from_coordinates(*record.public_key)
        used = check_assertion(
            assertion, key, record.normalised_username, self._issuer, self._clock.now(), self._leeway
        )
        return _Proof(record.grant_id, _found, assertion=used)

    async def _prove_certificate(self, chain_pem: bytes | None) -> _Proof:
        now = datetime.datetime.fromtimestamp(self._clock.now(), datetime.UTC)
        certificate = read_certificate(chain_pem, self._authorities, now)
        is_registered = False
        for name in certificate.names:
            record = await self._credentials.find_by_name(GrantKind.CERTIFICATE, name)
            if record is not None and record.is_live:
                return _Proof(record.grant_id, _found, thumbprint=certificate.thumbprint)
            is_registered = is_registered or record is not None
        raise Rejected(Cause.CREDENTIAL_ENDED if is_registered else Cause.CERTIFICATE_UNREGISTERED)


def _split(raw_text: str, kind: opaque.Kind, field: str, problem: str) -> tuple[str, bytes]:
    try:
        return opaque.split_secret(raw_text, kind)
    except TokenMalformed:
        raise InvalidRequest(problem, field) from None


def _fitting(record: CredentialRecord | None, kind: GrantKind, secret: bytes) -> CredentialRecord:
    """The credential if the secret fits. Raises Rejected; an unknown one costs the same comparison."""
    is_right = is_secret(secret, (record.secret_hash if record else None) or _NO_HASH)
    if record is None or record.kind is not kind:
        raise Rejected(Cause.CREDENTIAL_UNKNOWN)
    if not is_right:
        raise Rejected(Cause.SECRET_WRONG)
    return record


def _found(record: CredentialRecord | None) -> CredentialRecord:
    """A credential that was proved before, if it is still there."""
    if record is None:
        raise Rejected(Cause.CREDENTIAL_ENDED)
    return _live(record)


def _live(record: CredentialRecord) -> CredentialRecord:
    if not record.is_live:
        raise Rejected(Cause.CREDENTIAL_ENDED)
    return record

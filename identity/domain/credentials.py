"""Administration of credentials: what machines prove themselves with. Secrets are shown once, and stored as hashes."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from identity_client.clock import Clock
from identity_client.errors import InvalidRequest
from identity_client.tokens import opaque
from identity_client.tokens.keys import PublicKey

from .accounts import normalise_ref
from .feed import Feed
from .grants import ApiKeyUse, Credential, CredentialTerms, GrantKind, NewCredential
from .ports import CredentialStore, GrantStore
from .randomness import Randomness, new_id
from .roles import check_scopes
from .secrets import hash_secret
from .texts import check_text
from .values import AccountRef, Act, EndReason
from .wanted import Audiences

MAXIMUM_DISPLAY_NAME = 128
MAXIMUM_PEM = 1024


@dataclass(frozen=True, slots=True)
class CreatedSecret:
    """A credential and its text, which is shown this once."""

    credential: Credential
    text: str = field(repr=False)


class CredentialAdmin:
    """What administrators do to credentials."""

    def __init__(
        self,
        credentials: CredentialStore,
        grants: GrantStore,
        feed: Feed,
        audiences: Audiences,
        randomness: Randomness,
        clock: Clock,
    ) -> None:
        self._credentials = credentials
        self._grants = grants
        self._feed = feed
        self._audiences = audiences
        self._randomness = randomness
        self._clock = clock

    async def create_client_secret(self, ref: AccountRef, terms: CredentialTerms, act: Act) -> CreatedSecret:
        """Raises InvalidRequest (not a service), AccountNotFound, UnknownAudience, ScopeNotGranted."""
        kind = opaque.Kind.CLIENT_SECRET
        return await self._create_secret(ref, kind, NewCredential("", GrantKind.CLIENT_SECRET, terms), act)

    async def create_api_key(self, ref: AccountRef, terms: CredentialTerms, use: ApiKeyUse, act: Act) -> CreatedSecret:
        """Raises InvalidRequest, AccountNotFound, UnknownAudience, ScopeNotGranted."""
        if use is ApiKeyUse.BEARER and not terms.audiences:
            raise InvalidRequest("name the services or groups that may accept the key", "terms.audiences")
        return await self._create_secret(
            ref, opaque.Kind.API_KEY, NewCredential("", GrantKind.API_KEY, terms, use=use), act
        )

    async def create_public_key(self, ref: AccountRef, terms: CredentialTerms, pem: str, act: Act) -> Credential:
        """Raises InvalidRequest, AccountNotFound, UnknownAudience, ScopeNotGranted, CredentialAlreadyExists."""
        key = read_public_key(pem)
        new = NewCredential(
            new_id(self._randomness), GrantKind.PUBLIC_KEY, terms, lookup_name=key.key_id, public_key=(key.x, key.y)
        )
        return await self._create(ref, new, act)

    async def create_certificate_name(self, ref: AccountRef, terms: CredentialTerms, name: str, act: Act) -> Credential:
        """*name* as `certificates.spiffe_name` or `dns_name` give it. Raises as create_public_key does."""
        return await self._create(
            ref, NewCredential(new_id(self._randomness), GrantKind.CERTIFICATE, terms, lookup_name=name), act
        )

    async def list_page(self, ref: AccountRef, before: tuple[int, str] | None, limit: int) -> list[Credential]:
        """At most *limit* live credentials, the newest first, after the one created at and named by *before*.

        Raises AccountNotFound.
        """
        return await self._credentials.list_page(normalise_ref(ref), before, limit)

    async def revoke(self, credential_id: str, note: str, act: Act) -> int:
        """End a credential and every token minted from it; -> how many grants ended. Raises GrantNotFound."""
        ended = await self._grants.end_credential(credential_id, EndReason.REVOKED, note, act)
        await self._feed.published(ended.version)
        return ended.grant_count

    async def _create_secret(self, ref: AccountRef, kind: opaque.Kind, new: NewCredential, act: Act) -> CreatedSecret:
        grant_id, secret = new_id(self._randomness), self._randomness.token_bytes(opaque.SECRET_BYTES)
        credential = await self._create(ref, replace(new, grant_id=grant_id, secret_hash=hash_secret(secret)), act)
        return CreatedSecret(credential, opaque.encode_secret(kind, grant_id, secret))

    async def _create(self, ref: AccountRef, new: NewCredential, act: Act) -> Credential:
        checked = replace(new, terms=await self._checked(new.terms))
        return await self._credentials.create(normalise_ref(ref), checked, act)

    async def _checked(self, terms: CredentialTerms) -> CredentialTerms:
        check_text(terms.display_name, MAXIMUM_DISPLAY_NAME, "terms.display_name")
        if terms.expire_time is not None and not self._clock.now() < terms.expire_time < 2**32:
            raise InvalidRequest("a time in the future, before 2106", "terms.expire_time")
        audiences = await self._audiences.check_known(terms.audiences, "terms.audiences")
        return replace(terms, audiences=audiences, scopes=check_scopes(terms.scopes, "terms.scopes"))


def read_public_key(pem: str) -> PublicKey:
    """A public key on P-256. Raises InvalidRequest: anything else, a private key above all."""
    problem = InvalidRequest("give an EC public key on P-256 as PEM ('BEGIN PUBLIC KEY')", "public_key_pem")
    if "PRIVATE" in pem:
        raise InvalidRequest(
            "this is a private key: keep it where it signs, and give its public half", "public_key_pem"
        )
    try:
        key = load_pem_public_key(pem.encode("ascii")) if len(pem) <= MAXIMUM_PEM else None
        if not isinstance(key, ec.EllipticCurvePublicKey):
            raise problem
        return PublicKey.from_key(key)
    except (ValueError, UnsupportedAlgorithm):
        raise problem from None

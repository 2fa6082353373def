"""Taking back: one token, one grant, or all of an account's grants."""

from __future__ import annotations

from identity_client.errors import TokenError, TokenMalformed
from identity_client.tokens import opaque
from identity_client.tokens.claims import Claims
from identity_client.tokens.verifier import Verifier

from .accounts import normalise_ref
from .feed import Feed
from .ports import GrantStore, RevocationStore, SessionStore
from .refresh_tokens import RefreshTokens, parse_refresh
from .secrets import is_secret
from .values import AccountRef, Act, EndReason, TokenIdentity

_NO_HASH = bytes(32)


class Revoker:
    """Ends tokens and grants; each act is in force here when the method returns."""

    def __init__(
        self,
        grants: GrantStore,
        sessions: SessionStore,
        revocations: RevocationStore,
        feed: Feed,
        verifier: Verifier,
        refresh_tokens: RefreshTokens,
    ) -> None:
        self._grants = grants
        self._sessions = sessions
        self._revocations = revocations
        self._feed = feed
        self._verifier = verifier
        self._refresh_tokens = refresh_tokens

    async def revoke_presented(self, raw_token: str, act: Act) -> None:
        """Revoke what the holder presents (RFC 7009): texts that are not ours are answered like those that are.

        Raises Overloaded (too many tokens of one credential, or of one account's).
        """
        try:
            await self.revoke_token(raw_token, "", act)
        except TokenError:
            return

    async def revoke_token(self, raw_token: str, note: str, act: Act) -> int:
        """Revoke an access token, or the grant behind another text; -> how many grants ended.

        Only what verifies is recorded, so that nobody can fill the peers with inventions.
        Raises a TokenError for a text that is no live token of ours.
        """
        match opaque.kind_of(raw_token):
            case None:
                return await self._revoke_access(raw_token, note, act)
            case opaque.Kind.REFRESH:
                return await self._revoke_refresh(raw_token, note, act)
            case kind:
                return await self._revoke_secret(raw_token, kind, note, act)

    async def end_grant(self, grant_id: str, note: str, act: Act) -> int:
        """End one session or credential. Raises GrantNotFound."""
        ended = await self._grants.end(grant_id, EndReason.REVOKED, note, act)
        await self._feed.published(ended.version)
        return ended.grant_count

    async def end_account(self, ref: AccountRef, note: str, act: Act) -> int:
        """End all grants of an account. Raises AccountNotFound."""
        ended = await self._grants.end_all(normalise_ref(ref), note, act)
        await self._feed.published(ended.version)
        return ended.grant_count

    async def _revoke_access(self, raw_token: str, note: str, act: Act) -> int:
        claims = self._verifier.verify_any_audience(raw_token)
        version = await self._revocations.revoke_token(token_identity(claims), claims.expire_time, note, act)
        await self._feed.published(version)
        return 0

    async def _revoke_refresh(self, raw_token: str, note: str, act: Act) -> int:
        presented = parse_refresh(raw_token)
        held = await self._sessions.find(presented.grant_id)
        if held is None or not self._refresh_tokens.is_genuine(presented, held):
            raise TokenMalformed()
        return await self.end_grant(presented.grant_id, note, act)

    async def _revoke_secret(self, raw_secret: str, kind: opaque.Kind, note: str, act: Act) -> int:
        grant_id, secret = opaque.split_secret(raw_secret, kind)
        if not is_secret(secret, await self._grants.find_secret_hash(grant_id) or _NO_HASH):
            raise TokenMalformed()
        return await self.end_grant(grant_id, note, act)


def token_identity(claims: Claims) -> TokenIdentity:
    """The ids inside verified claims."""
    return TokenIdentity(
        token_id=claims.token_id,
        grant_id=claims.grant_id,
        account_id=claims.account_id,
        generation=claims.generation,
        policy_version=claims.policy_version,
        key_id=claims.key_id,
        roles=claims.roles,
    )

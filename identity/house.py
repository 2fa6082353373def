"""Builds the use-cases over their stores: everything of the service but its wire."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from identity_client.clock import Clock
from identity_client.tokens.keys import PublicKey
from identity_client.tokens.verifier import Verifier
from identity_client.trust.state import TrustState

from .config import Settings
from .domain.accounts import AccountAdmin
from .domain.audiences import Audiences
from .domain.authenticate import Authenticator
from .domain.introspect import Introspector
from .domain.minting import Minter
from .domain.passwords import HashParameters, HashPool, PasswordHasher
from .domain.ports import SigningKeyStore
from .domain.randomness import Randomness, SystemRandomness
from .domain.refresh import Refresher
from .domain.refresh_tokens import RefreshTokens
from .domain.revoke import Revoker
from .domain.values import FIRST_PARTY, Act, KeyState, Seconds, SessionTerms
from .feed.hub import Hub
from .signing import LocalSigner, generate_key, open_key
from .storage.database import Stores, open_stores
from .storage.sealing import MasterKey

LOCAL_ACT = Act(request_id="", origin="local")
"""What is done on the machine itself, by whoever may read its database."""


@dataclass(frozen=True, slots=True)
class House:
    """The use-cases, ready to be served."""

    settings: Settings
    stores: Stores
    pool: HashPool
    hub: Hub
    public_keys: list[PublicKey]
    verifier: Verifier
    authenticator: Authenticator
    refresher: Refresher
    revoker: Revoker
    introspector: Introspector
    accounts: AccountAdmin

    async def open_feed(self) -> None:
        """Load the trust state and follow it. Raises DependencyDown."""
        await self.hub.start(self.settings.issuer, self.public_keys)

    async def close(self) -> None:
        """Stop the feed, the hash pool and the stores."""
        await self.hub.stop()
        self.pool.close()
        await self.stores.close()


async def open_house(settings: Settings, clock: Clock) -> House:
    """Open the database and the keys, and build. Raises ConfigurationError, DependencyDown."""
    master = MasterKey.from_file(Path(settings.master_key_file))
    stores = await open_stores(settings.database, clock)
    try:
        return await _build(settings, clock, master, stores)
    except BaseException:
        await stores.close()
        raise


async def _build(settings: Settings, clock: Clock, master: MasterKey, stores: Stores) -> House:
    randomness = SystemRandomness()
    signer = await _active_signer(stores.signing_keys, master, clock)
    state = TrustState(clock)
    hub = Hub(stores.revocations, state, clock)
    stores.set_doorbell(hub.ring)
    groups = frozenset(settings.groups)
    verifier = Verifier(
        audiences=groups | {settings.service_name}, trust=state, clock=clock, leeway_seconds=settings.leeway_seconds
    )
    pool = HashPool(settings.hash_workers, settings.hash_queue)
    hasher = PasswordHasher(_hash_parameters(settings), pool, randomness)
    minter = Minter(signer, settings.issuer, settings.service_name, settings.access_token_lifetime_seconds, randomness)
    refresh_tokens = RefreshTokens(master.derive("refresh"))
    authenticator = _authenticator(settings, stores, master, hasher, minter, refresh_tokens, randomness)
    hasher.prepare_dummy()
    return House(
        settings=settings,
        stores=stores,
        pool=pool,
        hub=hub,
        public_keys=await _public_keys(stores.signing_keys),
        verifier=verifier,
        authenticator=authenticator,
        refresher=Refresher(stores.grants, hub, minter, refresh_tokens, settings.refresh_grace_seconds, clock),
        revoker=Revoker(stores.grants, stores.revocations, hub, verifier, refresh_tokens),
        introspector=Introspector(verifier, groups),
        accounts=AccountAdmin(stores.accounts, hub, hasher, randomness, groups | {settings.service_name, FIRST_PARTY}),
    )


def _authenticator(
    settings: Settings,
    stores: Stores,
    master: MasterKey,
    hasher: PasswordHasher,
    minter: Minter,
    refresh_tokens: RefreshTokens,
    randomness: Randomness,
) -> Authenticator:
    groups = frozenset(settings.groups)
    return Authenticator(
        accounts=stores.accounts,
        grants=stores.grants,
        audit=stores.audit,
        audiences=Audiences(stores.accounts, settings.service_name, groups, settings.default_audience),
        hasher=hasher,
        minter=minter,
        refresh_tokens=refresh_tokens,
        terms=SessionTerms(settings.refresh_idle_lifetime_seconds, settings.session_absolute_lifetime_seconds),
        name_key=master.derive("audit-names"),
        randomness=randomness,
    )


def _hash_parameters(settings: Settings) -> HashParameters:
    return HashParameters(settings.hash_memory_kib, settings.hash_iterations, settings.hash_lanes)


async def _active_signer(keys: SigningKeyStore, master: MasterKey, clock: Clock) -> LocalSigner:
    """The active key; the first start makes one."""
    for record in await keys.list_keys():
        if record.state is KeyState.ACTIVE:
            return open_key(record, master)
    return open_key(await keys.add_active(generate_key(master, Seconds(int(clock.now())))), master)


async def _public_keys(keys: SigningKeyStore) -> list[PublicKey]:
    return [
        PublicKey.from_coordinates(record.public_x, record.public_y)
        for record in await keys.list_keys()
        if record.state is not KeyState.REVOKED
    ]

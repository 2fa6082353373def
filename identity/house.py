"""Builds the use-cases over their stores: everything of the service but its wire."""

from __future__ import annotations

import contextlib
import functools
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from identity_client.clock import Clock
from identity_client.errors import RetryLater
from identity_client.tokens.keys import PublicKey
from identity_client.tokens.verifier import Verifier
from identity_client.trust.state import TrustState

from .config import Settings
from .domain.accounts import AccountAdmin
from .domain.audit import AuditReader
from .domain.audit_seals import ChainBroken, SealKey
from .domain.authenticate import Authenticator, Lifetimes
from .domain.credentials import CredentialAdmin
from .domain.exchange import Exchanger
from .domain.explain import Explainer
from .domain.fence import Fencer
from .domain.grants import SessionTerms
from .domain.guessing import Limits, Throttle
from .domain.introspect import Introspector
from .domain.machines import MachineAuthenticator
from .domain.meters import Meter, NoMeter
from .domain.minting import Minter
from .domain.once import RequestIds
from .domain.origins import parse_networks
from .domain.passwords import HashParameters, HashPool, PasswordHasher
from .domain.ports import SigningKeyStore
from .domain.randomness import SystemRandomness, new_id
from .domain.refresh import Refresher
from .domain.refresh_tokens import RefreshTokens
from .domain.refusals import RefusalLog
from .domain.revoke import Revoker
from .domain.roles import RoleAdmin
from .domain.sealer import Sealer
from .domain.session_revoker import SessionRevoker
from .domain.sessions import SessionKeeper
from .domain.signing_keys import SigningKeyKeeper, jwks
from .domain.throttle import Limit
from .domain.values import FIRST_PARTY, Act, KeyState, Seconds, SigningKeyRecord
from .domain.wanted import Audiences
from .feed.hub import Hub
from .jobs import Job, Jobs, led, note_job, retention_job, rotation_job, seal_job, sweep_job
from .lasting import Label, open_secrets
from .signing import ActiveSigner, SignerKeys, generate_key
from .storage.database import Stores, open_stores
from .storage.sealing import MasterKey
from .tls import ClientAuthorityFile

if TYPE_CHECKING:
    from .storage.redis.mirror import Mirror
    from .storage.redis.throttle import RedisThrottleStore

_log = logging.getLogger(__name__)

LOCAL_ACT = Act(request_id="", origin="local")
"""What is done on the machine itself, by whoever may read its database."""


@dataclass(frozen=True, slots=True)
class House:
    """The use-cases, ready to be served."""

    name: str  # of this replica, random
    settings: Settings
    stores: Stores
    pool: HashPool
    hub: Hub
    signer_keys: SignerKeys
    signing_keys: SigningKeyKeeper
    fencer: Fencer
    verifier: Verifier
    jobs: Jobs
    authenticator: Authenticator
    machines: MachineAuthenticator
    sessions: SessionKeeper
    credentials: CredentialAdmin
    roles: RoleAdmin
    refresher: Refresher
    revoker: Revoker
    exchanger: Exchanger
    introspector: Introspector
    accounts: AccountAdmin
    session_revoker: SessionRevoker
    explainer: Explainer
    request_ids: RequestIds
    audit: AuditReader
    sealer: Sealer
    mirror: Mirror | None
    shared_throttle: RedisThrottleStore | None

    @property
    def public_keys(self) -> tuple[PublicKey, ...]:
        """The published keys: prepared, active and retired ones."""
        return self.hub.state.keys

    def jwks(self) -> bytes:
        """The published keys as a JWK Set (RFC 7517); good for PEER_REFRESH_SECONDS."""
        return jwks(self.public_keys)

    async def open_feed(self) -> None:
        """Load the trust state and follow it; begin the background work. Raises DependencyDown, ConfigurationError."""
        await self.hub.start(self.settings.issuer, self.signer_keys.read)
        if self.mirror is not None:
            await self.mirror.start()
        self.jobs.start()

    async def close(self) -> None:
        """Stop the background work, the feed, the hash pool and the stores; leave no audit event without its seal."""
        await self.jobs.stop()
        if self.mirror is not None:
            await self.mirror.stop()
        await self.hub.stop()
        await self._seal_rest()
        await self._release_leases()
        self.pool.close()
        await self._note_rest()
        await self.stores.close()

    async def _note_rest(self) -> None:
        if self.shared_throttle is not None:
            with contextlib.suppress(RetryLater):  # the database is away: what Redis holds is enough
                await self.shared_throttle.close()

    async def _seal_rest(self) -> None:
        try:
            await self.sealer.seal()
        except (ChainBroken, RetryLater) as error:
            _log.error("the end of the audit log is not sealed: %s", error)

    async def _release_leases(self) -> None:
        with contextlib.suppress(RetryLater):  # then another replica waits until they expire
            await self.stores.leases.release(self.name)


async def open_house(settings: Settings, clock: Clock, meter: Meter | None = None) -> House:
    """Open the database and the keys, and build; *meter* is told what they do.

    Raises ConfigurationError, DependencyDown.
    """
    master = MasterKey.from_file(Path(settings.master_key_file))
    stores = await open_stores(settings.database, clock, settings.database_connections, meter)
    try:
        return await _build(settings, clock, master, stores, meter or NoMeter())
    except BaseException:
        await stores.close()
        raise


async def _build(settings: Settings, clock: Clock, master: MasterKey, stores: Stores, meter: Meter) -> House:
    randomness = SystemRandomness()
    state = TrustState(clock)
    active = await _active_key(stores.signing_keys, master, clock)
    signer = ActiveSigner(active, master, state.is_key_revoked)
    secrets = await open_secrets(master, stores.sealed)
    hub = Hub(stores.revocations, state, clock, _renew_epoch(stores))
    mirror = _open_mirror(settings, stores, state)
    shared_throttle = _open_throttle(settings, stores, clock)
    stores.set_doorbell(lambda: _ring(hub, mirror))
    groups = frozenset(settings.groups)
    verifier = Verifier(
        audiences=groups | {settings.service_name}, trust=state, clock=clock, leeway_seconds=settings.leeway_seconds
    )
    pool = HashPool(settings.hash_workers, settings.hash_queue, meter=meter)
    hasher = PasswordHasher(_hash_parameters(settings), pool, randomness)
    minter = Minter(signer, settings.issuer, settings.service_name, settings.access_token_lifetime_seconds, randomness)
    refresh_tokens = RefreshTokens(secrets[Label.REFRESH])
    hasher.prepare_dummy()
    audiences = Audiences(stores.accounts, settings.service_name, groups, settings.default_audience)
    refusals = RefusalLog(stores.audit, secrets[Label.AUDIT_NAMES])
    introspector = Introspector(verifier, stores.grants, minter, settings.issuer, groups, clock)
    seal_key = SealKey(secrets[Label.AUDIT_SEAL])
    sealer = Sealer(stores.audit_seals, seal_key, settings.audit_retention_days, clock)
    name = new_id(randomness)
    make_key = functools.partial(generate_key, master)
    keeper = SigningKeyKeeper(stores.signing_keys, hub, make_key, _key_lifetime(settings), clock)
    return House(
        name=name,
        settings=settings,
        stores=stores,
        pool=pool,
        hub=hub,
        signer_keys=SignerKeys(stores.signing_keys, signer),
        signing_keys=keeper,
        fencer=Fencer(stores.fence, make_key, clock),
        verifier=verifier,
        jobs=Jobs(*_background(stores, sealer, keeper, shared_throttle, name), meter=meter),
        authenticator=Authenticator(
            accounts=stores.accounts,
            sessions=stores.sessions,
            feed=hub,
            refusals=refusals,
            throttle=Throttle(shared_throttle or stores.throttle, secrets[Label.THROTTLE], _limits(settings)),
            audiences=audiences,
            hasher=hasher,
            minter=minter,
            refresh_tokens=refresh_tokens,
            lifetimes=_lifetimes(settings),
            randomness=randomness,
        ),
        machines=MachineAuthenticator(
            credentials=stores.credentials,
            refusals=refusals,
            audiences=audiences,
            minter=minter,
            authorities=ClientAuthorityFile(settings.tls_client_ca_file),
            issuer=settings.issuer,
            leeway_seconds=settings.leeway_seconds,
            clock=clock,
        ),
        sessions=SessionKeeper(stores.sessions, stores.grants, hub),
        credentials=CredentialAdmin(stores.credentials, stores.grants, hub, audiences, randomness, clock),
        roles=RoleAdmin(stores.roles, hub),
        refresher=Refresher(
            stores.sessions, stores.grants, hub, minter, refresh_tokens, settings.refresh_grace_seconds, clock, refusals
        ),
        revoker=Revoker(stores.grants, stores.sessions, stores.revocations, hub, verifier, refresh_tokens),
        exchanger=Exchanger(introspector, stores.grants, audiences, minter, settings.service_name),
        session_revoker=SessionRevoker(stores.session_selection, stores.accounts, hub),
        explainer=Explainer(
            grants=stores.grants,
            sessions=stores.sessions,
            revocations=stores.revocations,
            verifier=verifier,
            trust=state,
            refresh_tokens=refresh_tokens,
            leeway_seconds=settings.leeway_seconds,
            clock=clock,
        ),
        introspector=introspector,
        accounts=AccountAdmin(
            accounts=stores.accounts,
            sessions=stores.sessions,
            feed=hub,
            hasher=hasher,
            randomness=randomness,
            reserved_names=groups | {settings.service_name, FIRST_PARTY},
        ),
        request_ids=RequestIds(secrets[Label.REQUEST_IDS]),
        audit=AuditReader(stores.audit, stores.accounts),
        sealer=sealer,
        mirror=mirror,
        shared_throttle=shared_throttle,
    )


def _open_mirror(settings: Settings, stores: Stores, state: TrustState) -> Mirror | None:
    """Redis is loaded only where one is configured."""
    if not settings.redis_url:
        return None
    from .storage.redis.mirror import Mirror

    return Mirror(settings.redis_url, settings.redis_prefix, stores.revocations, state.entry_count)


def _open_throttle(settings: Settings, stores: Stores, clock: Clock) -> RedisThrottleStore | None:
    if not settings.redis_url:
        return None
    from .storage.redis.client import open_client
    from .storage.redis.throttle import ANSWER_SECONDS, RedisThrottleStore

    client = open_client(settings.redis_url, ANSWER_SECONDS)
    return RedisThrottleStore(client, settings.redis_prefix, stores.throttle, clock)


def _background(
    stores: Stores, sealer: Sealer, keeper: SigningKeyKeeper, throttle: RedisThrottleStore | None, name: str
) -> list[Job]:
    """What one replica does for all, and what each does for itself."""
    shared = (sweep_job(stores.sweeper), seal_job(sealer), retention_job(sealer), rotation_job(keeper))
    own = [] if throttle is None else [note_job(throttle.note_failures)]
    return [*(led(job, stores.leases, name) for job in shared), *own]


def _ring(hub: Hub, mirror: Mirror | None) -> None:
    hub.ring()
    if mirror is not None:
        mirror.ring()


def _renew_epoch(stores: Stores) -> Callable[[str], Awaitable[bool]]:
    return lambda epoch: stores.fence.renew_epoch(epoch, LOCAL_ACT)


def _lifetimes(settings: Settings) -> Lifetimes:
    absolute = settings.session_absolute_lifetime_seconds
    return Lifetimes(
        with_refresh=SessionTerms(settings.refresh_idle_lifetime_seconds, absolute),
        opaque=SessionTerms(settings.session_idle_lifetime_seconds, absolute),
    )


def _hash_parameters(settings: Settings) -> HashParameters:
    return HashParameters(settings.hash_memory_kib, settings.hash_iterations, settings.hash_lanes)


def _limits(settings: Settings) -> Limits:
    return Limits(
        name=Limit(settings.throttle_name_failures, settings.throttle_delay_seconds * 1_000),
        origin=_hourly(settings.throttle_origin_failures),
        shared_origin=_hourly(settings.throttle_shared_origin_failures),
        shared_origins=parse_networks(settings.shared_origins),
    )


def _hourly(failures: int) -> Limit:
    """So many at once, and so many an hour."""
    return Limit(failures, 3_600_000 // failures)


async def _active_key(keys: SigningKeyStore, master: MasterKey, clock: Clock) -> SigningKeyRecord:
    """The active key; the first start makes one."""
    for record in await keys.list_keys():
        if record.state is KeyState.ACTIVE:
            return record
    return await keys.add_active(generate_key(master, Seconds(int(clock.now()))), LOCAL_ACT)


def _key_lifetime(settings: Settings) -> timedelta:
    return timedelta(days=settings.signing_key_lifetime_days)

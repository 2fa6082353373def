"""A peer is flooded with forgeries that only the service could tell from good ones: how often is it asked?

`make attacks` sends ten thousand; an ordinary run sends fewer. Good bearers pass all the while.
"""

from __future__ import annotations

import asyncio
import os
import random
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable
from functools import partial
from typing import Any

import grpc
import grpc.aio
import pytest

from identity_client import status
from identity_client.aio.environment import Connection
from identity_client.aio.identity import Identity
from identity_client.aio.introspection import MAXIMUM_FLIGHTS
from identity_client.errors import Overloaded
from identity_client.tokens.opaque import Kind
from tests.attacks.forger import Forger
from tests.attacks.mutants import ALPHABET
from tests.clients.fake_identity import CLIENT_ID, CLIENT_SECRET, FakeIdentity
from tests.clients.issuer import FixedClock, bearer, opaque_text
from tests.clients.probe import CLERK, SERVICE, Peer, until

FORGERIES = int(os.environ.get("IDENTITY_TEST_FORGERIES", "1000"))
SEED = 2_718
WINDOW_SECONDS, WINDOWS = 5, 4
AT_ONCE = 100
METHOD = f"/{SERVICE}/UnaryUnary"


@pytest.fixture
async def peer(fake: FakeIdentity, clock: FixedClock) -> AsyncIterator[Peer]:
    connection = Connection(fake.address, CLIENT_ID, CLIENT_SECRET)
    async with (
        Identity(connection, clock=clock, start_timeout_seconds=10) as identity,
        Peer(identity.guard("orders", rules={METHOD: CLERK})) as running,
    ):
        fake.calls.clear()
        yield running


async def verdict(peer: Peer, raw_token: str) -> str:
    """`OK`, or the reason of the refusal."""
    try:
        await peer.call("UnaryUnary", bearer(raw_token))
    except grpc.RpcError as error:
        return status.from_rpc_error(error).reason
    return "OK"


async def verdicts(peer: Peer, texts: Iterable[str]) -> Counter[str]:
    """Of all *texts*, AT_ONCE side by side."""
    waiting, counted = list(texts), Counter[str]()
    for at in range(0, len(waiting), AT_ONCE):
        counted.update(await asyncio.gather(*(verdict(peer, text) for text in waiting[at : at + AT_ONCE])))
    return counted


def asked(fake: FakeIdentity) -> Counter[str]:
    """The calls since the flood began, but for the stream and the peer's own log-in."""
    return Counter({name: count for name, count in fake.calls.items() if name not in ("WatchTrust", "Authenticate")})


def has_fetched(fake: FakeIdentity, times: int) -> bool:
    return asked(fake)["GetKeys"] >= times


async def test_a_flood_of_unknown_keys_costs_one_fetch_in_five_seconds_and_good_tokens_pass(
    peer: Peer, fake: FakeIdentity, clock: FixedClock
) -> None:
    forger = Forger(fake.issuer, random.Random(SEED))
    for window in range(1, WINDOWS + 1):
        forged = [
            forger.member("kid", "".join(forger.chance.choices(ALPHABET, k=43))) for _ in range(FORGERIES // WINDOWS)
        ]
        good = [fake.issuer.mint() for _ in range(FORGERIES // WINDOWS // 10)]
        mixed = forger.chance.sample(forged + good, len(forged) + len(good))
        assert await verdicts(peer, mixed) == {"UNKNOWN_KEY": len(forged), "OK": len(good)}
        await until(partial(has_fetched, fake, window))
        assert asked(fake) == {"GetKeys": window}
        clock.advance(WINDOW_SECONDS)


SPOILT: dict[str, Callable[[str, random.Random], str]] = {
    "a random text behind the prefix": lambda text, chance: (
        text[:4] + "".join(chance.choices(ALPHABET.replace("-", "").replace("_", ""), k=len(text) - 4))
    ),
    "one character less": lambda text, chance: text[:-1],
    "one character more": lambda text, chance: text + chance.choice("0aZ"),
    "another character in the body": lambda text, chance: text[:10] + ("0" if text[10] != "0" else "1") + text[11:],
    "the other prefix": lambda text, chance: ("idk_" if text.startswith("ids_") else "ids_") + text[4:],
}


@pytest.mark.parametrize("name", SPOILT)
async def test_a_flood_of_malformed_session_tokens_and_api_keys_asks_nothing(
    peer: Peer, fake: FakeIdentity, name: str
) -> None:
    chance = random.Random(SEED)
    good = [fake.open_grant(kind) for kind in (Kind.SESSION, Kind.API_KEY)]
    forged = [SPOILT[name](chance.choice(good), chance) for _ in range(FORGERIES // len(SPOILT))]
    assert await verdicts(peer, forged) == {"TOKEN_MALFORMED": len(forged)}
    assert asked(fake) == {}
    assert await verdicts(peer, good) == {"OK": 2}


async def test_a_flood_of_well_formed_ones_puts_a_bounded_number_of_questions_and_what_is_known_passes(
    peer: Peer, fake: FakeIdentity
) -> None:
    """At a service that is slow to answer: one that answers is asked once for each, and forgets none of its own."""
    known, stranger = fake.open_grant(Kind.SESSION), fake.open_grant(Kind.SESSION)
    assert await verdict(peer, known) == "OK"
    fake.calls.clear()
    fake.answers_introspection.clear()
    held = [asyncio.create_task(verdict(peer, opaque_text(Kind.SESSION))) for _ in range(MAXIMUM_FLIGHTS)]
    await until(lambda: asked(fake)["Introspect"] == MAXIMUM_FLIGHTS)

    flood = (opaque_text(chosen) for chosen in (Kind.SESSION, Kind.API_KEY) for _ in range(FORGERIES // 2))
    assert await verdicts(peer, flood) == {"OVERLOADED": 2 * (FORGERIES // 2)}
    assert asked(fake) == {"Introspect": MAXIMUM_FLIGHTS}
    assert await verdicts(peer, [known, fake.issuer.mint()]) == {"OK": 2}
    refusal: Any = await peer.refusal("UnaryUnary", bearer(stranger))
    assert isinstance(refusal, Overloaded)
    assert refusal.retry_after_seconds > 0

    fake.answers_introspection.set()
    assert set(await asyncio.gather(*held)) == {"TOKEN_REVOKED"}
    assert await verdict(peer, stranger) == "OK"

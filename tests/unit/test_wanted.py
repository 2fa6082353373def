"""For whom a log-in's tokens are, and which service may accept a bearer text."""

from __future__ import annotations

from typing import Any, cast

import pytest

from identity.domain.introspect import Asker, Introspector
from identity.domain.ports import AccountStore
from identity.domain.wanted import MAXIMUM_AUDIENCES, Audiences
from identity_client.errors import InvalidRequest, UnknownAudience

SERVICES = ("orders", "billing")


class Services:
    """An AccountStore that knows services alone."""

    async def is_audience(self, name: str) -> bool:
        return name in SERVICES or name.startswith("many")


@pytest.fixture
def audiences() -> Audiences:
    groups = frozenset({"internal", "batch"})
    return Audiences(cast(AccountStore, Services()), "identity", groups, "internal")


@pytest.mark.requirement("R23")
@pytest.mark.parametrize(
    ("wanted", "allowed", "issued"),
    [
        ((), (), ("internal",)),
        ((), ("internal",), ("internal",)),
        ((), ("orders", "internal"), ("internal",)),
        ((), ("orders", "billing"), ("orders",)),
        (("orders",), (), ("orders",)),
        (("identity",), (), ("identity",)),
        (("batch",), (), ("batch",)),
        (("orders", "billing", "orders"), (), ("orders", "billing")),
        (("billing",), ("orders", "billing"), ("billing",)),
    ],
)
async def test_an_audience_is_resolved(
    audiences: Audiences, wanted: tuple[str, ...], allowed: tuple[str, ...], issued: tuple[str, ...]
) -> None:
    assert (await audiences.asked(wanted)).among(allowed) == issued


@pytest.mark.requirement("R23")
@pytest.mark.parametrize("name", ["", "carol", "Orders", "orders ", "intern", "internal.orders", "first-party", "*"])
async def test_an_audience_must_be_a_service_or_a_group(audiences: Audiences, name: str) -> None:
    with pytest.raises(UnknownAudience):
        await audiences.resolve(("orders", name))


@pytest.mark.requirement("R30")
@pytest.mark.parametrize("wanted", [("billing",), ("internal",), ("orders", "billing"), ("identity",)])
async def test_a_credential_gives_nothing_for_others_than_its_own_audiences(
    audiences: Audiences, wanted: tuple[str, ...]
) -> None:
    asked = await audiences.asked(wanted)
    with pytest.raises(InvalidRequest) as refused:
        asked.among(("orders",))
    assert refused.value.field == "audience"


async def test_audiences_are_few(audiences: Audiences) -> None:
    names = tuple(f"many{number}" for number in range(MAXIMUM_AUDIENCES))
    assert await audiences.check_known(names) == names
    assert await audiences.check_known(names * 2) == names
    with pytest.raises(InvalidRequest) as refused:
        await audiences.check_known((*names, "many"), "terms.audiences")
    assert refused.value.field == "terms.audiences"


@pytest.mark.requirement("R23")
@pytest.mark.parametrize(
    ("of_the_text", "asker", "matched"),
    [
        (("orders",), "orders", "orders"),
        (("billing", "orders"), "orders", "orders"),
        (("internal", "orders"), "orders", "orders"),  # its own name before a group
        (("internal",), "orders", "internal"),
        (("billing", "internal"), "orders", "internal"),
        (("billing",), "orders", None),
        (("order",), "orders", None),
        (("orders.v2",), "orders", None),
        (("Orders",), "orders", None),
        (("identity",), "orders", None),
        ((), "orders", None),
        (("orders",), "", None),
        (("orders",), "first-party", None),
    ],
)
def test_who_may_accept_a_text(of_the_text: tuple[str, ...], asker: str, matched: str | None) -> None:
    assert introspector()._match(of_the_text, Asker(asker)) == matched


def test_who_may_ask_for_any_service_is_told_the_texts_own_audience() -> None:
    anyone = Asker("gateway", may_ask_for_any=True)
    assert introspector()._match(("billing", "orders"), anyone) == "billing"
    assert introspector()._match((), anyone) is None


def introspector() -> Introspector:
    nothing = cast(Any, None)
    return Introspector(nothing, nothing, nothing, "https://identity.test", frozenset({"internal"}), nothing)

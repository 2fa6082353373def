"""The public face as a strictly typed peer sees it: mypy checks these, and they are true."""

from __future__ import annotations

from typing import assert_type

import identity_client
from identity_client import aio
from identity_client.access.report import WouldBeRefusal
from tests.clients.shapes import TABLE

CONNECTION = aio.Connection("127.0.0.1:1", "orders", "idc_secret")


def test_a_guard_is_made_before_the_service_is_reached() -> None:
    threaded = identity_client.Identity(CONNECTION)
    guard = threaded.guard("orders", rules=TABLE, on_stale="confirm", enforce=False)
    assert_type(guard, identity_client.Guard)
    assert_type(guard.report.counts(), dict[WouldBeRefusal, int])
    assert guard.report.counts() == {}
    assert_type(aio.Identity(CONNECTION).guard("orders", rules=TABLE), aio.Guard)


def test_a_caller_is_typed_to_the_last_field() -> None:
    principal = identity_client.find_principal()
    assert_type(principal, identity_client.Principal | None)
    assert principal is None


def read(principal: identity_client.Principal) -> None:
    """What a handler reads."""
    assert_type(principal.subject, str)
    assert_type(principal.scopes, tuple[str, ...])
    assert_type(principal.roles, tuple[str, ...])
    assert_type(principal.authentication_time, int | None)
    assert_type(principal.actor, str)

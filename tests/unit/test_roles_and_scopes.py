"""What roles and scopes may be called, and how a grant is narrowed."""

from __future__ import annotations

import pytest

from identity.domain.roles import (
    KNOWN_OWN_SCOPES,
    MAXIMUM_DESCRIPTION,
    MAXIMUM_ROLES,
    MAXIMUM_SCOPES,
    check_description,
    check_role_name,
    check_roles,
    check_scopes,
    narrow,
    still_granted,
)
from identity.domain.texts import check_text
from identity_client.errors import InvalidRequest, ScopeNotGranted
from identity_client.tokens import opaque
from tests.clients.issuer import FixedClock, Issuer, opaque_text


@pytest.mark.parametrize("name", ["a", "clerk", "orders.clerk-2_x", "a" * 64])
def test_a_role_name(name: str) -> None:
    assert check_role_name(name, "name") == name


@pytest.mark.parametrize(
    "name", ["", "Clerk", "1clerk", ".clerk", "cl erk", "clerk\n", "cl\u00e9rk", "clerk:x", "a" * 65, "-"]
)
def test_no_role_name(name: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        check_role_name(name, "role.name")
    assert refused.value.field == "role.name"


def test_roles_are_sorted_and_each_stands_once() -> None:
    assert check_roles(["manager", "clerk", "manager"]) == ("clerk", "manager")
    assert check_roles([]) == ()


def test_an_account_has_a_bounded_number_of_roles_of_a_bounded_length() -> None:
    names = [f"role{number:02}" for number in range(MAXIMUM_ROLES)]
    assert len(check_roles(names)) == MAXIMUM_ROLES
    assert check_roles(letter * 64 for letter in "abcdefghijkl")  # 768 characters
    for too_much in ([*names, "more"], [letter * 64 for letter in "abcdefghijkl"] + ["m"]):
        with pytest.raises(InvalidRequest) as refused:
            check_roles(too_much)
        assert refused.value.field == "roles"


@pytest.mark.parametrize("scope", ["a", "orders.read", "https://x/y?z=[1]", "!", "~", "#", "[", "]", "x" * 64])
def test_a_scope(scope: str) -> None:
    assert check_scopes([scope], "scopes") == (scope,)


@pytest.mark.parametrize("scope", ["", " ", "a b", "a\n", 'a"', "a\\", "\u00e9", "\x7f", "x" * 65])
def test_no_scope(scope: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        check_scopes(["fine", scope], "terms.scopes")
    assert refused.value.field == "terms.scopes"


def test_scopes_are_sorted_each_once_and_not_without_number() -> None:
    assert check_scopes(["b", "a", "b"], "scopes") == ("a", "b")
    many = [f"s{number}" for number in range(MAXIMUM_SCOPES)]
    assert len(check_scopes(many, "scopes")) == MAXIMUM_SCOPES
    with pytest.raises(InvalidRequest):
        check_scopes([*many, "more"], "scopes")


@pytest.mark.parametrize("scope", ["identity.", "identity.root", "identity.admin.write", "identity.Admin"])
def test_nobody_invents_scopes_of_this_service(scope: str) -> None:
    with pytest.raises(InvalidRequest):
        check_scopes([scope], "scopes")


def test_the_scopes_of_this_service_may_be_granted() -> None:
    assert check_scopes(KNOWN_OWN_SCOPES, "scopes") == tuple(sorted(KNOWN_OWN_SCOPES))
    assert check_scopes(["identityx"], "scopes") == ("identityx",)


@pytest.mark.parametrize(
    ("granted", "requested", "issued"),
    [((), (), ()), (("a", "b"), (), ("a", "b")), (("a", "b"), ("b",), ("b",)), (("a", "b"), ("b", "a"), ("a", "b"))],
)
def test_a_request_narrows(granted: tuple[str, ...], requested: tuple[str, ...], issued: tuple[str, ...]) -> None:
    assert narrow(granted, requested) == issued


@pytest.mark.parametrize(("granted", "requested"), [((), ("a",)), (("a",), ("a", "b")), (("a",), ("A",))])
def test_a_request_never_widens(granted: tuple[str, ...], requested: tuple[str, ...]) -> None:
    with pytest.raises(ScopeNotGranted):
        narrow(granted, requested)


def test_a_narrow_grant_that_lost_everything_has_nothing_and_not_all() -> None:
    assert still_granted(("b", "c"), ("a",)) == ()
    assert still_granted(("b", "c"), ("a", "c")) == ("c",)
    assert still_granted(("b", "c"), ()) == ("b", "c")


def test_a_description_is_for_people() -> None:
    assert check_description("Verkäufer, 売り手 and others.")
    for text in ("x" * (MAXIMUM_DESCRIPTION + 1), "two\nlines", "bell\x07", "\u202eright to left", "\ud800"):
        with pytest.raises(InvalidRequest) as refused:
            check_description(text)
        assert refused.value.field == "description"


@pytest.mark.requirement("R48")
@pytest.mark.parametrize("kind", opaque.Kind)
def test_a_free_text_holds_no_token(kind: opaque.Kind) -> None:
    secret = opaque_text(kind)
    for text in (secret, f"found {secret} in a chat", f"a\u00a0{secret}"):
        with pytest.raises(InvalidRequest) as refused:
            check_text(text, 512, "reason")
        assert refused.value.field == "reason"
        assert secret not in str(refused.value)


@pytest.mark.requirement("R48")
def test_a_free_text_holds_no_access_token(clock: FixedClock) -> None:
    token = Issuer(clock).mint()
    with pytest.raises(InvalidRequest):
        check_text(f"pasted: {token}", 4_096, "reason")


def test_a_free_text_may_be_empty_or_of_the_longest_length() -> None:
    assert check_text("", 3, "reason") == ""
    assert check_text("abc", 3, "reason") == "abc"

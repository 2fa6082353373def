"""Each method's comment in the protos names the scope that opens it and the reasons that it can answer."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from identity_client.errors import BY_REASON

PROTOS = Path(__file__).parents[2] / "protos" / "identity" / "v1"
METHOD = re.compile(r"((?:  //[^\n]*\n)+)  rpc (\w+)\(.*?\n  }\n", re.DOTALL)
METHODS = {
    f"{path.stem}.{name}": (comment, text)
    for path in sorted(PROTOS.glob("*.proto"))
    for text, comment, name in (
        (found[0].removeprefix(found[1]), found[1], found[2]) for found in METHOD.finditer(path.read_text())
    )
}


def prose(comment: str) -> str:
    return " ".join(line.strip().removeprefix("//").strip() for line in comment.splitlines())


def test_the_protos_are_read_whole() -> None:
    declared = sum(len(re.findall(r"^  rpc ", path.read_text(), re.MULTILINE)) for path in PROTOS.glob("*.proto"))
    assert len(METHODS) == declared > 40


@pytest.mark.requirement("R60")
@pytest.mark.parametrize("name", METHODS)
def test_a_comment_names_the_scope_of_the_option(name: str) -> None:
    comment, text = METHODS[name]
    for scope in re.findall(r'scopes: "([a-z.]+)"', text):
        assert re.search(rf"Needs {re.escape(scope)}[.,;]", prose(comment)), scope


@pytest.mark.requirement("R60")
@pytest.mark.parametrize("name", METHODS)
def test_a_comment_names_reasons_that_exist_and_an_outage_where_there_can_be_one(name: str) -> None:
    comment, text = METHODS[name]
    reasons = set(re.findall(r"\b[A-Z]{3,}(?:_[A-Z]+)+\b", prose(comment)))
    known = set(BY_REASON)
    about = {word for word in reasons if word not in known}
    assert about <= {"ACCESS_TOKEN", "GRANT_TYPE", "GRANT_TYPE_SESSION"}, about
    if "CONFIRMED" in text:
        assert "DEPENDENCY_DOWN" in reasons

"""The reference of settings and metrics is that of the code."""

from __future__ import annotations

from dataclasses import fields

from identity import reference
from identity.config import Settings


def test_the_reference_is_up_to_date() -> None:
    text = reference.README.read_text("utf-8")
    assert reference.updated(text) == text, "run `make reference`"


def test_every_setting_is_explained_and_nothing_else() -> None:
    assert {setting.name for setting in fields(Settings)} == set(reference.MEANINGS)

"""Types and options that every migration may use; they mean the same for ever."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa

TEXT = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")
EVENT_ID = sa.BigInteger().with_variant(sa.Integer, "sqlite")


def only(condition: str) -> dict[str, Any]:
    """For an index of the rows alone that fit *condition*, on either database."""
    return {"sqlite_where": sa.text(condition), "postgresql_where": sa.text(condition)}

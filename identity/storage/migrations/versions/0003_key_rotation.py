"""Signing keys that follow one another, and leases of background jobs."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """Add what is new. The program before this one goes on with what it knows."""
    for name in ("activate_time", "retire_time", "revoke_time"):
        op.add_column("signing_keys", sa.Column(name, sa.BigInteger))
    op.execute("UPDATE signing_keys SET activate_time = create_time WHERE state = 'active'")
    op.create_index(
        "one_prepared_signing_key",
        "signing_keys",
        ["state"],
        unique=True,
        sqlite_where=sa.text("state = 'prepared'"),
        postgresql_where=sa.text("state = 'prepared'"),
    )
    op.create_table(
        "leases",
        sa.Column("name", sa.Text, primary_key=True),
        sa.Column("holder", sa.Text, nullable=False),
        sa.Column("expire_time_ms", sa.BigInteger, nullable=False),
    )

"""Signing keys that follow one another, secrets that outlive the master key, leases of background jobs, and who ended
what."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from identity.storage.migrations.types import TEXT, only

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
        **only("state = 'prepared'"),
    )
    op.create_table(
        "leases",
        sa.Column("name", TEXT, primary_key=True),
        sa.Column("holder", TEXT, nullable=False),
        sa.Column("expire_time_ms", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "sealed_secrets",
        sa.Column("label", TEXT, primary_key=True),
        sa.Column("sealed_secret", sa.LargeBinary, nullable=False),
    )
    op.add_column("revocations", sa.Column("account_id", TEXT))
    op.create_index(
        "revocations_by_account",
        "revocations",
        ["account_id", "expire_time"],
        **only("account_id IS NOT NULL"),
    )

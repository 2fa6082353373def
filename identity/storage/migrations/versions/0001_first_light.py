"""First light: accounts, grants, the feed, signing keys, audit."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Create every table."""
    op.create_table(
        "accounts",
        sa.Column("account_id", sa.Text, primary_key=True),
        sa.Column("kind", sa.Text, nullable=False),
        sa.Column("username", sa.Text, nullable=False),
        sa.Column("normalised_username", sa.Text, nullable=False, unique=True),
        sa.Column("roles", sa.Text, nullable=False),
        sa.Column("generation", sa.BigInteger, nullable=False),
        sa.Column("credential_version", sa.BigInteger, nullable=False),
        sa.Column("password_hash", sa.Text),
        sa.Column("create_time", sa.BigInteger, nullable=False),
        sa.Column("update_time", sa.BigInteger, nullable=False),
        sa.Column("disable_time", sa.BigInteger),
    )
    op.create_table(
        "grants",
        sa.Column("grant_id", sa.Text, primary_key=True),
        sa.Column("account_id", sa.Text, sa.ForeignKey("accounts.account_id"), nullable=False),
        sa.Column("kind", sa.Text, nullable=False),
        sa.Column("create_time", sa.BigInteger, nullable=False),
        sa.Column("end_time", sa.BigInteger),
        sa.Column("end_reason", sa.Text),
        sa.Column("latest_expire_time", sa.BigInteger, nullable=False),
        sa.Column("secret_hash", sa.LargeBinary),
        sa.Column("audience", sa.Text),
        sa.Column("requested_scopes", sa.Text),
        sa.Column("authentication_time", sa.BigInteger),
        sa.Column("count", sa.BigInteger),
        sa.Column("salt", sa.LargeBinary),
        sa.Column("grace_until", sa.BigInteger),
        sa.Column("idle_lifetime", sa.BigInteger),
        sa.Column("expire_time", sa.BigInteger),
        sa.Column("absolute_expire_time", sa.BigInteger),
    )
    op.create_index("grants_by_account", "grants", ["account_id"])
    op.create_table(
        "revocations",
        sa.Column("version", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("kind", sa.Integer, nullable=False),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("minimum", sa.BigInteger, nullable=False),
        sa.Column("expire_time", sa.BigInteger, nullable=False),
    )
    op.create_index("revocations_by_name", "revocations", ["kind", "name"])
    op.create_index("revocations_by_expiry", "revocations", ["expire_time"])
    op.create_table(
        "feed_head",
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("epoch", sa.Text, nullable=False),
        sa.Column("version", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "signing_keys",
        sa.Column("key_id", sa.Text, primary_key=True),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("public_x", sa.LargeBinary, nullable=False),
        sa.Column("public_y", sa.LargeBinary, nullable=False),
        sa.Column("sealed_private_key", sa.LargeBinary, nullable=False),
        sa.Column("create_time", sa.BigInteger, nullable=False),
    )
    op.create_index(
        "one_active_signing_key", "signing_keys", ["state"], unique=True, sqlite_where=sa.text("state = 'active'")
    )
    op.create_table(
        "audit_events",
        sa.Column("event_id", sa.Integer, primary_key=True, autoincrement=True),
        sa.Column("time_ms", sa.BigInteger, nullable=False),
        sa.Column("action", sa.Text, nullable=False),
        sa.Column("outcome", sa.Text, nullable=False),
        sa.Column("account_id", sa.Text),
        sa.Column("grant_id", sa.Text),
        sa.Column("caller_account_id", sa.Text),
        sa.Column("caller_grant_id", sa.Text),
        sa.Column("origin", sa.Text, nullable=False),
        sa.Column("request_id", sa.Text, nullable=False),
        sa.Column("note", sa.Text, nullable=False),
        sa.Column("refusal_key", sa.Text, unique=True),
    )

"""First light: accounts, grants, the feed, signing keys, audit."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from identity.storage.migrations.types import EVENT_ID, TEXT, only

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Create every table."""
    op.create_table(
        "accounts",
        sa.Column("account_id", TEXT, primary_key=True),
        sa.Column("kind", TEXT, nullable=False),
        sa.Column("username", TEXT, nullable=False),
        sa.Column("normalised_username", TEXT, nullable=False, unique=True),
        sa.Column("roles", TEXT, nullable=False),
        sa.Column("generation", sa.BigInteger, nullable=False),
        sa.Column("credential_version", sa.BigInteger, nullable=False),
        sa.Column("password_hash", TEXT),
        sa.Column("create_time", sa.BigInteger, nullable=False),
        sa.Column("update_time", sa.BigInteger, nullable=False),
        sa.Column("disable_time", sa.BigInteger),
    )
    op.create_table(
        "grants",
        sa.Column("grant_id", TEXT, primary_key=True),
        sa.Column("account_id", TEXT, sa.ForeignKey("accounts.account_id"), nullable=False),
        sa.Column("kind", TEXT, nullable=False),
        sa.Column("create_time", sa.BigInteger, nullable=False),
        sa.Column("end_time", sa.BigInteger),
        sa.Column("end_reason", TEXT),
        sa.Column("latest_expire_time", sa.BigInteger, nullable=False),
        sa.Column("secret_hash", sa.LargeBinary),
        sa.Column("audience", TEXT),
        sa.Column("requested_scopes", TEXT),
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
        sa.Column("name", TEXT, nullable=False),
        sa.Column("minimum", sa.BigInteger, nullable=False),
        sa.Column("expire_time", sa.BigInteger, nullable=False),
    )
    op.create_index("revocations_by_name", "revocations", ["kind", "name"])
    op.create_index("revocations_by_expiry", "revocations", ["expire_time"])
    op.create_table(
        "feed_head",
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("epoch", TEXT, nullable=False),
        sa.Column("version", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "signing_keys",
        sa.Column("key_id", TEXT, primary_key=True),
        sa.Column("state", TEXT, nullable=False),
        sa.Column("public_x", sa.LargeBinary, nullable=False),
        sa.Column("public_y", sa.LargeBinary, nullable=False),
        sa.Column("sealed_private_key", sa.LargeBinary, nullable=False),
        sa.Column("create_time", sa.BigInteger, nullable=False),
    )
    op.create_index("one_active_signing_key", "signing_keys", ["state"], unique=True, **only("state = 'active'"))
    op.create_table(
        "audit_events",
        sa.Column("event_id", EVENT_ID, primary_key=True, autoincrement=True),
        sa.Column("time_ms", sa.BigInteger, nullable=False),
        sa.Column("action", TEXT, nullable=False),
        sa.Column("outcome", TEXT, nullable=False),
        sa.Column("account_id", TEXT),
        sa.Column("grant_id", TEXT),
        sa.Column("caller_account_id", TEXT),
        sa.Column("caller_grant_id", TEXT),
        sa.Column("origin", TEXT, nullable=False),
        sa.Column("request_id", TEXT, nullable=False),
        sa.Column("note", TEXT, nullable=False),
        sa.Column("refusal_key", TEXT, unique=True),
    )

"""Credentials of every kind, opaque sessions, and roles as rows. Every role that an account bears becomes one."""

from __future__ import annotations

import secrets
import time

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"

_BUILT_IN = {
    "admin": ("Administers this service.", "identity.admin identity.admin.read identity.audit"),
    "peer": ("Verifies tokens by itself: follows revocations, introspects.", "identity.introspect identity.watch"),
}


def upgrade() -> None:
    """Add and fill what is new."""
    op.add_column(
        "accounts", sa.Column("password_change_required", sa.Boolean, nullable=False, server_default=sa.false())
    )
    _change_grants()
    _create_roles()
    op.create_table(
        "used_assertions",
        sa.Column("grant_id", sa.Text, primary_key=True),
        sa.Column("assertion_hash", sa.LargeBinary, primary_key=True),
        sa.Column("expire_time", sa.BigInteger, nullable=False),
    )
    op.create_index("used_assertions_by_expiry", "used_assertions", ["expire_time"])


def _change_grants() -> None:
    op.execute("UPDATE grants SET audience = '' WHERE audience IS NULL")
    op.execute("UPDATE grants SET requested_scopes = '' WHERE requested_scopes IS NULL")
    op.drop_index("grants_by_account", "grants")
    with op.batch_alter_table("grants") as batch:
        batch.alter_column("audience", new_column_name="audiences", existing_type=sa.Text(), nullable=False)
        batch.alter_column("requested_scopes", existing_type=sa.Text(), nullable=False)
        batch.add_column(sa.Column("last_used_time", sa.BigInteger))
        batch.add_column(sa.Column("display_name", sa.Text))
        batch.add_column(sa.Column("api_key_use", sa.Text))
        batch.add_column(sa.Column("lookup_name", sa.Text))
        batch.add_column(sa.Column("public_x", sa.LargeBinary))
        batch.add_column(sa.Column("public_y", sa.LargeBinary))
        batch.add_column(sa.Column("ip_address", sa.Text))
        batch.add_column(sa.Column("user_agent", sa.Text))
    op.create_index("grants_by_account", "grants", ["account_id", "create_time", "grant_id"])
    op.create_index(
        "live_grants_by_lookup_name",
        "grants",
        ["lookup_name"],
        unique=True,
        sqlite_where=sa.text("end_time IS NULL AND lookup_name IS NOT NULL"),
    )


def _create_roles() -> None:
    roles = op.create_table(
        "roles",
        sa.Column("name", sa.Text, primary_key=True),
        sa.Column("scopes", sa.Text, nullable=False),
        sa.Column("description", sa.Text, nullable=False),
        sa.Column("is_built_in", sa.Boolean, nullable=False),
        sa.Column("minimum_policy_version", sa.BigInteger, nullable=False),
        sa.Column("create_time", sa.BigInteger, nullable=False),
        sa.Column("update_time", sa.BigInteger, nullable=False),
    )
    policy = op.create_table(
        "policy",
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("version", sa.BigInteger, nullable=False),
        sa.Column("stamp", sa.Text, nullable=False),
    )
    op.bulk_insert(policy, [{"id": 1, "version": 1, "stamp": secrets.token_hex(8)}])
    names = {
        name
        for (text,) in op.get_bind().execute(sa.text("SELECT DISTINCT roles FROM accounts"))
        for name in text.split()
    }
    op.bulk_insert(roles, [_role(name) for name in sorted(names | _BUILT_IN.keys())])


def _role(name: str) -> dict[str, object]:
    description, scopes = _BUILT_IN.get(name, ("", ""))
    now = int(time.time())
    return {
        "name": name,
        "scopes": scopes,
        "description": description,
        "is_built_in": name in _BUILT_IN,
        "minimum_policy_version": 1,
        "create_time": now,
        "update_time": now,
    }

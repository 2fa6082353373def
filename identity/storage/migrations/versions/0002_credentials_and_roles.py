"""Credentials of every kind, opaque sessions, and roles as rows. Every role that an account bears becomes one."""

from __future__ import annotations

import hashlib
import json
import secrets
import time

import sqlalchemy as sa
from alembic import op

from identity.storage.migrations.types import EVENT_ID, TEXT, only

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
    _change_revocations()
    _create_roles()
    op.create_table(
        "used_assertions",
        sa.Column("key_id", TEXT, primary_key=True),
        sa.Column("assertion_hash", sa.LargeBinary, primary_key=True),
        sa.Column("expire_time", sa.BigInteger, nullable=False),
    )
    op.create_index("used_assertions_by_expiry", "used_assertions", ["expire_time"])
    _create_throttle()
    _split_and_seal_audit()
    _create_done_requests()


def _change_grants() -> None:
    op.execute("UPDATE grants SET audience = '' WHERE audience IS NULL")
    op.execute("UPDATE grants SET requested_scopes = '' WHERE requested_scopes IS NULL")
    op.drop_index("grants_by_account", "grants")
    with op.batch_alter_table("grants") as batch:
        batch.alter_column("audience", new_column_name="audiences", existing_type=TEXT, nullable=False)
        batch.alter_column("requested_scopes", existing_type=TEXT, nullable=False)
        batch.add_column(sa.Column("last_used_time", sa.BigInteger))
        batch.add_column(sa.Column("display_name", TEXT))
        batch.add_column(sa.Column("api_key_use", TEXT))
        batch.add_column(sa.Column("lookup_name", TEXT))
        batch.add_column(sa.Column("public_x", sa.LargeBinary))
        batch.add_column(sa.Column("public_y", sa.LargeBinary))
        batch.add_column(sa.Column("ip_address", TEXT))
        batch.add_column(sa.Column("user_agent", TEXT))
    op.create_index("grants_by_account", "grants", ["account_id", "create_time", "grant_id"])
    op.create_index(
        "live_grants_by_lookup_name",
        "grants",
        ["lookup_name"],
        unique=True,
        **only("end_time IS NULL AND lookup_name IS NOT NULL"),
    )


def _change_revocations() -> None:
    op.add_column("revocations", sa.Column("grant_id", TEXT))
    op.create_index(
        "revocations_by_grant",
        "revocations",
        ["grant_id", "expire_time"],
        **only("grant_id IS NOT NULL"),
    )


def _create_done_requests() -> None:
    op.create_table(
        "done_requests",
        sa.Column("caller_account_id", TEXT, primary_key=True),
        sa.Column("request_id", TEXT, primary_key=True),
        sa.Column("method", TEXT, nullable=False),
        sa.Column("digest", sa.LargeBinary, nullable=False),
        sa.Column("resource_id", TEXT, nullable=False),
        sa.Column("expire_time", sa.BigInteger, nullable=False),
    )
    op.create_index("done_requests_by_expiry", "done_requests", ["expire_time"])


def _create_roles() -> None:
    roles = op.create_table(
        "roles",
        sa.Column("name", TEXT, primary_key=True),
        sa.Column("scopes", TEXT, nullable=False),
        sa.Column("description", TEXT, nullable=False),
        sa.Column("is_built_in", sa.Boolean, nullable=False),
        sa.Column("minimum_policy_version", sa.BigInteger, nullable=False),
        sa.Column("create_time", sa.BigInteger, nullable=False),
        sa.Column("update_time", sa.BigInteger, nullable=False),
    )
    policy = op.create_table(
        "policy",
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("version", sa.BigInteger, nullable=False),
        sa.Column("stamp", TEXT, nullable=False),
    )
    op.bulk_insert(policy, [{"id": 1, "version": 1, "stamp": secrets.token_hex(8)}])
    names = {
        name
        for (text,) in op.get_bind().execute(sa.text("SELECT DISTINCT roles FROM accounts"))
        for name in text.split()
    }
    op.bulk_insert(roles, [_role(name) for name in sorted(names | _BUILT_IN.keys())])


def _create_throttle() -> None:
    op.create_table(
        "throttle_buckets",
        sa.Column("key", sa.LargeBinary, primary_key=True),
        sa.Column("drained_ms", sa.BigInteger, nullable=False),
        sa.Column("next_ms", sa.BigInteger, nullable=False),
    )
    op.create_index("throttle_buckets_by_time", "throttle_buckets", ["drained_ms"])
    op.create_table(
        "known_places",
        sa.Column("key", sa.LargeBinary, primary_key=True),
        sa.Column("expire_time", sa.BigInteger, nullable=False),
    )
    op.create_index("known_places_by_expiry", "known_places", ["expire_time"])


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


def _split_and_seal_audit() -> None:
    """Give the audit log numbers that are never used again, and its personal fields a table of their own."""
    op.rename_table("audit_events", "audit_events_0001")
    events = op.create_table(
        "audit_events",
        sa.Column("event_id", EVENT_ID, primary_key=True, autoincrement=True),
        sa.Column("time_ms", sa.BigInteger, nullable=False),
        sa.Column("action", TEXT, nullable=False),
        sa.Column("outcome", TEXT, nullable=False),
        sa.Column("account_id", TEXT),
        sa.Column("grant_id", TEXT),
        sa.Column("caller_account_id", TEXT),
        sa.Column("caller_grant_id", TEXT),
        sa.Column("subject", TEXT, nullable=False),
        sa.Column("request_id", TEXT, nullable=False),
        sa.Column("personal_hash", sa.LargeBinary, nullable=False),
        sqlite_autoincrement=True,
    )
    for name, column in (("audit_events_by_account", "account_id"), ("audit_events_by_caller", "caller_account_id")):
        op.create_index(name, "audit_events", [column], **only(f"{column} IS NOT NULL"))
    personal = op.create_table(
        "audit_personal",
        sa.Column("event_id", EVENT_ID, primary_key=True, autoincrement=False),
        sa.Column("salt", sa.LargeBinary, nullable=False),
        sa.Column("origin", TEXT, nullable=False),
        sa.Column("user_agent", TEXT, nullable=False),
        sa.Column("note", TEXT, nullable=False),
        sa.Column("name_hash", TEXT, nullable=False),
        sa.Column("refusal_key", TEXT, unique=True),
        sa.Column("attempt_count", sa.BigInteger, nullable=False),
    )
    op.create_index(
        "audit_personal_by_name_hash",
        "audit_personal",
        ["name_hash"],
        **only("refusal_key IS NOT NULL"),
    )
    op.create_table(
        "audit_seals",
        sa.Column("seal_number", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("first_event_id", sa.BigInteger, nullable=False, unique=True),
        sa.Column("last_event_id", sa.BigInteger, nullable=False, unique=True),
        sa.Column("event_count", sa.BigInteger, nullable=False),
        sa.Column("events_digest", sa.LargeBinary, nullable=False),
        sa.Column("previous_digest", sa.LargeBinary, nullable=False),
        sa.Column("time_ms", sa.BigInteger, nullable=False),
        sa.Column("mac", sa.LargeBinary, nullable=False),
    )
    op.create_table(
        "audit_head",
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("seal_number", sa.BigInteger, nullable=False),
        sa.Column("removed_through", sa.BigInteger, nullable=False),
        sa.Column("mac", sa.LargeBinary, nullable=False),
    )
    _copy_audit(events, personal)
    op.drop_table("audit_events_0001")


def _copy_audit(events: sa.Table, personal: sa.Table) -> None:
    connection = op.get_bind()
    rows = connection.execute(sa.text("SELECT * FROM audit_events_0001 ORDER BY event_id")).mappings()
    for number, row in enumerate(rows, start=1):  # numbered anew: the old numbers could have gaps
        salt = secrets.token_bytes(16)
        fields = json.dumps([row["origin"], "", row["note"], ""], separators=(",", ":")).encode()
        shared = {name: row[name] for name in row if name in events.c}
        new = {"event_id": number, "subject": "", "personal_hash": hashlib.sha256(salt + fields).digest()}
        connection.execute(events.insert().values(shared | new))
        side = {"event_id": number, "salt": salt, "origin": row["origin"], "user_agent": "", "note": row["note"]}
        kept = {"name_hash": "", "refusal_key": row["refusal_key"], "attempt_count": 1}
        connection.execute(personal.insert().values(side | kept))
    if connection.dialect.name == "postgresql":  # whose numbering does not follow numbers that were given by hand
        connection.execute(
            sa.text(
                "SELECT setval(pg_get_serial_sequence('audit_events', 'event_id'), max(event_id)) "
                "FROM audit_events HAVING count(*) > 0"
            )
        )

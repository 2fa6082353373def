"""The tables. Times are whole Unix seconds unless a name says otherwise; ids are the 22 characters that callers see.

The migrations create these tables; a test proves that both say the same.
"""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Column,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Table,
    Text,
)

metadata = MetaData()

accounts = Table(
    "accounts",
    metadata,
    Column("account_id", Text, primary_key=True),
    Column("kind", Text, nullable=False),
    Column("username", Text, nullable=False),
    Column("normalised_username", Text, nullable=False, unique=True),
    Column("roles", Text, nullable=False),  # names separated by spaces, sorted
    Column("generation", BigInteger, nullable=False),
    Column("credential_version", BigInteger, nullable=False),
    Column("password_hash", Text),
    Column("create_time", BigInteger, nullable=False),
    Column("update_time", BigInteger, nullable=False),
    Column("disable_time", BigInteger),
)

grants = Table(
    "grants",
    metadata,
    Column("grant_id", Text, primary_key=True),
    Column("account_id", Text, ForeignKey("accounts.account_id"), nullable=False),
    Column("kind", Text, nullable=False),
    Column("create_time", BigInteger, nullable=False),
    Column("end_time", BigInteger),
    Column("end_reason", Text),
    # When the last access token issued under the grant expires; 0 before the first.
    Column("latest_expire_time", BigInteger, nullable=False),
    # Of a machine's secret:
    Column("secret_hash", LargeBinary),
    # Of a session:
    Column("audience", Text),
    Column("requested_scopes", Text),  # separated by spaces; empty for all
    Column("authentication_time", BigInteger),
    Column("count", BigInteger),
    Column("salt", LargeBinary),
    Column("grace_until", BigInteger),
    Column("idle_lifetime", BigInteger),
    Column("expire_time", BigInteger),
    Column("absolute_expire_time", BigInteger),
    Index("grants_by_account", "account_id"),
)

revocations = Table(
    "revocations",
    metadata,
    Column("version", BigInteger, primary_key=True, autoincrement=False),
    Column("kind", Integer, nullable=False),
    Column("name", Text, nullable=False),
    Column("minimum", BigInteger, nullable=False),
    Column("expire_time", BigInteger, nullable=False),
    Index("revocations_by_name", "kind", "name"),
    Index("revocations_by_expiry", "expire_time"),
)

feed_head = Table(
    "feed_head",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("epoch", Text, nullable=False),
    Column("version", BigInteger, nullable=False),
)

signing_keys = Table(
    "signing_keys",
    metadata,
    Column("key_id", Text, primary_key=True),
    Column("state", Text, nullable=False),
    Column("public_x", LargeBinary, nullable=False),
    Column("public_y", LargeBinary, nullable=False),
    Column("sealed_private_key", LargeBinary, nullable=False),
    Column("create_time", BigInteger, nullable=False),
)
Index("one_active_signing_key", signing_keys.c.state, unique=True, sqlite_where=signing_keys.c.state == "active")

audit_events = Table(
    "audit_events",
    metadata,
    Column("event_id", Integer, primary_key=True, autoincrement=True),
    Column("time_ms", BigInteger, nullable=False),
    Column("action", Text, nullable=False),
    Column("outcome", Text, nullable=False),  # ok, or the reason of the refusal
    Column("account_id", Text),  # whom it concerns
    Column("grant_id", Text),
    Column("caller_account_id", Text),  # who did it, where that is another
    Column("caller_grant_id", Text),
    Column("origin", Text, nullable=False),
    Column("request_id", Text, nullable=False),
    Column("note", Text, nullable=False),
    Column("refusal_key", Text, unique=True),  # one row per name, origin, reason and minute
)

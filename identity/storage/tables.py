"""The tables. Times are whole Unix seconds unless a name says otherwise; ids are the 22 characters that callers see.

The migrations create these tables; a test proves that both say the same.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    ColumnElement,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Table,
    Text,
    false,
)

metadata = MetaData()

TEXT = Text().with_variant(Text(collation="C"), "postgresql")
"""Compared byte by byte: pages and prefixes are by that order, whatever the database's own language."""

EVENT_ID = BigInteger().with_variant(Integer, "sqlite")


def only(rows: ColumnElement[bool]) -> dict[str, Any]:
    """For an index of these rows alone, on either database."""
    return {"sqlite_where": rows, "postgresql_where": rows}


accounts = Table(
    "accounts",
    metadata,
    Column("account_id", TEXT, primary_key=True),
    Column("kind", TEXT, nullable=False),
    Column("username", TEXT, nullable=False),
    Column("normalised_username", TEXT, nullable=False, unique=True),
    Column("roles", TEXT, nullable=False),  # names separated by spaces, sorted
    Column("generation", BigInteger, nullable=False),
    Column("credential_version", BigInteger, nullable=False),
    Column("password_hash", TEXT),
    Column("create_time", BigInteger, nullable=False),
    Column("update_time", BigInteger, nullable=False),
    Column("disable_time", BigInteger),
    Column("password_change_required", Boolean, nullable=False, server_default=false()),
)

roles = Table(
    "roles",
    metadata,
    Column("name", TEXT, primary_key=True),
    Column("scopes", TEXT, nullable=False),  # separated by spaces, sorted
    Column("description", TEXT, nullable=False),
    Column("is_built_in", Boolean, nullable=False),
    Column("minimum_policy_version", BigInteger, nullable=False),  # tokens of an older policy are outdated
    Column("create_time", BigInteger, nullable=False),
    Column("update_time", BigInteger, nullable=False),
)

policy = Table(
    "policy",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("version", BigInteger, nullable=False),  # moves with every change of a role
    Column("stamp", TEXT, nullable=False),  # random, and new with it: names what may be remembered of the roles
)

grants = Table(
    "grants",
    metadata,
    Column("grant_id", TEXT, primary_key=True),
    Column("account_id", TEXT, ForeignKey("accounts.account_id"), nullable=False),
    Column("kind", TEXT, nullable=False),
    Column("create_time", BigInteger, nullable=False),
    Column("end_time", BigInteger),
    Column("end_reason", TEXT),
    # When the last access token issued under the grant expires; 0 before the first.
    Column("latest_expire_time", BigInteger, nullable=False),
    # A session: when it ends unless it is used. A credential: when it ends, null for never.
    Column("expire_time", BigInteger),
    Column("audiences", TEXT, nullable=False),  # separated by spaces; empty for any
    Column("requested_scopes", TEXT, nullable=False),  # separated by spaces; empty for all
    Column("last_used_time", BigInteger),  # to the minute
    Column("secret_hash", LargeBinary),  # of a client secret, an API key or a session token: SHA-256
    # Of a credential:
    Column("display_name", TEXT),
    Column("api_key_use", TEXT),
    Column("lookup_name", TEXT),  # what is presented: a key's thumbprint, or a name in certificates
    Column("public_x", LargeBinary),
    Column("public_y", LargeBinary),
    # Of a session:
    Column("authentication_time", BigInteger),
    Column("count", BigInteger),
    Column("salt", LargeBinary),
    Column("grace_until", BigInteger),
    Column("idle_lifetime", BigInteger),
    Column("absolute_expire_time", BigInteger),
    Column("ip_address", TEXT),
    Column("user_agent", TEXT),
)
Index("grants_by_account", grants.c.account_id, grants.c.create_time, grants.c.grant_id)
Index(
    "live_grants_by_lookup_name",
    grants.c.lookup_name,
    unique=True,
    **only(grants.c.end_time.is_(None) & grants.c.lookup_name.is_not(None)),
)

used_assertions = Table(
    "used_assertions",
    metadata,
    Column("key_id", TEXT, primary_key=True),  # the key's thumbprint: a key that is registered anew remembers
    Column("assertion_hash", LargeBinary, primary_key=True),  # SHA-256 of the claim jti
    Column("expire_time", BigInteger, nullable=False),  # from then on the assertion is refused as expired
    Index("used_assertions_by_expiry", "expire_time"),
)

done_requests = Table(
    "done_requests",
    metadata,
    Column("caller_account_id", TEXT, primary_key=True),
    Column("request_id", TEXT, primary_key=True),  # as the caller named it
    Column("method", TEXT, nullable=False),
    Column("digest", LargeBinary, nullable=False),  # keyed, of all that was asked for
    Column("resource_id", TEXT, nullable=False),  # what was created
    Column("expire_time", BigInteger, nullable=False),  # from then on the name is free
    Index("done_requests_by_expiry", "expire_time"),
)

revocations = Table(
    "revocations",
    metadata,
    Column("version", BigInteger, primary_key=True, autoincrement=False),
    Column("kind", Integer, nullable=False),
    Column("name", TEXT, nullable=False),
    Column("minimum", BigInteger, nullable=False),
    Column("expire_time", BigInteger, nullable=False),
    Column("grant_id", TEXT),  # of a token
    Column("account_id", TEXT),  # of a token or grant that the account's own holder ended
    Index("revocations_by_name", "kind", "name"),
    Index("revocations_by_expiry", "expire_time"),
)
Index(
    "revocations_by_grant",
    revocations.c.grant_id,
    revocations.c.expire_time,
    **only(revocations.c.grant_id.is_not(None)),
)
Index(
    "revocations_by_account",
    revocations.c.account_id,
    revocations.c.expire_time,
    **only(revocations.c.account_id.is_not(None)),
)

feed_head = Table(
    "feed_head",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("epoch", TEXT, nullable=False),
    Column("version", BigInteger, nullable=False),
)

signing_keys = Table(
    "signing_keys",
    metadata,
    Column("key_id", TEXT, primary_key=True),
    Column("state", TEXT, nullable=False),
    Column("public_x", LargeBinary, nullable=False),
    Column("public_y", LargeBinary, nullable=False),
    Column("sealed_private_key", LargeBinary, nullable=False),  # empty once it is not to sign any more
    Column("create_time", BigInteger, nullable=False),  # and published
    Column("activate_time", BigInteger),
    Column("retire_time", BigInteger),
    Column("revoke_time", BigInteger),
)
Index("one_active_signing_key", signing_keys.c.state, unique=True, **only(signing_keys.c.state == "active"))
Index("one_prepared_signing_key", signing_keys.c.state, unique=True, **only(signing_keys.c.state == "prepared"))

sealed_secrets = Table(
    "sealed_secrets",
    metadata,
    Column("label", TEXT, primary_key=True),  # what it is for
    Column("sealed_secret", LargeBinary, nullable=False),  # says the number of the master key that seals it
)

leases = Table(
    "leases",
    metadata,
    Column("name", TEXT, primary_key=True),  # of a job
    Column("holder", TEXT, nullable=False),  # a replica, by a random name
    Column("expire_time_ms", BigInteger, nullable=False),
)

audit_events = Table(
    "audit_events",
    metadata,
    Column("event_id", EVENT_ID, primary_key=True, autoincrement=True),
    Column("time_ms", BigInteger, nullable=False),
    Column("action", TEXT, nullable=False),
    Column("outcome", TEXT, nullable=False),  # ok, or the reason of the refusal
    Column("account_id", TEXT),  # whom it concerns
    Column("grant_id", TEXT),
    Column("caller_account_id", TEXT),  # who did it, where a call says who calls
    Column("caller_grant_id", TEXT),
    Column("subject", TEXT, nullable=False),  # what else it concerns: roles, a key's id, a method
    Column("request_id", TEXT, nullable=False),
    Column("personal_hash", LargeBinary, nullable=False),  # of the row in audit_personal, with its salt
    sqlite_autoincrement=True,  # a number is never given twice: that the last rows were cut off shows
)
Index("audit_events_by_account", audit_events.c.account_id, **only(audit_events.c.account_id.is_not(None)))
Index(
    "audit_events_by_caller",
    audit_events.c.caller_account_id,
    **only(audit_events.c.caller_account_id.is_not(None)),
)

audit_personal = Table(
    "audit_personal",
    metadata,
    Column("event_id", EVENT_ID, primary_key=True, autoincrement=False),
    Column("salt", LargeBinary, nullable=False),
    Column("origin", TEXT, nullable=False),
    Column("user_agent", TEXT, nullable=False),
    Column("note", TEXT, nullable=False),
    Column("name_hash", TEXT, nullable=False),  # keyed hash of the name that a refused attempt gave
    # Of a refused attempt, and outside the hash and the seals:
    Column("refusal_key", TEXT, unique=True),  # one row per name, origin, reason and minute
    Column("attempt_count", BigInteger, nullable=False),  # there were at least so many
)
Index("audit_personal_by_name_hash", audit_personal.c.name_hash, **only(audit_personal.c.refusal_key.is_not(None)))

audit_seals = Table(
    "audit_seals",
    metadata,
    Column("seal_number", BigInteger, primary_key=True, autoincrement=False),  # 1, 2, 3: two cannot seal one range
    Column("first_event_id", BigInteger, nullable=False, unique=True),
    Column("last_event_id", BigInteger, nullable=False, unique=True),
    Column("event_count", BigInteger, nullable=False),
    Column("events_digest", LargeBinary, nullable=False),
    Column("previous_digest", LargeBinary, nullable=False),
    Column("time_ms", BigInteger, nullable=False),
    Column("mac", LargeBinary, nullable=False),
)

audit_head = Table(
    "audit_head",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("seal_number", BigInteger, nullable=False),  # the newest
    Column("removed_through", BigInteger, nullable=False),  # the newest seal whose events were removed for their age
    Column("mac", LargeBinary, nullable=False),
)

# Failed log-ins: who is counted is named by keyed hashes alone. Times are Unix milliseconds.
throttle_buckets = Table(
    "throttle_buckets",
    metadata,
    Column("key", LargeBinary, primary_key=True),
    Column("drained_ms", BigInteger, nullable=False),  # when all of its failures are forgotten
    Column("next_ms", BigInteger, nullable=False),  # when the next attempt is due
    Index("throttle_buckets_by_time", "drained_ms"),
)

known_places = Table(
    "known_places",
    metadata,
    Column("key", LargeBinary, primary_key=True),  # a name at an origin where its owner logged in lately
    Column("expire_time", BigInteger, nullable=False),
    Index("known_places_by_expiry", "expire_time"),
)

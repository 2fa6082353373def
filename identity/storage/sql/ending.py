"""How grants end: one by one, or all sessions of an account at once.

Each grant that ends is an entry of the feed, which every peer holds. Whoever opens and ends sessions without end must
not fill them all: from ENTRIES_OF_AN_ACCOUNT on, what the holder ends raises the account's generation instead. That is
one entry, however often: peers keep the newest alone.
"""

from __future__ import annotations

from sqlalchemy import Connection, RowMapping, bindparam, or_, select, update

from identity.domain.values import Act, Ended, EndReason
from identity.storage.sql.common import Moment, can_be_alive, publish, publish_generation, write_audit
from identity.storage.sql.rows import latest_use
from identity.storage.sql.sessions import end_sessions, live_sessions
from identity.storage.tables import accounts, grants, revocations
from identity_client.errors import GrantNotFound
from identity_client.trust.entries import EntryKind

ENTRIES_OF_AN_ACCOUNT = 200
"""Entries of one account that stand in the feed at a time, if its holder put them there. They stand for some twenty
minutes: nobody logs out so often, and a peer that has room for a million can bear five thousand such accounts."""


def holder_of(account_id: str, act: Act) -> str | None:
    """The account for whose entries an act counts: none, where somebody else acts, such as an administrator."""
    return account_id if act.caller is None or act.caller.account_id == account_id else None


def hold_if_full(connection: Connection, grant_id: str, act: Act, moment: Moment) -> RowMapping | None:
    """The account of a grant, where its holder acts and it has ENTRIES_OF_AN_ACCOUNT; else None.

    The account is held alone, and then all that is to end, in the order of the ids. So it is called before anything is
    held. Nothing is held while the entries are counted: of those who end grants at the same moment, each may find room
    for its own entry, and a few more than ENTRIES_OF_AN_ACCOUNT may stand.
    """
    account_id = connection.execute(_FULL, {"id": grant_id, "now": moment.now}).scalar()
    if account_id is None or holder_of(account_id, act) is None:
        return None
    held = select(accounts).where(accounts.c.account_id == account_id).with_for_update()
    account = connection.execute(held).mappings().first()
    falling = select(grants.c.grant_id).where(or_(live_sessions(account_id, moment), grants.c.grant_id == grant_id))
    connection.execute(falling.order_by(grants.c.grant_id).with_for_update()).all()
    return account


_LAST_WITH_ROOM = (
    select(revocations.c.version)
    .where(revocations.c.account_id == grants.c.account_id, revocations.c.expire_time > bindparam("now"))
    .offset(ENTRIES_OF_AN_ACCOUNT - 1)
    .limit(1)
    .correlate(grants)
    .scalar_subquery()
)
_FULL = select(grants.c.account_id).where(grants.c.grant_id == bindparam("id"), _LAST_WITH_ROOM.is_not(None))


def end_grant(
    connection: Connection,
    row: RowMapping | None,
    full: RowMapping | None,
    reason: EndReason,
    note: str,
    act: Act,
    moment: Moment,
) -> Ended:
    """End the grant of a held row of joined_grants, and tell the peers: of all sessions of its account, if that is
    full (see hold_if_full). Raises GrantNotFound (no row).
    """
    if row is None:
        raise GrantNotFound()
    if row["end_time"] is not None:
        return Ended(0, None)
    account_id, latest = row["account_id"], latest_use(row, moment)
    ended = update(grants).where(grants.c.grant_id == row["grant_id"])
    connection.execute(ended.values(end_time=moment.now, end_reason=reason))
    write_audit(connection, act, moment, f"grant.end.{reason}", account_id, row["grant_id"], note)
    if full is not None and can_be_alive(latest, moment):
        others = end_full(connection, full, act, moment)
        return Ended(1 + others.grant_count, others.version)
    holder = holder_of(account_id, act)
    return Ended(1, publish(connection, EntryKind.GRANT, row["grant_id"], latest, moment, account_id=holder))


def end_full(connection: Connection, account: RowMapping, act: Act, moment: Moment) -> Ended:
    """End every session of an account that is full: that is what its next entry says."""
    note = f"{ENTRIES_OF_AN_ACCOUNT} of its sessions and tokens were ended lately"
    return end_every_session(connection, account, EndReason.TOO_MANY_ENDED, note, act, moment)


def end_every_session(
    connection: Connection, account: RowMapping, reason: EndReason, note: str, act: Act, moment: Moment
) -> Ended:
    """End the sessions of a held account, and outdate all of its tokens."""
    account_id = account["account_id"]
    generation = raise_generation(connection, account, moment)
    count = end_sessions(connection, account_id, reason, moment)
    write_audit(connection, act, moment, f"account.end_sessions.{reason}", account_id, note=note)
    return Ended(count, publish_generation(connection, account_id, generation, moment))


def raise_generation(connection: Connection, account: RowMapping, moment: Moment) -> int:
    """Outdate every token of a held account; -> the new generation, which is to be published."""
    generation: int = account["generation"] + 1
    raised = update(accounts).where(accounts.c.account_id == account["account_id"])
    connection.execute(raised.values(generation=generation, update_time=moment.now))
    return generation

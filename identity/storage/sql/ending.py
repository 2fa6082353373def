"""How grants end: one by one, or all sessions of an account at once.

Each grant that ends is an entry of the feed, which every peer holds. Whoever opens and ends sessions without end must
not fill them all: from ENTRIES_OF_AN_ACCOUNT on, what the holder ends raises the account's generation instead. That is
one entry, however often: peers keep the newest alone.
"""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import Connection, RowMapping, bindparam, or_, select, update

from identity.domain.values import AccountRef, Act, Ended, EndReason
from identity.storage.sql.common import Moment, can_be_alive, publish, publish_generation, write_audit
from identity.storage.sql.rows import hold_account, hold_grant, latest_use
from identity.storage.sql.sessions import end_sessions, live_sessions
from identity.storage.tables import accounts, grants, revocations
from identity_client.errors import AccountNotFound, GrantNotFound
from identity_client.trust.entries import EntryKind

ENTRIES_OF_AN_ACCOUNT = 200
"""Entries of one account that stand in the feed at a time, if its holder put them there. They stand for some twenty
minutes: nobody logs out so often, and a peer that has room for a million can bear five thousand such accounts."""


def holder_of(account_id: str, act: Act) -> str | None:
    """The account for whose entries an act counts: none, where somebody else acts, such as an administrator."""
    return account_id if act.caller is None or act.caller.account_id == account_id else None


@dataclass(frozen=True, slots=True)
class Ending:
    """A grant that is to end: its held row of joined_grants, and the held account where that is full."""

    row: RowMapping
    full: RowMapping | None


def hold_to_end(connection: Connection, grant_id: str, act: Act, moment: Moment) -> Ending:
    """Raises GrantNotFound. As hold_full, it is called before anything is held."""
    full = find_full(connection, grant_id, act, moment)
    account = None if full is None else hold_full(connection, full, moment)
    row = hold_grant(connection, grant_id)
    if row is None:
        raise GrantNotFound()
    return Ending(row, account)


def find_full(connection: Connection, grant_id: str, act: Act, moment: Moment) -> RowMapping | None:
    """The ids and the kind of a grant, and full_until, when its account has room again; where its holder acts and the
    account has ENTRIES_OF_AN_ACCOUNT, else None.

    Nothing is held while the entries are counted: of those who end grants at the same moment, each may find room for
    its own entry, and a few more than ENTRIES_OF_AN_ACCOUNT may stand.
    """
    full = connection.execute(_FULL, {"id": grant_id, "now": moment.now}).mappings().first()
    return None if full is None or holder_of(full["account_id"], act) is None else full


def hold_full(connection: Connection, full: RowMapping, moment: Moment) -> RowMapping | None:
    """The account that is full, None if it was erased meanwhile: held alone, and then all that is to end, in the order
    of the ids. So it is called before anything is held.
    """
    account_id = full["account_id"]
    try:
        account = hold_account(connection, AccountRef(account_id=account_id))
    except AccountNotFound:
        return None
    is_falling = or_(live_sessions(account_id, moment), grants.c.grant_id == full["grant_id"])
    falling = select(grants.c.grant_id).where(is_falling).order_by(grants.c.grant_id)
    connection.execute(falling.with_for_update()).all()
    return account


_FULL_UNTIL = (
    select(revocations.c.expire_time)
    .where(revocations.c.account_id == grants.c.account_id, revocations.c.expire_time > bindparam("now"))
    .order_by(revocations.c.expire_time.desc())
    .offset(ENTRIES_OF_AN_ACCOUNT - 1)
    .limit(1)
    .correlate(grants)
    .scalar_subquery()
)
_FULL = select(grants.c.grant_id, grants.c.account_id, grants.c.kind, _FULL_UNTIL.label("full_until")).where(
    grants.c.grant_id == bindparam("id"), _FULL_UNTIL.is_not(None)
)


def end_grant(connection: Connection, ending: Ending, reason: EndReason, note: str, act: Act, moment: Moment) -> Ended:
    """End a grant, unless it has ended before, and tell the peers: of all sessions of its account, if that is full."""
    row = ending.row
    if row["end_time"] is not None:
        return Ended(0, None)
    account_id, latest = row["account_id"], latest_use(row, moment)
    ended = update(grants).where(grants.c.grant_id == row["grant_id"])
    connection.execute(ended.values(end_time=moment.now, end_reason=reason))
    write_audit(connection, act, moment, f"grant.end.{reason}", account_id, row["grant_id"], note)
    if ending.full is not None and can_be_alive(latest, moment):
        others = end_full(connection, ending.full, act, moment)
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

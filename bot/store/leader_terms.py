"""Leader terms: a number in SQL that each new leader raises. Writes of an older leader are refused (fencing).

So a bot that was suspended while its lease ended, or that only lost the broker, can change nothing. The row also has
the holder, its heartbeat counter, whether the term ended cleanly, and the store's id. It knows nothing of leases and
clocks. A store without a term is not fenced.
"""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import Connection, inspect, select, update
from ulid import ULID

from bot.store.drivers.group_commit import DatabaseUnavailable
from bot.store.schema.tables import leader_terms

TERM_NAME = "bot"
# run in each write transaction
_SELECT_TERM = select(leader_terms.c.term).where(leader_terms.c.name == TERM_NAME).with_for_update(read=True)


class NotLeader(DatabaseUnavailable):
    """A later leader writes to this database: this bot must stop."""


@dataclass(frozen=True)
class LeaderTerm:
    """A leader term. `heartbeat_count` grows while its holder lives. `is_ended`: it ended cleanly.

    `store`: the store's id.
    """

    term: int = 0
    holder: str = ""
    heartbeat_count: int = 0
    is_ended: bool = True
    store: str = ""


def begin_term(connection: Connection, holder: str = "", expected_term: int | None = None) -> LeaderTerm | None:
    """Begin the next term as ours. None: the newest is not `expected_term` any more, so read it again."""
    old_term = _read_term(connection, lock=True)
    if expected_term is not None and old_term.term != expected_term:
        return None
    new_term = LeaderTerm(old_term.term + 1, holder, 0, False, old_term.store or str(ULID()))
    if old_term.term:
        connection.execute(update(leader_terms).where(leader_terms.c.name == TERM_NAME).values(**_to_row(new_term)))
    else:
        connection.execute(leader_terms.insert().values(name=TERM_NAME, **_to_row(new_term)))
    return new_term


def read_newest_term(connection: Connection) -> LeaderTerm:
    """Return the current leader's term; before the first, one that is over."""
    return _read_term(connection)


def check_term(connection: Connection, term: int) -> None:
    """Raise `NotLeader` unless `term` is the newest. Nobody can begin another during this transaction."""
    if connection.execute(_SELECT_TERM).scalar() != term:
        raise NotLeader("Another bot has taken over.")


def record_heartbeat(connection: Connection, term: int) -> None:
    """Record a heartbeat of the holder."""
    connection.execute(
        update(leader_terms)
        .where(leader_terms.c.name == TERM_NAME, leader_terms.c.term == term)
        .values(beat=leader_terms.c.beat + 1)
    )


def end_term(connection: Connection, term: int) -> None:
    """End the term, so that the next leader need not wait for the lease to expire."""
    connection.execute(
        update(leader_terms).where(leader_terms.c.name == TERM_NAME, leader_terms.c.term == term).values(over=True)
    )


def read_store_id(connection: Connection) -> str:
    """Return the store's id; empty before the first term, also where no table was made yet."""
    return _read_term(connection).store if inspect(connection).has_table(leader_terms.name) else ""


def _read_term(connection: Connection, *, lock: bool = False) -> LeaderTerm:
    query = select(leader_terms).where(leader_terms.c.name == TERM_NAME)
    row = connection.execute(query.with_for_update() if lock else query).mappings().first()
    if row is None:
        return LeaderTerm()
    return LeaderTerm(row["term"], row["holder"], row["beat"], row["over"], row["store"])


def _to_row(term: LeaderTerm) -> dict[str, object]:
    """Return the values of the columns, without the row's name."""
    return {
        "term": term.term,
        "holder": term.holder,
        "beat": term.heartbeat_count,
        "over": term.is_ended,
        "store": term.store,
    }

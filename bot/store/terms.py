"""Leader terms: a number in SQL that each new leader raises. Writes of an older leader are refused (fencing).

So a bot that slept through the end of its lease, or that only the broker cannot see, can change nothing. The row also
has the holder, its heartbeat counter, whether the term ended cleanly, and the store's id. Knows nothing of leases and
clocks. A store without a term is not fenced.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

from sqlalchemy import Connection, inspect, select, update
from ulid import ULID

from bot.store.batch import Unavailable
from bot.store.tables import terms

BOT = "bot"
_TERM = select(terms.c.term).where(terms.c.name == BOT).with_for_update(read=True)  # run in each write transaction


class Deposed(Unavailable):
    """A later leader writes to this database: this bot must stop."""


@dataclass(frozen=True)
class Term:
    """A leader term. `beat` grows while its holder lives. `over`: it ended cleanly. `store`: the store's id."""

    term: int = 0
    holder: str = ""
    beat: int = 0
    over: bool = True
    store: str = ""


def begin(connection: Connection, holder: str = "", after: int | None = None) -> Term | None:
    """Begin the next term as ours. None: the newest is not `after` any more, so read it again."""
    before = _last(connection, lock=True)
    if after is not None and before.term != after:
        return None
    ours = Term(before.term + 1, holder, 0, False, before.store or str(ULID()))
    if before.term:
        connection.execute(update(terms).where(terms.c.name == BOT).values(**asdict(ours)))
    else:
        connection.execute(terms.insert().values(name=BOT, **asdict(ours)))
    return ours


def newest(connection: Connection) -> Term:
    """Return the current leader's term; before the first, one that is over."""
    return _last(connection)


def check(connection: Connection, term: int) -> None:
    """Raise `Deposed` unless `term` is the newest. Nobody can begin another during this transaction."""
    if connection.execute(_TERM).scalar() != term:
        raise Deposed("Another bot has taken over.")


def live(connection: Connection, term: int) -> None:
    """Record a heartbeat of the holder."""
    connection.execute(update(terms).where(terms.c.name == BOT, terms.c.term == term).values(beat=terms.c.beat + 1))


def end(connection: Connection, term: int) -> None:
    """End the term, so that the next leader need not wait for the lease to expire."""
    connection.execute(update(terms).where(terms.c.name == BOT, terms.c.term == term).values(over=True))


def identity(connection: Connection) -> str:
    """Return the store's id, for tables of any version; empty if no term has one yet."""
    there = inspect(connection)
    if not there.has_table(terms.name) or all(one["name"] != "store" for one in there.get_columns(terms.name)):
        return ""
    return _last(connection).store


def _last(connection: Connection, *, lock: bool = False) -> Term:
    asked = select(terms).where(terms.c.name == BOT)
    found = connection.execute(asked.with_for_update() if lock else asked).mappings().first()
    return Term(**{name: value for name, value in found.items() if name != "name"}) if found else Term()

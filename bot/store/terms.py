"""Terms: which bot may write. A number in SQL that each bot which begins makes larger; an older one is refused.

So a bot that slept through the end of its lease, or that only the broker cannot see, changes nothing any more. Knows
numbers; nothing of leases. Where a house was not given a term, none is asked for.
"""

from __future__ import annotations

from sqlalchemy import Connection, select, update

from bot.store.batch import Unavailable
from bot.store.tables import terms

BOT = "bot"


class Deposed(Unavailable):
    """A later bot writes to this database: stop."""


def begin(connection: Connection) -> int:
    """The next term, ours from now on."""
    found = connection.execute(select(terms.c.term).where(terms.c.name == BOT).with_for_update()).scalar()
    if found is None:
        connection.execute(terms.insert().values(name=BOT, term=1))
        return 1
    connection.execute(update(terms).where(terms.c.name == BOT).values(term=found + 1))
    return found + 1


def newest(connection: Connection) -> int:
    """The term of the bot that may write; 0 before the first."""
    return connection.execute(select(terms.c.term).where(terms.c.name == BOT)).scalar() or 0


def check(connection: Connection, term: int) -> None:
    """Raises `Deposed` unless `term` is the newest; while this transaction lasts nobody begins another."""
    asked = select(terms.c.term).where(terms.c.name == BOT).with_for_update(read=True)
    if connection.execute(asked).scalar() != term:
        raise Deposed("Another bot has taken over.")

"""Terms: which bot may write. A number in SQL that each bot which begins makes larger; an older one is refused.

So a bot that slept through the end of its lease, or that only the broker cannot see, changes nothing any more. The row
also says whose term it is, counts while that one lives, notes whether it ended in order, and names the store itself.
Knows numbers; nothing of leases and clocks. Where a house was not given a term, none is asked for.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

from sqlalchemy import Connection, inspect, select, update
from ulid import ULID

from bot.store.batch import Unavailable
from bot.store.tables import terms

BOT = "bot"
_TERM = select(terms.c.term).where(terms.c.name == BOT).with_for_update(read=True)  # each transaction asks


class Deposed(Unavailable):
    """A later bot writes to this database: stop."""


@dataclass(frozen=True)
class Term:
    """The newest one. `beat` moves while its holder lives; `over`: it ended in order. `store`: an id made once."""

    term: int = 0
    holder: str = ""
    beat: int = 0
    over: bool = True
    store: str = ""


def begin(connection: Connection, holder: str = "", after: int | None = None) -> Term | None:
    """The next term, ours from now on. None: the newest is not `after` any more, so look again."""
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
    """Of the bot that may write; before the first, one that is over."""
    return _last(connection)


def check(connection: Connection, term: int) -> None:
    """Raises `Deposed` unless `term` is the newest; while this transaction lasts nobody begins another."""
    if connection.execute(_TERM).scalar() != term:
        raise Deposed("Another bot has taken over.")


def live(connection: Connection, term: int) -> None:
    """Its holder is there."""
    connection.execute(update(terms).where(terms.c.name == BOT, terms.c.term == term).values(beat=terms.c.beat + 1))


def end(connection: Connection, term: int) -> None:
    """Its holder does nothing any more: whoever is next need not wait."""
    connection.execute(update(terms).where(terms.c.name == BOT, terms.c.term == term).values(over=True))


def identity(connection: Connection) -> str:
    """The store's id, whatever version its tables are of; empty where no bot ever began a term that has one."""
    there = inspect(connection)
    if not there.has_table(terms.name) or all(one["name"] != "store" for one in there.get_columns(terms.name)):
        return ""
    return _last(connection).store


def _last(connection: Connection, *, lock: bool = False) -> Term:
    asked = select(terms).where(terms.c.name == BOT)
    found = connection.execute(asked.with_for_update() if lock else asked).mappings().first()
    return Term(**{name: value for name, value in found.items() if name != "name"}) if found else Term()

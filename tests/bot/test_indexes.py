"""What is asked at each keystroke, at each deletion and every few minutes goes by index, whatever there is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, get_args

import pytest
from sqlalchemy import Connection, Engine, event
from ulid import ULID

from bot.limits import DAY
from bot.rules.terms import Whose
from bot.store import Draft, Store, Wish, deleting, shelf
from bot.store.filling import fill
from bot.store.ledger import Ledger
from bot.views import Member, Place
from engine.job import Concept, Recipe

RECIPE = Recipe(
    concepts=(Concept(text="a lamp"),), model="embedded", sampler="ddim", steps=40, seed=7, guidance=3.0, width=64,
    height=64, dtype="float32",
)  # fmt: skip


def draft(user: str, channel: str, **more: Any) -> Draft:
    return Draft(
        id=str(ULID()), action="imagine", prompt="a lamp", notes=(), task=RECIPE,
        member=Member(user, user, "g", channel=channel), place=Place("web", {}), pool="default", model="embedded",
        cost=1.0, created=1.0, deadline=2.0, **more,
    )  # fmt: skip


class Kept:
    """The statements that an engine was given meanwhile."""

    def __init__(self, engine: Engine, *kinds: str) -> None:
        self._engine, self._kinds = engine, kinds
        self.asked: list[tuple[str, Any]] = []

    def __enter__(self) -> list[tuple[str, Any]]:
        event.listen(self._engine, "before_cursor_execute", self._keep)
        return self.asked

    def __exit__(self, *_: object) -> None:
        event.remove(self._engine, "before_cursor_execute", self._keep)

    def _keep(self, _connection: Connection, _cursor: Any, statement: str, given: Any, _context: Any, _many: bool):
        if statement.startswith(self._kinds):
            self.asked.append((statement, given))


def explained(connection: Connection, asked: list[tuple[str, Any]]) -> list[str]:
    """How the database finds what each statement asks for."""
    lite = connection.dialect.name == "sqlite"
    way, last = ("EXPLAIN QUERY PLAN", 3) if lite else ("EXPLAIN", 0)
    found = [connection.exec_driver_sql(f"{way} {sql}", given).all() for sql, given in asked]
    return ["\n".join(row[last] for row in rows) for rows in found]


async def plans(store: Store, question: Callable[..., Any], *args: Any) -> list[str]:
    with Kept(store.database.reader, "SELECT") as asked:
        await store.ask(question, *args)
    return await store.ask(explained, asked)


async def a_long_queue(store: Store) -> None:
    """Ten thousand jobs of a thousand users wait."""
    await store.write(fill, draft("seed", "1"), 10_000, 1000)


@pytest.mark.asyncio
async def test_a_pick_and_an_admission_read_by_index_however_long_the_queue_is(store):
    await a_long_queue(store)
    with Kept(store.database.writer, "SELECT", "UPDATE") as picking:
        assert await store.pick(Wish("default", ("embedded",), running=10**6), 1000, 1.0, 1001.0)
    with Kept(store.database.writer, "SELECT", "UPDATE") as admitting:
        await store.admit([draft("ann", "1")], "key", spend, 1.0)
    assert 8 <= len(picking) <= 20
    assert 8 <= len(admitting) <= 30
    for plan in await store.ask(explained, picking + admitting):
        assert not [table for table in ("jobs", "accounts", "moves", "places") if f"Seq Scan on {table}" in plan], plan
        assert not [table for table in ("jobs", "accounts", "moves", "places") if f"SCAN {table}" in plan], plan
    assert not [plan for plan in await store.ask(explained, picking) if "TEMP B-TREE" in plan or "Sort" in plan]


def spend(taken: Sequence[Draft], ledger: Ledger) -> Sequence[Draft]:
    """As a rule does that looks at everything."""
    ledger.rules()
    for whose in get_args(Whose):
        ledger.usage(whose)
        ledger.spending(whose, DAY)
    return taken


@pytest.mark.asyncio
@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
async def test_the_newest_of_a_member_and_of_a_channel_are_walks_along_indexes(store):
    drafts = [
        draft("ann", "1"),
        draft("bob", "2"),
        draft("ann", "2"),
        draft("bob", "1", private=True),
        draft("bob", "1"),
    ]
    await store.admit(drafts, None, lambda taken, _ledger: taken, 1.0)
    first, _, third, _, last = (one.id for one in drafts)
    assert [one.id for one in await store.ask(shelf.near, "ann", "g", "1", 9)] == [last, third, first]
    assert [one.id for one in await store.ask(shelf.near, "ann", "g", "1", 2)] == [last, third]
    found = await plans(store, shelf.near, "ann", "g", "1", 2)
    assert len(found) == 2
    assert not [plan for plan in found if "SCAN" in plan or "TEMP B-TREE" in plan]


@pytest.mark.asyncio
@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
async def test_leftovers_are_found_from_the_deleted_jobs_on(store):
    await store.admit([draft("ann", "1") for _ in range(3)], None, lambda taken, _ledger: taken, 1.0)
    (everywhere,), (one,) = await plans(store, deleting.leftovers), await plans(store, deleting.leftovers, ["0" * 26])
    assert "SCAN pictures" not in everywhere + one
    assert "SCAN jobs" not in one
    assert "INDEX jobs_deleted" in everywhere

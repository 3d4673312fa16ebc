"""What is asked at each keystroke, at each deletion and every few minutes goes by index, whatever there is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import Connection, create_engine, event
from ulid import ULID

from bot.store import Draft, Store, deleting, shelf
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


async def plans(store: Store, question: Callable[..., Any], *args: Any) -> list[str]:
    """How SQLite finds what a question asks for."""
    asked: list[tuple[str, Any]] = []

    def keep(_connection: Connection, _cursor: Any, statement: str, given: Any, _context: Any, _many: bool) -> None:
        if statement.startswith("SELECT"):
            asked.append((statement, given))

    event.listen(store._reader, "before_cursor_execute", keep)
    await store.ask(question, *args)
    event.remove(store._reader, "before_cursor_execute", keep)
    with create_engine(store._reader.url).connect() as connection:
        explained = [connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {sql}", given).all() for sql, given in asked]
    return ["\n".join(row[3] for row in rows) for rows in explained]


@pytest.mark.asyncio
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
async def test_leftovers_are_found_from_the_deleted_jobs_on(store):
    await store.admit([draft("ann", "1") for _ in range(3)], None, lambda taken, _ledger: taken, 1.0)
    (everywhere,), (one,) = await plans(store, deleting.leftovers), await plans(store, deleting.leftovers, ["0" * 26])
    assert "SCAN pictures" not in everywhere + one
    assert "SCAN jobs" not in one
    assert "INDEX jobs_deleted" in everywhere

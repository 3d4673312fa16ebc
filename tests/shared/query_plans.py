"""The plans that a database makes for the store's queries."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sqlalchemy import Connection, Engine, event

from bot.store import Store


class StatementRecorder:
    """Records the statements that an engine executes meanwhile."""

    def __init__(self, engine: Engine, *kinds: str) -> None:
        self._engine = engine
        self._kinds = kinds
        self.statements: list[tuple[str, Any]] = []

    def __enter__(self) -> list[tuple[str, Any]]:
        event.listen(self._engine, "before_cursor_execute", self._record_statement)
        return self.statements

    def __exit__(self, *_: object) -> None:
        event.remove(self._engine, "before_cursor_execute", self._record_statement)

    def _record_statement(
        self, _connection: Connection, _cursor: Any, statement: str, parameters: Any, _context: Any, _executemany: bool
    ):
        if statement.startswith(self._kinds):
            self.statements.append((statement, parameters))


def explain_statements(connection: Connection, statements: list[tuple[str, Any]]) -> list[str]:
    """The query plan of each statement."""
    is_sqlite = connection.dialect.name == "sqlite"
    keyword, last = ("EXPLAIN QUERY PLAN", 3) if is_sqlite else ("EXPLAIN", 0)
    plan_rows = [connection.exec_driver_sql(f"{keyword} {sql}", parameters).all() for sql, parameters in statements]
    return ["\n".join(row[last] for row in rows) for rows in plan_rows]


async def list_plans(store: Store, question: Callable[..., Any], *args: Any) -> list[str]:
    """Answers a question to the store, and lists the plan of each of its statements."""
    with StatementRecorder(store.database.reader, "SELECT") as statements:
        await store.query(question, *args)
    return await store.query(explain_statements, statements)

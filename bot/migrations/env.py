"""Alembic's environment: migrates the connection from the store, or, under the `alembic` command, a URL."""

from __future__ import annotations

from alembic import context
from sqlalchemy import Connection, create_engine

from bot.store.tables import metadata


def _run(connection: Connection) -> None:
    context.configure(connection=connection, target_metadata=metadata, render_as_batch=True)
    with context.begin_transaction():
        context.run_migrations()


def _main() -> None:
    given: Connection | None = context.config.attributes.get("connection")
    if given is not None:
        _run(given)
        return
    url = context.config.get_main_option("sqlalchemy.url") or ""
    with create_engine(url).connect() as connection:
        _run(connection)


_main()

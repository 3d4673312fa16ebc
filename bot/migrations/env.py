"""Alembic's environment: migrates the connection from the store, or, under the `alembic` command, a URL."""

from __future__ import annotations

from alembic import context
from sqlalchemy import Connection, create_engine

from bot.domain.feature import load_parts
from bot.store.schema.tables import metadata


def _migrate(connection: Connection) -> None:
    load_parts("store")  # they are in the metadata then
    context.configure(connection=connection, target_metadata=metadata, render_as_batch=True)
    with context.begin_transaction():
        context.run_migrations()


def _run_migrations() -> None:
    store_connection: Connection | None = context.config.attributes.get("connection")
    if store_connection is not None:
        _migrate(store_connection)
        return
    url = context.config.get_main_option("sqlalchemy.url") or ""
    with create_engine(url).connect() as connection:
        _migrate(connection)


_run_migrations()

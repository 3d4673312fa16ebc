"""Migrations: of a database without tables, and of one of an earlier version with rows in it."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path
from typing import Any

import pytest
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, inspect, text

from bot.domain.errors import UserError
from bot.store import Store
from bot.store.drivers.database import select_driver
from bot.store.ping import check_database
from bot.store.schema import migration
from bot.store.schema.tables import metadata
from shared.stored_jobs import admit_job, make_new_job

VERSION_TABLE = "alembic_version"
SELECT_SEASON = text("SELECT season FROM jobs")
LATER_MIGRATION = """
import sqlalchemy as sa
from alembic import op

revision, down_revision, branch_labels, depends_on = "later", "{head}", None, None


def upgrade() -> None:
    op.add_column("jobs", sa.Column("season", sa.String(16), nullable=False, server_default="winter"))
"""

pytestmark = pytest.mark.may_block("migrations are read on the store's own thread")


def describe_tables(connection: Connection) -> dict[str, Any]:
    """Everything that the database says of its tables, but for the sequence of their columns."""
    inspector = inspect(connection)

    def describe_column(column: Any) -> tuple[Any, ...]:
        return column["type"].compile(connection.dialect), column["nullable"], column["default"]

    def describe_index(index: Any) -> tuple[Any, ...]:
        options = {name: str(value) for name, value in index.get("dialect_options", {}).items()}
        return index["column_names"], bool(index["unique"]), options

    return {
        name: (
            {column["name"]: describe_column(column) for column in inspector.get_columns(name)},
            inspector.get_pk_constraint(name),
            sorted(inspector.get_foreign_keys(name), key=lambda key: key["constrained_columns"]),
            inspector.get_unique_constraints(name),
            inspector.get_check_constraints(name),
            {index["name"]: describe_index(index) for index in inspector.get_indexes(name)},
        )
        for name in inspector.get_table_names()
        if name != VERSION_TABLE
    }


async def open_and_describe(url: str) -> dict[str, Any]:
    """Opens a store, which migrates its tables, and describes them."""
    store = await Store.open(url)
    try:
        return await store.query(describe_tables)
    finally:
        await store.close()


@pytest.fixture
def later_migrations(tmp_path: Path) -> Path:
    """The folder of our migrations with one more after them, as a later version has it."""
    folder = tmp_path / "migrations"
    shutil.copytree(migration.MIGRATIONS, folder, ignore=shutil.ignore_patterns("__pycache__"))
    head = ScriptDirectory(str(folder)).get_current_head()
    (folder / "versions" / "later.py").write_text(LATER_MIGRATION.format(head=head))
    return folder


@pytest.mark.asyncio
async def test_a_table_that_is_missing_is_made_at_the_next_start(empty_database: str) -> None:
    before = await open_and_describe(empty_database)
    assert before.keys() == metadata.tables.keys()
    database = await asyncio.to_thread(select_driver, empty_database)
    try:
        await database.run_write(metadata.tables["favourites"].drop)
    finally:
        await database.close()
    assert await open_and_describe(empty_database) == before


@pytest.mark.asyncio
async def test_a_database_of_an_earlier_version_is_migrated_and_keeps_its_rows(
    empty_database: str, later_migrations: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = await Store.open(empty_database)
    job = await admit_job(store, make_new_job())
    record = await store.get_job(job)
    await store.close()
    monkeypatch.setattr(migration, "MIGRATIONS", later_migrations)
    assert "brought up to date at the next start" in (await check_database(empty_database)).summary
    for _ in range(2):
        store = await Store.open(empty_database)
        try:
            assert await store.get_job(job) == record
            assert await store.query(lambda one: one.execute(SELECT_SEASON).scalars().all()) == ["winter"]
            revision = await store.query(lambda one: MigrationContext.configure(one).get_current_heads())
            assert revision == ("later",)
        finally:
            await store.close()
    assert "its tables are up to date" in (await check_database(empty_database)).summary


@pytest.mark.asyncio
async def test_a_migration_that_fails_changes_nothing(
    empty_database: str, later_migrations: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = await open_and_describe(empty_database)
    with (later_migrations / "versions" / "later.py").open("a") as file:
        file.write('    raise RuntimeError("no spring")\n')
    with monkeypatch.context() as patches:
        patches.setattr(migration, "MIGRATIONS", later_migrations)
        with pytest.raises(RuntimeError, match="no spring"):
            await Store.open(empty_database)
    assert await open_and_describe(empty_database) == before


@pytest.mark.asyncio
async def test_a_database_of_a_later_version_is_refused_and_stays_as_it_is(
    empty_database: str, later_migrations: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patches:
        patches.setattr(migration, "MIGRATIONS", later_migrations)
        later = await open_and_describe(empty_database)
    with pytest.raises(UserError, match="of another version of Darkroom") as error:
        await Store.open(empty_database)
    assert error.value.status == 400
    assert "another version" in (await check_database(empty_database)).summary
    monkeypatch.setattr(migration, "MIGRATIONS", later_migrations)
    assert await open_and_describe(empty_database) == later

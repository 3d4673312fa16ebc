"""Migrations of a database of an earlier version, with rows in it: nothing is lost."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import (
    JSON,
    Boolean,
    Column,
    Connection,
    Float,
    Integer,
    LargeBinary,
    MetaData,
    String,
    func,
    select,
)
from sqlalchemy.types import TypeEngine

from bot.store import Store
from bot.store.drivers.database import select_driver
from bot.store.jobs import destinations, history, queries
from bot.store.schema.migration import MIGRATIONS, migrate_tables
from bot.store.schema.tables import metadata
from engine.contract import Concept, Recipe, encode

RECIPE = Recipe(
    concepts=(Concept(text="a lamp"),), model="embedded", sampler="ddim", steps=40, seed=7, guidance=3.0, width=64,
    height=64, dtype="float32",
)  # fmt: skip


def row(job: str, state: str, **columns: Any) -> dict[str, Any]:
    values: dict[str, Any] = {
        "id": job, "ordinal": 0, "state": state, "action": "imagine", "prompt": "a lamp", "notes": [],
        "task": encode(RECIPE), "member": "discord:1", "member_name": "Ann", "guild": "discord:2", "tier": "standard",
        "weight": 1.0, "pool": "default", "model": "embedded", "account": f"default/{job}", "rows": 8, "cost": 9.0,
        "charged": 9.0, "billed": 0.0, "attempt": 1, "barren": 0, "step": 0, "epoch": 0, "worker": "",
        "cancelling": False, "created": 1.0, "deadline": 2.0, "reason": "", "blame": "",
    }  # fmt: skip
    return values | columns


def reflect_tables(connection: Connection) -> MetaData:
    """The tables as they are now."""
    tables = MetaData()
    tables.reflect(connection)
    return tables


def fill_first_version(connection: Connection) -> None:
    """Adds three jobs: one shown, one not shown yet, and one of the web page."""
    locations = [
        ("discord", {"channel": "30", "message": "40", "token": "t"}), ("discord", {"channel": "31", "token": "u"}),
        ("web", {}),
    ]  # fmt: skip
    migrate_tables(connection, "0001")
    tables = reflect_tables(connection).tables
    for n, (kind, address) in enumerate(locations):
        connection.execute(tables["jobs"].insert().values(**row(str(n) * 26, "finished")))
        row_ = {"job": str(n) * 26, "kind": kind, "where": address, "delivered": None}
        connection.execute(tables["places"].insert().values(**row_))


async def upgrade_database(url: str, function: Callable[[Connection], None]) -> None:
    database = await asyncio.to_thread(select_driver, url)
    try:
        await database.upgrade(function)
    finally:
        await database.close()


@pytest.mark.asyncio
@pytest.mark.may_block("migrations are read on the store's own thread")
async def test_jobs_of_the_first_version_keep_their_messages_and_channels(empty_database: str):
    await upgrade_database(empty_database, fill_first_version)
    store = await Store.open(empty_database)
    try:
        assert await store.query(destinations.find_job, "40") == "0" * 26
        delivery = (await store.query(destinations.list_deliveries, "0" * 26))["answer"]
        assert (delivery.message, delivery.destination.address["message"], delivery.destination.address["token"]) == (
            "40",
            "40",
            "t",
        )
        assert (await store.query(destinations.list_deliveries, "1" * 26))["answer"].message == ""
        records = [await store.get_job(str(n) * 26) for n in range(3)]
        assert [one and (one.channel, one.task) for one in records] == [("30", RECIPE), ("31", RECIPE), ("", RECIPE)]
        nearby_jobs = await store.query(history.list_nearby_jobs, "discord:9", "discord:2", "30", 10)
        assert [one.id for one in nearby_jobs] == ["0" * 26]
    finally:
        await store.close()


@pytest.mark.asyncio
@pytest.mark.may_block("migrations are read on the store's own thread")
async def test_a_job_of_an_earlier_version_in_a_thread_counts_as_one_of_a_private_thread(empty_database: str):
    def fill(connection: Connection) -> None:
        migrate_tables(connection, "0011")
        tables = reflect_tables(connection).tables
        for n, (kind, channel, place) in enumerate((
            ("discord", "30", "30"), ("discord", "30", "77"), ("web", "", ""), ("discord", "", "77"),
        )):  # fmt: skip
            connection.execute(tables["jobs"].insert().values(**row(str(n) * 26, "finished", channel=channel)))
            values = {"job": str(n) * 26, "role": "answer", "kind": kind, "message": "", "reason": ""}
            connection.execute(tables["places"].insert().values(**values, where={"channel": place}))

    await upgrade_database(empty_database, fill)
    store = await Store.open(empty_database)
    try:
        records = [await store.get_job(str(n) * 26) for n in range(4)]
        assert [one and one.thread for one in records] == ["", "77", "", ""], "its kind is not known any more"
    finally:
        await store.close()


def list_versions() -> list[str]:
    return sorted(path.stem.partition("_")[0] for path in (MIGRATIONS / "versions").glob("0*.py"))


def sample_value(column: Column[Any]) -> Any:
    """A value that fits the type of a column."""
    kinds: tuple[tuple[type[TypeEngine[Any]], Any], ...] = (
        (JSON, {"a": ["b"]}), (Boolean, True), (LargeBinary, b"\0a"), (Integer, 7), (Float, 1.5), (String, "x"),
    )  # fmt: skip
    if column.foreign_keys or column.name == "id":
        return "0" * 26
    return next(value for kind, value in kinds if isinstance(column.type, kind))


def fill_each_table(version: str) -> Callable[[Connection], None]:
    def fill(connection: Connection) -> None:
        migrate_tables(connection, version)
        tables = reflect_tables(connection)
        for table in tables.sorted_tables:
            if table.name == "jobs":
                connection.execute(table.insert().values(**row("0" * 26, "finished")))
            elif table.name != "alembic_version":
                given = [one for one in table.columns if one.name != "id" or isinstance(one.type, String)]
                values = {column.name: sample_value(column) for column in given}
                connection.execute(table.insert().values(**values))

    return fill


def count_rows(connection: Connection) -> dict[str, int]:
    tables = reflect_tables(connection).sorted_tables
    return {one.name: connection.execute(select(func.count()).select_from(one)).scalar_one() for one in tables}


@pytest.mark.sampled
@pytest.mark.asyncio
@pytest.mark.may_block("migrations are read on the store's own thread")
@pytest.mark.parametrize("version", list_versions())
async def test_a_database_of_any_earlier_version_keeps_all_its_rows(empty_database: str, version):
    await upgrade_database(empty_database, fill_each_table(version))
    store = await Store.open(empty_database)
    try:
        assert await store.query(lambda one: compare_metadata(MigrationContext.configure(one), metadata)) == []
        counts = await store.query(count_rows)
        assert {name: counts[name] for name in ("jobs", "places", "pictures", "accounts", "moves", "models")} == {
            "jobs": 1, "places": 1, "pictures": 1, "accounts": 1, "moves": 1, "models": 1,
        }  # fmt: skip
        record = await store.get_job("0" * 26)
        assert record is not None
        assert (record.task, record.state) == (RECIPE, "finished")
        assert next(iter((await store.query(destinations.list_deliveries, "0" * 26)).values())).destination.address == {
            "a": ["b"]
        }
        assert (await store.query(queries.list_audit, ["0" * 26]))[0].reason == "x"
        assert set(counts.values()) <= {0, 1}
    finally:
        await store.close()

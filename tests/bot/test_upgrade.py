"""A database of the first room, with rows in it, brought up to date: nothing that it knew is lost."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from alembic import command
from alembic.config import Config
from sqlalchemy import Connection, MetaData, create_engine

from bot.store import MIGRATIONS, Store, places, shelf
from engine.job import Concept, Recipe, encode

RECIPE = Recipe(
    concepts=(Concept(text="a lamp"),), model="embedded", sampler="ddim", steps=40, seed=7, guidance=3.0, width=64,
    height=64, dtype="float32",
)  # fmt: skip


def upgraded(connection: Connection, to: str) -> None:
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    config.attributes["connection"] = connection
    command.upgrade(config, to)


def row(job: str, state: str, **more: Any) -> dict[str, Any]:
    values: dict[str, Any] = {
        "id": job, "ordinal": 0, "state": state, "action": "imagine", "prompt": "a lamp", "notes": [],
        "task": encode(RECIPE), "member": "discord:1", "member_name": "Ann", "guild": "discord:2", "tier": "standard",
        "weight": 1.0, "pool": "default", "model": "embedded", "account": f"default/{job}", "rows": 8, "cost": 9.0,
        "charged": 9.0, "billed": 0.0, "attempt": 1, "barren": 0, "step": 0, "epoch": 0, "worker": "",
        "cancelling": False, "created": 1.0, "deadline": 2.0, "reason": "", "blame": "",
    }  # fmt: skip
    return values | more


def first_room(path: Path) -> None:
    """Three jobs: shown, not shown yet, and one of the page."""
    engine = create_engine(f"sqlite:///{path}")
    where = [
        ("discord", {"channel": "30", "message": "40", "token": "t"}), ("discord", {"channel": "31", "token": "u"}),
        ("web", {}),
    ]  # fmt: skip
    with engine.begin() as connection:
        upgraded(connection, "0001")
        old = MetaData()
        old.reflect(connection)
        for n, (kind, there) in enumerate(where):
            connection.execute(old.tables["jobs"].insert().values(**row(str(n) * 26, "finished")))
            shown = {"job": str(n) * 26, "kind": kind, "where": there, "delivered": None}
            connection.execute(old.tables["places"].insert().values(**shown))
    engine.dispose()


@pytest.mark.asyncio
async def test_jobs_of_the_first_room_keep_their_messages_and_channels(tmp_path):
    await asyncio.to_thread(first_room, tmp_path / "old.sqlite")
    store = await Store.open(f"sqlite:///{tmp_path / 'old.sqlite'}")
    try:
        assert await store.ask(places.job_at, "40") == "0" * 26
        shown = (await store.ask(places.deliveries, "0" * 26))["answer"]
        assert (shown.message, shown.place.where["message"], shown.place.where["token"]) == ("40", "40", "t")
        assert (await store.ask(places.deliveries, "1" * 26))["answer"].message == ""
        records = [await store.record(str(n) * 26) for n in range(3)]
        assert [one and (one.channel, one.task) for one in records] == [("30", RECIPE), ("31", RECIPE), ("", RECIPE)]
        near = await store.ask(shelf.near, "discord:9", "discord:2", "30", 10)
        assert [one.id for one in near] == ["0" * 26]
    finally:
        await store.close()

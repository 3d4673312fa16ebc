"""Deletion and export of what a member said in parties: all of it and nothing of others."""

from __future__ import annotations

import asyncio
from typing import Any
from unittest.mock import AsyncMock

import pytest

from bot.domain.dto import Member
from bot.domain.events import Feed
from bot.domain.feature import load_hooks
from bot.features.parties import store as stored
from bot.jobs.retention import FileCleanup
from bot.pictures.picture_store import PictureStore
from bot.policy.permissions import PERMISSIONS
from bot.services.data_deletion import DataDeletion
from bot.services.front_end_actions import FrontEndActions
from bot.store import Store
from bot.store.members import preferences
from bot.store.schema.tables import metadata
from shared.stored_jobs import finish_job, make_new_job

ANN = "discord:70010000000000001"
BOB = "discord:70020000000000002"


async def open_party(store: Store, pictures: PictureStore) -> str:
    """Stores a party around a picture of Bob's, in which both say something and Ann votes; returns its job."""
    job = await finish_job(store, pictures, make_new_job(BOB, created_at=13), "bob's")
    await store.write(stored.open_party, job, "5", 3, [ANN, BOB])
    for member in (ANN, BOB):
        await store.write(stored.join_party, job, Member(member, member, "local"), 22.0)
        number = await store.write(stored.say, job, member, f"a hat for {member}")
        await store.write(stored.toggle_vote, job, number, ANN, -1)
    return job


async def read_rows(store: Store) -> str:
    """All rows of all tables, as text."""

    def read(connection: Any) -> str:
        return "\n".join(str(row) for table in metadata.sorted_tables for row in connection.execute(table.select()))

    return await store.query(read)


@pytest.mark.asyncio
async def test_what_a_member_said_is_exported_and_deleted_with_their_data(store: Store, tmp_path: Any) -> None:
    pictures = await asyncio.to_thread(PictureStore, tmp_path / "pictures")
    job = await open_party(store, pictures)
    choices = await store.query(preferences.read_choices, ANN)
    assert choices.added["parties"] == [{"job": job, "joined": 22.0, "said": f"a hat for {ANN}"}]
    assert BOB not in str(choices)
    deletion = DataDeletion(
        store,
        AsyncMock(),
        FileCleanup(store, pictures),
        Feed(),
        FrontEndActions(),
        waits_for_discord=False,
        clock=lambda: 1000.0,
    )
    await deletion.request_deletion(ANN)
    await deletion.run_round()
    text = await read_rows(store)
    assert ANN not in text
    assert f"a hat for {BOB}" in text
    assert stored.erase_member in load_hooks("erase_member")


def test_no_key_may_take_part() -> None:
    assert PERMISSIONS["party"].scope is None

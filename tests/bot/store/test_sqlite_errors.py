"""Errors from SQLite reveal no prompts and no tokens."""

from __future__ import annotations

from pathlib import Path

import pytest
from sqlalchemy.exc import IntegrityError

from bot.domain.dto import Destination
from bot.store import Store
from shared.stored_jobs import admit_job, make_new_job


@pytest.mark.asyncio
async def test_an_error_shows_neither_prompts_nor_tokens(tmp_path: Path) -> None:
    store = await Store.open(f"sqlite:///{tmp_path / 'darkroom.sqlite'}")
    one = make_new_job("a-secret-member", destination=Destination("discord", {"token": "a-secret-token"}))
    await admit_job(store, one)
    with pytest.raises(IntegrityError) as error:
        await admit_job(store, one)
    await store.close()
    assert "INSERT INTO jobs" in str(error.value)
    assert "secret" not in str(error.value)

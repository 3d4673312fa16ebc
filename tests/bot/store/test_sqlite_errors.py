"""Errors from SQLite reveal no prompts and no tokens."""

from __future__ import annotations

from pathlib import Path

import pytest
from sqlalchemy.exc import IntegrityError

from bot.domain.dto import Destination
from bot.store import Store
from shared.stored_jobs import asked, draft


@pytest.mark.asyncio
async def test_an_error_shows_neither_prompts_nor_tokens(tmp_path: Path) -> None:
    store = await Store.open(f"sqlite:///{tmp_path / 'darkroom.sqlite'}")
    one = draft("a-secret-member", destination=Destination("discord", {"token": "a-secret-token"}))
    await asked(store, one)
    with pytest.raises(IntegrityError) as caught:
        await asked(store, one)
    await store.close()
    assert "INSERT INTO jobs" in str(caught.value)
    assert "secret" not in str(caught.value)

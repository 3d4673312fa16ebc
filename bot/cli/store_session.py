"""Opens the store for one action of the command line, with or without a running bot."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

from bot.app.settings import Settings, load_settings
from bot.domain.errors import UserError
from bot.store import DatabaseUnavailable, Store
from bot.store.drivers.database import find_sqlite_path

T = TypeVar("T")


def load_store_settings(data: Path | None) -> Settings:
    """Return the environment's settings, with `data` as the folder if given.

    Raise `UserError` if the folder has no store: a mistyped path must not create one.
    """
    settings = load_settings(data)
    database = find_sqlite_path(settings.database)
    if database is not None and not database.is_file():
        raise no_store_error(settings)
    return settings


def no_store_error(settings: Settings) -> UserError:
    return UserError(f"There is no store in {settings.data}: name its folder with --data.")


def run_with_store(url: str, action: Callable[[Store], Awaitable[T]]) -> T:
    """Open the store, run `action`, close the store. Raise `UserError` if it is unavailable."""

    async def run_action() -> T:
        store = await Store.open(url)
        try:
            return await action(store)
        finally:
            await store.close()

    try:
        return asyncio.run(run_action())
    except DatabaseUnavailable as error:
        raise UserError(str(error)) from error

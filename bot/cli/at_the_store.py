"""Opens the store for one action of the command line, with or without a running bot."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

from bot.config import Settings, load
from bot.refused import Refused
from bot.store import Store, Unavailable, copying

T = TypeVar("T")


def settings_of(data: Path | None) -> Settings:
    """Return the environment's settings, with `data` as the folder if given.

    Raise `Refused` if the folder has no store: a mistyped path must not create one.
    """
    settings = load(**({} if data is None else {"data": data}))
    database = copying.file_of(settings.database)
    if database is not None and not database.is_file():
        raise none_there(settings)
    return settings


def none_there(settings: Settings) -> Refused:
    return Refused(f"There is no store in {settings.data}: name its folder with --data.")


def at_the_store(url: str, act: Callable[[Store], Awaitable[T]]) -> T:
    """Open the store, run `act`, close the store. Raise `Refused` if it is unavailable."""

    async def acted() -> T:
        store = await Store.open(url)
        try:
            return await act(store)
        finally:
            await store.close()

    try:
        return asyncio.run(acted())
    except Unavailable as error:
        raise Refused(str(error)) from error

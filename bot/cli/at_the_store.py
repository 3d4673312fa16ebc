"""One act on the store from the command line, beside a running bot or without one. Knows nothing of what is done."""

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
    """The environment's, and above them the folder that was named. Raises `Refused` where there is no store.

    A mistyped folder must not become one.
    """
    settings = load(**({} if data is None else {"data": data}))
    database = copying.file_of(settings.database)
    if database is not None and not database.is_file():
        raise none_there(settings)
    return settings


def none_there(settings: Settings) -> Refused:
    return Refused(f"There is no store in {settings.data}: name its folder with --data.")


def at_the_store(url: str, act: Callable[[Store], Awaitable[T]]) -> T:
    """Open it, act, close it. Raises `Refused` where it cannot be used."""

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

"""An empty database with all current tables, as bytes, for tests that open one many times."""

from __future__ import annotations

import asyncio
import functools
import tempfile
from pathlib import Path

from bot.store import Store


@functools.cache
def make_migrated_database() -> bytes:
    """Returns the bytes of an empty migrated database. Made once, because hypothesis opens many."""

    async def create_database(file: Path) -> None:
        await (await Store.open(f"sqlite:///{file}")).close()

    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(create_database(Path(folder) / "d.sqlite"))
        return (Path(folder) / "d.sqlite").read_bytes()


def put_migrated_database(data: Path) -> Path:
    """Puts the database into a private data folder, where an app looks for it; returns the folder."""
    data.mkdir(mode=0o700, parents=True, exist_ok=True)
    (data / "darkroom.sqlite").write_bytes(make_migrated_database())
    return data

"""An empty database with all of today's tables, as bytes: for tests that open one many times."""

from __future__ import annotations

import asyncio
import functools
import tempfile
from pathlib import Path

from bot.store import Store


@functools.cache
def migrated() -> bytes:
    """Made once: hypothesis opens many."""

    async def make(file: Path) -> None:
        await (await Store.open(f"sqlite:///{file}")).close()

    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(make(Path(folder) / "d.sqlite"))
        return (Path(folder) / "d.sqlite").read_bytes()

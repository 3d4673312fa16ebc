"""Pictures and ladders on their way in: fetched from the broker, checked, copied into the picture store, noted in SQL.

What a worker says of a picture is believed only after a look at it. Knows PNGs and ladders; decides no states.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from bot.images.pictures import Pictures
from bot.images.pixels import opened, size
from bot.queue.board import Board
from bot.states import over
from bot.store import Record, Store, Stored, reads
from bot.store.deleting import unused
from engine.bus import Bus
from engine.job import Enlarge, Ladder, Picture, Recipe, decode

MOST = 8  # times as wide and high as its recipe: what a worker's super-resolver does (`engine.job.Warm.enlargement`)
LIMITS = {"image": 64 * 1024 * 1024, "ladder": 24 * 1024 * 1024}  # bytes


class Incomplete(Exception):
    """A job was reported done before all of its pictures were here."""


class Wrong(ValueError):
    """A picture is not what its worker said, or not what the job asked for."""


class Arrivals:
    """Where pictures come in."""

    def __init__(
        self, store: Store, bus: Bus, board: Board, pictures: Pictures, *, clock: Callable[[], float] = time.time
    ) -> None:  # fmt: skip
        self._store, self._bus, self._board, self._pictures, self._clock = store, bus, board, pictures, clock

    async def keep(self, value: Picture) -> bool:
        """Store a picture. False: nobody waits for it any more. Raises `Wrong`, `NoBlob`, `Malformed`, `Unreadable`."""
        run = self._board.runs.get(value.job)  # what it does not know yet, SQL does: each picture is noted there
        record = run.record if run else await self._store.record(value.job)
        if record is None or over(record.state) or value.epoch < record.epoch or record.deleted is not None:
            return False
        _expected(value, record)
        content = await self._bus.get_blob(value.sha256, LIMITS[value.kind])
        await asyncio.to_thread(check, value, content)
        sizes = (len(content), value.width, value.height)
        one = Stored(value.job, value.image, value.kind, value.sha256, *sizes, verdict=value.verdict)
        async with self._pictures.turn(value.sha256):
            await self._pictures.put(content)
            kept = await self._store.keep(one, value.epoch, self._clock(), value.method)
            if not kept and await self._store.ask(unused, value.sha256):  # over, or deleted, while it came in
                await self._pictures.drop(value.sha256)
        return kept

    async def missing(self, record: Record) -> list[str]:
        """What a job was asked for and has not come in, as `image 0` or `ladder 0`."""
        kept = await self._store.ask(reads.stored, [record.id])
        here = {(one.kind, one.image) for one in kept}
        kinds = ["image", "ladder"] if isinstance(record.task, Recipe) and record.job().ladder else ["image"]
        asked = [(kind, image) for kind in kinds for image in range(record.images)]
        return [f"{kind} {image}" for kind, image in asked if (kind, image) not in here]


def _expected(value: Picture, record: Record) -> None:
    if value.image >= record.images or (value.kind == "ladder" and isinstance(record.task, Enlarge)):
        raise Wrong(f"nobody asked for {value.kind} {value.image}")
    if value.kind == "image" and isinstance(record.task, Recipe):
        asked, factor = (record.task.width, record.task.height), value.width // record.task.width
        if not 1 <= factor <= MOST or (value.width, value.height) != (factor * asked[0], factor * asked[1]):
            raise Wrong(f"the picture is {value.width} × {value.height}, not some times {asked[0]} × {asked[1]}")


def check(value: Picture, content: bytes) -> None:
    """Raises `Wrong`, `Malformed` or `Unreadable` if the bytes are not the PNG or the ladder that they should be.

    A good header proves little: the PNG is decoded as whoever shows it would. CPU-heavy: async callers use a thread.
    """
    if len(content) != value.bytes:
        raise Wrong(f"{len(content)} bytes came, not {value.bytes}")
    if value.kind == "ladder":
        ladder = decode(content, Ladder)
        if (ladder.job, ladder.image) != (value.job, value.image):
            raise Wrong("the ladder is of another picture")
        if not ladder.rungs:
            raise Wrong("the ladder has no rungs")
    elif size(content) != (value.width, value.height):
        raise Wrong("the picture is not the PNG that was announced")
    else:
        opened(content)

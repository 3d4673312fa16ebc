"""Ingests pictures and ladders: fetches them from the broker, checks them, stores the files and records them in SQL.

It checks the bytes before it trusts a worker's report. Knows PNGs and ladders; decides no job states.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack

from bot.images.pictures import Pictures
from bot.images.pixels import opened, size
from bot.queue.board import Board
from bot.states import over
from bot.store import End, Moved, Record, Store, Stored, reads
from bot.store.deleting import unused
from engine.bus import Bus
from engine.job import Enlarge, Finished, Ladder, Method, Picture, Recipe, decode

MOST = 8  # largest upscale factor, width and height, of a super-resolver (`engine.job.Warm.enlargement`)
LIMITS = {"image": 64 * 1024 * 1024, "ladder": 24 * 1024 * 1024}  # bytes


class Incomplete(Exception):
    """A worker reported a job as done before all of its pictures arrived."""


class Wrong(ValueError):
    """A picture does not match its report, or its job."""


class Arrivals:
    """Stores incoming pictures of jobs."""

    def __init__(
        self, store: Store, bus: Bus, board: Board, pictures: Pictures, *, clock: Callable[[], float] = time.time
    ) -> None:  # fmt: skip
        self._store, self._bus, self._board, self._pictures, self._clock = store, bus, board, pictures, clock

    async def take_in(self, values: Sequence[Picture], done: Finished | None = None) -> tuple[bool, Moved | None]:
        """Store pictures of one job and epoch, and finish it if `done` is given and none is missing.

        False: the job does not accept them any more. Raises `Wrong`, `NoBlob`, `Malformed` or `Unreadable`, and then
        stores none.
        """
        about = (*values, done)[0]
        assert about is not None
        if values and not await self._is_wanted(values):
            return False, None
        contents = await self._fetch(values)
        found = [_stored(value, contents[value.sha256]) for value in values]
        end = End(done.cost, done.seconds, done.ms_per_step) if done else None
        methods: list[Method] = [value.method for value in values if value.method]
        async with AsyncExitStack() as turns:
            for sha256 in sorted(contents):  # sorted everywhere, or two tasks would deadlock
                await turns.enter_async_context(self._pictures.turn(sha256))
            if contents:
                await self._pictures.put_all(contents)
            kept, moved = await self._store.take_in(about.job, about.epoch, found, end, self._clock(), *methods[:1])
            for sha256 in () if kept else contents:
                if await self._store.ask(unused, sha256):  # the job ended or was deleted meanwhile
                    await self._pictures.drop(sha256)
        return kept, moved

    async def _is_wanted(self, values: Sequence[Picture]) -> bool:
        """Return whether the job still accepts them. Raises `Wrong` for a picture that the job did not ask for."""
        run = self._board.runs.get(values[0].job)  # SQL knows all pictures, also those missing here
        record = run.record if run else await self._store.record(values[0].job)
        if record is None or over(record.state) or values[0].epoch < record.epoch or record.deleted is not None:
            return False
        for value in values:
            _expected(value, record)
        return True

    async def _fetch(self, values: Sequence[Picture]) -> dict[str, bytes]:
        """Fetch the bytes, by SHA-256, and check them. The bus has verified the hashes."""
        asked = (self._bus.get_blob(value.sha256, min(LIMITS[value.kind], value.bytes)) for value in values)
        contents: list[bytes] = []
        for content in await asyncio.gather(*asked, return_exceptions=True):
            if isinstance(content, BaseException):
                raise content
            contents.append(content)
        if values:
            await asyncio.to_thread(_check_all, values, contents)
        return {value.sha256: content for value, content in zip(values, contents, strict=True)}

    async def missing(self, record: Record) -> list[str]:
        """Return the results that have not arrived, as `image 0` or `ladder 0`."""
        return record.missing(await self._store.ask(reads.stored, [record.id]))


def _stored(value: Picture, content: bytes) -> Stored:
    sizes = (len(content), value.width, value.height)
    return Stored(value.job, value.image, value.kind, value.sha256, *sizes, verdict=value.verdict)


def _check_all(values: Sequence[Picture], contents: Sequence[bytes]) -> None:
    for value, content in zip(values, contents, strict=True):
        check(value, content)


def _expected(value: Picture, record: Record) -> None:
    if value.image >= record.images or (value.kind == "ladder" and isinstance(record.task, Enlarge)):
        raise Wrong(f"the job did not ask for {value.kind} {value.image}")
    if value.kind == "image" and isinstance(record.task, Recipe):
        asked, factor = (record.task.width, record.task.height), value.width // record.task.width
        if not 1 <= factor <= MOST or (value.width, value.height) != (factor * asked[0], factor * asked[1]):
            raise Wrong(f"the picture is {value.width} × {value.height}, no multiple of {asked[0]} × {asked[1]}")


def check(value: Picture, content: bytes) -> None:
    """Check that the bytes are the announced PNG or ladder. Raises `Wrong`, `Malformed` or `Unreadable`.

    A valid header proves little, so the PNG is decoded entirely. CPU-heavy: async callers use a thread.
    """
    if len(content) != value.bytes:
        raise Wrong(f"{len(content)} bytes arrived, not {value.bytes}")
    if value.kind == "ladder":
        ladder = decode(content, Ladder)
        if (ladder.job, ladder.image) != (value.job, value.image):
            raise Wrong("the ladder belongs to another picture")
        if not ladder.rungs:
            raise Wrong("the ladder has no keyframes")
    elif size(content) != (value.width, value.height):
        raise Wrong("the picture is not the PNG that was announced")
    else:
        opened(content)

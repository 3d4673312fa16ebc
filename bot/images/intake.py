"""The intake: a stranger's picture as a plain PNG, read in a process of its own that may break without harm.

Bounds are checked before a pixel is decoded, nothing that the process says is believed unseen, and what is wrong with
a picture is said in one sentence. Knows bytes and processes; knows nothing of members, jobs or addresses.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from dataclasses import dataclass

from bot.images import confined, reading
from bot.images.plain import GREY, RGB, NotPlain, plain
from bot.images.readers import Gone, Reader
from bot.images.reading import KEPT_SIDE, MOST_PIXELS, MOST_SIDE, Kind
from bot.refused import Refused, Status

log = logging.getLogger(__name__)

MOST_BYTES = 16 * 2**20
SECONDS = 10.0  # of a clock, for one picture
MEMORY = 2**30  # bytes of address space: 7/8 of it hold `MOST_PIXELS` of every kind (tests/bot/test_intake.py)
READERS = 2  # pictures that are read at once
LINE = 32  # that wait: each is held in memory
ALIKE = 0.02  # that two shapes may differ

_KINDS = ", ".join({"WEBP": "WebP"}.get(one, one) for one in reading.FORMATS[:-1]) + f" and {reading.FORMATS[-1]}"
_MILLION = f"{MOST_PIXELS // 1_000_000} million"
WHY: dict[bytes, tuple[str, Status]] = {
    reading.NO_KIND: (f"The {{}} is of no kind that is read here: {_KINDS} are.", 422),
    reading.BROKEN: ("The {} is damaged and cannot be read: save it anew and try again.", 422),
    reading.PIXELS: (f"The {{}} has too many pixels: up to {_MILLION} are read.", 413),
    reading.SIDE: (f"The {{}} is too long: up to {MOST_SIDE} pixels a side are read.", 413),
    reading.MEMORY: ("The {} takes too much memory to be read: save it smaller.", 413),
    reading.EMPTY: ("Nothing is painted: what is white in the {} is drawn anew.", 422),
}
TOO_LONG = "The {} takes too long to be read: save it anew, or smaller."
BROKE_OFF = "Reading the {} broke off: try again, or save it anew."
BUSY = "Too many pictures are being read just now: try again soon."


@dataclass(frozen=True)
class Brought:
    """A picture as a PNG of nothing but pixels, RGB or (of a mask) grey; and what was done to it, in sentences."""

    png: bytes
    width: int
    height: int
    sha256: str
    notes: tuple[str, ...] = ()


class Intake:
    """One for a house; closed at its end. The processes start when the first picture comes, and then stay."""

    def __init__(self, *, seconds: float = SECONDS, memory: int = MEMORY, readers: int = READERS) -> None:
        self._seconds, self._memory = seconds, memory
        self._turn, self._waiting = asyncio.Semaphore(readers), 0
        self._idle: list[Reader] = []
        self._all: set[Reader] = set()
        self._closed = False

    async def read(self, content: bytes, *, what: str = "picture") -> Brought:
        """A picture file of any kind that is read, as RGB. Raises `Refused` with a sentence about the `what`."""
        head, png = await self._asked(reading.PICTURE, content, what)
        return await asyncio.to_thread(_brought, head, png, RGB, what)

    async def read_mask(self, content: bytes, *, shape: tuple[int, int] | None = None, what: str = "mask") -> Brought:
        """A mask as grey: what is white is drawn anew. Raises `Refused`, also where nothing is white.

        `shape`: width and height of its picture. It may be smaller or larger, for whoever draws scales both; of
        another shape, both would be cut differently, and it would lie beside what it is about.
        """
        head, png = await self._asked(reading.MASK, content, what)
        own = head[2], head[3]
        if shape is not None and not _alike(own, shape):
            of, wanted = f"{own[0]} × {own[1]}", f"{shape[0]} × {shape[1]}"
            raise Refused(f"The {what} has {of} pixels, and its picture {wanted}: both must be of one shape.")
        return await asyncio.to_thread(_brought, head, png, GREY, what)

    async def close(self) -> None:
        """No process is left; what is being read breaks off."""
        self._closed = True
        await asyncio.gather(*(reader.end() for reader in list(self._all)))
        self._all.clear()

    async def _asked(self, kind: Kind, content: bytes, what: str) -> tuple[tuple[bytes, int, int, int], bytes]:
        """The head and the PNG of one that was read."""
        if not content:
            raise Refused(f"The {what} is empty.")
        if len(content) > MOST_BYTES:
            raise Refused(f"The {what} is too large: up to {MOST_BYTES // 2**20} MiB are read.", 413)
        if self._closed or self._waiting >= LINE:
            raise Refused(BUSY, 429)
        self._waiting += 1
        try:
            async with self._turn:
                end, said = await self._read(kind, content, what)
        finally:
            self._waiting -= 1
        if end == confined.SLOW:
            raise Refused(TOO_LONG.format(what))
        if end != confined.SAID or len(said) < reading.HEAD.size:
            log.warning("intake: a picture of %d bytes ended its reader (%d)", len(content), end)
            raise Refused(BROKE_OFF.format(what))
        head = reading.HEAD.unpack_from(said)
        if head[0] != reading.READ:
            sentence, status = WHY.get(head[0], (BROKE_OFF, 422))
            raise Refused(sentence.format(what), status)
        return head, said[reading.HEAD.size :]

    async def _read(self, kind: Kind, content: bytes, what: str) -> tuple[int, bytes]:
        try:
            reader = await self._taken()
        except (Gone, OSError) as error:
            log.error("intake: no process to read pictures: %s", error)
            raise Refused("Pictures cannot be read just now: try again soon.", 429) from error
        try:
            return await reader.ask(kind, content)
        except Gone as error:
            log.warning("intake: a process that reads pictures is gone: %s", error)
            raise Refused(BROKE_OFF.format(what)) from error
        finally:
            if reader.fit and not self._closed:
                self._idle.append(reader)
            else:
                await self._ended(reader)

    async def _taken(self) -> Reader:
        """One that is idle and alive, else a new one."""
        while self._idle:
            if (reader := self._idle.pop()).fit:
                return reader
            await self._ended(reader)
        reader = await Reader.start(self._seconds, self._memory)
        self._all.add(reader)
        if self._closed:
            await self._ended(reader)
            raise Gone("closed")
        return reader

    async def _ended(self, reader: Reader) -> None:
        await reader.end()
        self._all.discard(reader)


def _alike(own: tuple[int, int], shape: tuple[int, int]) -> bool:
    """A side may have been rounded when one of them was made smaller."""
    return abs(own[0] * shape[1] / (own[1] * shape[0]) - 1) <= max(ALIKE, 1 / min(*own, *shape))


def _brought(head: tuple[bytes, int, int, int], png: bytes, colour: int, what: str) -> Brought:
    """Raises `Refused` for a PNG that is not what it should be: then whoever read it had lost its mind."""
    _, done, *own = head
    try:
        width, height = plain(png, KEPT_SIDE, colour)
    except NotPlain as error:
        log.warning("intake: what was read is no plain picture: %s", error)
        raise Refused(BROKE_OFF.format(what)) from error
    notes = {
        reading.ANIMATED: "It is animated: its first picture is taken.",
        reading.TRANSPARENT: "What is transparent in it was made white.",
        reading.REDUCED: f"It was made smaller, from {own[0]} × {own[1]} to {width} × {height}.",
    }
    if colour == GREY:
        notes.pop(reading.TRANSPARENT)
    said = tuple(note for flag, note in notes.items() if done & flag)
    return Brought(png, width, height, hashlib.sha256(png).hexdigest(), said)

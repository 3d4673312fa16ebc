"""The upload decoder: turns an uploaded file into a plain PNG, in a sandboxed subprocess.

Limits are checked before a pixel is decoded, and the subprocess's output is validated. Each fault has one sentence.
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
SECONDS = 10.0  # wall clock, per upload
MEMORY = 2**30  # bytes of address space: 7/8 of it suffice for `MOST_PIXELS` of every kind (tests/bot/test_intake.py)
READERS = 2  # uploads decoded at once
LINE = 32  # uploads that wait: each is held in memory
ALIKE = 0.02  # relative difference of two aspect ratios that count as equal

_KINDS = ", ".join({"WEBP": "WebP"}.get(one, one) for one in reading.FORMATS[:-1]) + f" and {reading.FORMATS[-1]}"
_MILLION = f"{MOST_PIXELS // 1_000_000} million"
WHY: dict[bytes, tuple[str, Status]] = {
    reading.NO_KIND: (f"The {{}} has a format that is not supported here: {_KINDS} are.", 422),
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
    """A decoded upload: a PNG of pixels alone, RGB or (of a mask) grey. `notes` say what was changed."""

    png: bytes
    width: int
    height: int
    sha256: str
    notes: tuple[str, ...] = ()


class Intake:
    """One per bot. The subprocesses start with the first upload and stay until `close`."""

    def __init__(self, *, seconds: float = SECONDS, memory: int = MEMORY, readers: int = READERS) -> None:
        self._seconds, self._memory = seconds, memory
        self._turn, self._waiting = asyncio.Semaphore(readers), 0
        self._idle: list[Reader] = []
        self._all: set[Reader] = set()
        self._closed = False

    async def read(self, content: bytes, *, what: str = "picture") -> Brought:
        """Decode a picture of any supported format to RGB. Raises `Refused` with a sentence about the `what`."""
        head, png = await self._asked(reading.PICTURE, content, what)
        return await asyncio.to_thread(_brought, head, png, RGB, what)

    async def read_mask(self, content: bytes, *, shape: tuple[int, int] | None = None, what: str = "mask") -> Brought:
        """Decode a mask to grey: white is repainted. Raises `Refused`, also if nothing is white.

        `shape`: width and height of its picture. The mask may be smaller or larger, since both are scaled later. With
        another aspect ratio both would be cropped differently, and the mask would be misplaced.
        """
        head, png = await self._asked(reading.MASK, content, what)
        own = head[2], head[3]
        if shape is not None and not _alike(own, shape):
            of, wanted = f"{own[0]} × {own[1]}", f"{shape[0]} × {shape[1]}"
            raise Refused(f"The {what} has {of} pixels, and its picture {wanted}: both must be of one shape.")
        return await asyncio.to_thread(_brought, head, png, GREY, what)

    async def close(self) -> None:
        """End every subprocess; uploads in progress fail."""
        self._closed = True
        await asyncio.gather(*(reader.end() for reader in list(self._all)))
        self._all.clear()

    async def _asked(self, kind: Kind, content: bytes, what: str) -> tuple[tuple[bytes, int, int, int], bytes]:
        """Return the head and the PNG of a decoded upload. Raises `Refused`."""
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
            log.warning("intake: an upload of %d bytes ended its decoder (%d)", len(content), end)
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
            log.error("intake: no decoder process: %s", error)
            raise Refused("Pictures cannot be read just now: try again soon.", 429) from error
        try:
            return await reader.ask(kind, content)
        except Gone as error:
            log.warning("intake: a decoder process is gone: %s", error)
            raise Refused(BROKE_OFF.format(what)) from error
        finally:
            if reader.fit and not self._closed:
                self._idle.append(reader)
            else:
                await self._ended(reader)

    async def _taken(self) -> Reader:
        """Return a process that is idle and alive, else start one."""
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
    """Return whether two shapes are alike; a side may have been rounded when one picture was scaled down."""
    return abs(own[0] * shape[1] / (own[1] * shape[0]) - 1) <= max(ALIKE, 1 / min(*own, *shape))


def _brought(head: tuple[bytes, int, int, int], png: bytes, colour: int, what: str) -> Brought:
    """Return the decoded upload. Raises `Refused` for an invalid PNG: then the subprocess cannot be trusted."""
    _, done, *own = head
    try:
        width, height = plain(png, KEPT_SIDE, colour)
    except NotPlain as error:
        log.warning("intake: a decoded upload is no plain PNG: %s", error)
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

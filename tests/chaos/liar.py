"""A client with the workers' token that lies, repeats and babbles: nothing of what it says may count.

It speaks as `liar`, never under another worker's name: with one token for all, nothing could tell that apart.
Knows subjects and the wire contract.
"""

from __future__ import annotations

import asyncio
import hashlib
import io
import random
from collections.abc import Awaitable, Callable
from contextlib import suppress

import msgspec
from PIL import Image

from chaos.observer import Claimed, Observer
from engine.bus import Bus, Unreachable
from engine.job import Cancelled, Failed, Finished, Frame, Picture, Result, Started, encode

NAME = "liar"
LIMIT = 8 * 1024 * 1024 - 4096  # the broker cuts off who sends more
NAMES = (b"\xff\xfe", b"a\x0bb", b"\x0c7", b"x" * 3000, b"\xff" * 3000, b"*", b">")  # for the last token of a subject
BLOCKS = (b"NATS/1.0 \xff\xff\xff", b"NATS/1.0\r\n a: b\r\n\r\n", b"NATS/1.0", b"N", b"\xff" * 8 + b" \xff\xff\xff")


class Liar:
    """Each lie is about one job that somebody else holds under `claimed`."""

    def __init__(self, bus: Bus, observer: Observer) -> None:
        self._bus, self._observer = bus, observer

    async def repeat(self, chance: random.Random) -> str:
        """Reports and dispatched work of before, again and out of order."""
        heard = list(self._observer.heard)
        said = chance.sample(heard, min(len(heard), 40))
        for subject, payload in said:
            with suppress(Unreachable):
                await self._publish(subject, payload)
        return f"{len(said)} messages"

    async def lie(self, chance: random.Random) -> str:
        """One kind of lie about one running job; says which."""
        held = self._observer.held()
        if not held:
            return "nobody to lie about"
        job, claimed = chance.choice(held)
        lies = [
            self.old_epoch, self.stranger, self.giants, self.bad_picture, self.no_blob, self.garbage, self.unknown,
            self.subject, self.header,
        ]  # fmt: skip
        told: Callable[[str, Claimed, random.Random], Awaitable[None]] = chance.choice(lies)
        with suppress(Unreachable):
            await told(job, claimed, chance)
        return f"{told.__name__} about {job}"

    async def old_epoch(self, job: str, claimed: Claimed, chance: random.Random) -> None:
        """Ends and pictures under an epoch that is over."""
        epoch = chance.choice((0, 1, claimed.epoch - 1))
        for result in (await self._forged(job, epoch), *_ends(job, epoch)):
            await self._say(result)

    async def stranger(self, job: str, claimed: Claimed, chance: random.Random) -> None:
        """The right epoch, from somebody who does not hold the job."""
        epoch = claimed.epoch
        said: list[Result] = [Started(job=job, epoch=epoch, worker=NAME, step=1), await self._forged(job, epoch)]
        await self._say(chance.choice([*said, *_ends(job, epoch)]))

    async def giants(self, job: str, claimed: Claimed, chance: random.Random) -> None:
        """As large as the broker lets pass, as a frame and as a report."""
        frame = Frame(
            job=job, image=0, epoch=claimed.epoch, step=1, of=1, picture=chance.randbytes(256 * 1024), seconds_left=1.0
        )
        await self._bus.publish_frame(frame)
        await self._bus.client.publish(f"frames.{job}", bytes(LIMIT))
        await self._publish(f"results.{NAME}.{job}", bytes(LIMIT))

    async def bad_picture(self, job: str, claimed: Claimed, chance: random.Random) -> None:
        """Bytes that are no picture, and a picture of another size."""
        noise = chance.randbytes(500)
        await self._say(_picture(job, claimed.epoch, await self._bus.put_blob(noise), len(noise)))
        small = _png((16, 16), 1)
        await self._say(_picture(job, claimed.epoch, await self._bus.put_blob(small), len(small)))

    async def no_blob(self, job: str, claimed: Claimed, chance: random.Random) -> None:
        """A picture that lies nowhere, and one whose bytes are others than its name says."""
        await self._say(_picture(job, claimed.epoch, hashlib.sha256(chance.randbytes(8)).hexdigest(), 100))
        there = _png((64, 64), 2)
        await self._say(_picture(job, claimed.epoch, await self._bus.put_blob(there), len(there) + 1))

    async def garbage(self, job: str, claimed: Claimed, chance: random.Random) -> None:
        """What nothing can be made of, wherever somebody listens."""
        for subject in (f"results.{NAME}.{job}", f"work.default.{job}.999"):
            await self._publish(subject, chance.randbytes(200))
        me = f"$KV.workers.{NAME}.default"
        for subject in (f"frames.{job}", f"loading.{job}", f"steer.{job}", "frames.x", me, "embed"):
            await self._bus.client.publish(subject, chance.randbytes(200))

    async def unknown(self, job: str, claimed: Claimed, chance: random.Random) -> None:
        """A right report with a field too many, of a version that nobody knows, and of a kind that there is not."""
        right = msgspec.json.decode(msgspec.json.encode(_ends(job, claimed.epoch)[0]))
        for odd in ({**right, "more": 1}, {**right, "v": 99, "new": True}, {**right, "type": "Miracle"}):
            await self._publish(f"results.{NAME}.{job}", msgspec.msgpack.encode(odd))

    async def subject(self, job: str, claimed: Claimed, chance: random.Random) -> None:
        """A subject that the broker takes and that is no text, has a gap in it, or is as long as can be."""
        name, words = chance.choice(NAMES), b"abc"
        for subject in (b"results.%s." % NAME.encode() + name, b"frames." + name):
            await self._write(b"PUB %s %d\r\n%s\r\n" % (subject, len(words), words))

    async def header(self, job: str, claimed: Claimed, chance: random.Random) -> None:
        """Headers that are no text, that begin in their first line, or that end too soon."""
        block, words = chance.choice(BLOCKS), b"abc"
        for subject in (f"results.{NAME}.{job}", f"frames.{job}"):
            sizes = b"%d %d" % (len(block), len(block) + len(words))
            await self._write(b"HPUB %s %s\r\n%s%s\r\n" % (subject.encode(), sizes, block, words))

    async def _write(self, line: bytes) -> None:
        """As no client library would."""
        if self._bus.connected and (transport := self._bus.client._transport) is not None:
            transport.write(line)
        await asyncio.sleep(0)

    async def _forged(self, job: str, epoch: int) -> Picture:
        """A picture that could be one of the job's, and is not."""
        fake = _png((64, 64), epoch % 200)
        return _picture(job, epoch, await self._bus.put_blob(fake), len(fake))

    async def _say(self, result: Result) -> None:
        await self._publish(f"results.{NAME}.{result.job}", encode(result))

    async def _publish(self, subject: str, payload: bytes) -> None:
        """Without waiting for a word of it."""
        with suppress(OSError, TimeoutError):
            await self._bus.client.publish(subject, payload)
        await asyncio.sleep(0)


def _ends(job: str, epoch: int) -> list[Result]:
    return [
        Finished(job=job, epoch=epoch, cost=1e6, seconds=1.0, ms_per_step=1.0),
        Failed(job=job, epoch=epoch, reason="A lie.", blame="member"),
        Cancelled(job=job, epoch=epoch, steps=1, cost=1e6),
    ]


def _picture(job: str, epoch: int, sha: str, size: int) -> Picture:
    return Picture(job=job, image=0, epoch=epoch, kind="image", sha256=sha, bytes=size, width=64, height=64)


def _png(size: tuple[int, int], shade: int) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", size, (shade, shade, shade)).save(out, "PNG")
    return out.getvalue()

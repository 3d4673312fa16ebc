"""A campaign: sends damaged pictures through the real upload decoder, and watches it from outside.

Knows the decoder's promise, processes and clocks; knows nothing of how it reads.
"""

from __future__ import annotations

import asyncio
import hashlib
import io
import random
import struct
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import psutil
from PIL import Image

from bot.domain.errors import UserError
from bot.images.uploads.image_decoding import OUTPUT_SIDE
from bot.images.uploads.upload_decoder import DECODE_TIMEOUT, DecodedImage, UploadDecoder
from fuzz.damage import drawn
from fuzz.seeds import Seed, seeds

LATE = (
    DECODE_TIMEOUT + 6.0
)  # seconds until a case counts as endless: its own limit, and the grace for a hanging process
GROWTH = 48 * 2**20  # bytes that this process may grow by after the largest answers in every thread
AT_ONCE = 2
PROGRESS = 500  # cases between two lines of progress


@dataclass
class Tally:
    """The counts of one kind of damage."""

    cases: int = 0
    brought: int = 0
    refused: int = 0
    slowest: float = 0.0  # seconds


@dataclass
class Outcome:
    """The result of a campaign. `breaches`: the number of the case, and the broken promise."""

    seed: int
    cases: int
    seconds: float = 0.0
    kinds: dict[str, Tally] = field(default_factory=dict[str, Tally])
    reasons: dict[str, int] = field(default_factory=dict[str, int])
    breaches: list[tuple[int, str]] = field(default_factory=list[tuple[int, str]])
    before: int = 0  # bytes of memory, warm
    after: int = 0

    @property
    def holds(self) -> bool:
        return not self.breaches


async def campaign(seed: int, cases: int, say: Callable[[str], None]) -> Outcome:
    """All cases, two at once."""
    outcome, known, intake = Outcome(seed, cases), seeds(), UploadDecoder()
    began, numbers, this_process = time.monotonic(), iter(range(cases)), psutil.Process()
    others = set(this_process.children())  # children of other code in this process
    await asyncio.gather(*(_warm_up(intake) for _ in range(4 * AT_ONCE)))
    outcome.before = this_process.memory_info().rss

    async def work() -> None:
        for number in numbers:
            await _run_case(outcome, number, known, intake)
            if number % PROGRESS == PROGRESS - 1:
                say(f"{number + 1} of {cases}, {time.monotonic() - began:.0f} s, {len(outcome.breaches)} broken")

    try:
        await asyncio.gather(*(work() for _ in range(AT_ONCE)))
        outcome.after = this_process.memory_info().rss
        if outcome.after - outcome.before > GROWTH:
            outcome.breaches.append((cases, f"grew from {outcome.before >> 20} to {outcome.after >> 20} MiB"))
        readers = [child for child in this_process.children() if child not in others]
        if stray := [one for reader in readers for one in reader.children(recursive=True)]:
            outcome.breaches.append((cases, f"children of the readers are left: {stray}"))
    finally:
        await intake.close()
    if leftover := [child for child in this_process.children() if child not in others]:
        outcome.breaches.append((cases, f"processes are left: {leftover}"))
    outcome.seconds = time.monotonic() - began
    return outcome


async def _warm_up(intake: UploadDecoder) -> None:
    """Read and check the largest possible answer: Python never returns some of that memory."""
    side = OUTPUT_SIDE

    def make_noise() -> bytes:
        out = io.BytesIO()
        Image.frombytes("RGB", (side, side), random.Random(0).randbytes(3 * side * side)).save(out, "PNG")
        return out.getvalue()

    assert not await asyncio.to_thread(judged, await intake.decode_picture(await asyncio.to_thread(make_noise)))


async def _run_case(outcome: Outcome, number: int, known: list[Seed], intake: UploadDecoder) -> None:
    kind, content = await asyncio.to_thread(drawn, outcome.seed, number, known)
    tally, began = outcome.kinds.setdefault(kind, Tally()), time.monotonic()
    tally.cases += 1
    try:
        async with asyncio.timeout(LATE):
            picture = await intake.decode_picture(content)
        tally.brought += 1
        if wrong := await asyncio.to_thread(judged, picture):
            outcome.breaches.append((number, wrong))
    except UserError as error:
        tally.refused += 1
        outcome.reasons[error.sentence] = outcome.reasons.get(error.sentence, 0) + 1
        if kind == "untouched":
            outcome.breaches.append((number, f"a good picture was refused: {error.sentence}"))
    except TimeoutError:
        outcome.breaches.append((number, f"no end after {LATE:.0f} s"))
    except Exception as error:
        outcome.breaches.append((number, f"{type(error).__name__}: {error}"))
    tally.slowest = max(tally.slowest, time.monotonic() - began)


def judged(picture: DecodedImage) -> str:
    """What is wrong with the decoded picture; empty if nothing is."""
    if hashlib.sha256(picture.png).hexdigest() != picture.sha256:
        return "another SHA-256"
    kinds, at = list[bytes](), 8
    while at + 12 <= len(picture.png):
        length, kind = struct.unpack_from(">I4s", picture.png, at)
        kinds.append(kind)
        at += length + 12
    if at != len(picture.png) or {*kinds} != {b"IHDR", b"IDAT", b"IEND"}:
        return f"chunks {kinds[:9]}"
    try:
        with Image.open(io.BytesIO(picture.png), formats=("PNG",)) as image:
            image.load()
    except Exception as error:
        return f"cannot be decoded: {error}"
    if image.size != (picture.width, picture.height) or image.mode != "RGB" or max(image.size) > OUTPUT_SIDE:
        return f"{image.mode} {image.size} in place of RGB {picture.width} × {picture.height}"
    return f"metadata {sorted(image.info)}" if image.info else ""

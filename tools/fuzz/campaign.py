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
from bot.pictures.uploads.image_decoding import OUTPUT_SIDE
from bot.pictures.uploads.upload_decoder import DECODE_TIMEOUT, DecodedImage, UploadDecoder
from tools.fuzz.damage import draw_case
from tools.fuzz.seeds import Seed, make_seeds

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
    accepted: int = 0
    refused: int = 0
    slowest_seconds: float = 0.0  # seconds


@dataclass
class Outcome:
    """The result of a campaign. `failures`: the number of the case, and the broken promise."""

    seed: int
    cases: int
    seconds: float = 0.0
    kinds: dict[str, Tally] = field(default_factory=dict[str, Tally])
    reasons: dict[str, int] = field(default_factory=dict[str, int])
    failures: list[tuple[int, str]] = field(default_factory=list[tuple[int, str]])
    before: int = 0  # bytes of memory, warm
    after: int = 0

    @property
    def is_satisfied(self) -> bool:
        return not self.failures


async def run_campaign(seed: int, cases: int, print_line: Callable[[str], None]) -> Outcome:
    """All cases, two at once."""
    outcome = Outcome(seed, cases)
    seed_pictures = make_seeds()
    upload_decoder = UploadDecoder()
    started_at = time.monotonic()
    numbers = iter(range(cases))
    this_process = psutil.Process()
    other_children = set(this_process.children())  # children of other code in this process
    await asyncio.gather(*(_warm_up(upload_decoder) for _ in range(4 * AT_ONCE)))
    outcome.before = this_process.memory_info().rss

    async def work() -> None:
        for number in numbers:
            await _run_case(outcome, number, seed_pictures, upload_decoder)
            if number % PROGRESS == PROGRESS - 1:
                print_line(
                    f"{number + 1} of {cases}, {time.monotonic() - started_at:.0f} s, {len(outcome.failures)} broken"
                )

    try:
        await asyncio.gather(*(work() for _ in range(AT_ONCE)))
        outcome.after = this_process.memory_info().rss
        if outcome.after - outcome.before > GROWTH:
            outcome.failures.append((cases, f"grew from {outcome.before >> 20} to {outcome.after >> 20} MiB"))
        decoder_processes = [child for child in this_process.children() if child not in other_children]
        if stray_processes := [one for reader in decoder_processes for one in reader.children(recursive=True)]:
            outcome.failures.append((cases, f"children of the readers are left: {stray_processes}"))
    finally:
        await upload_decoder.close()
    if leftover_processes := [child for child in this_process.children() if child not in other_children]:
        outcome.failures.append((cases, f"processes are left: {leftover_processes}"))
    outcome.seconds = time.monotonic() - started_at
    return outcome


async def _warm_up(upload_decoder: UploadDecoder) -> None:
    """Read and check the largest possible answer: Python never returns some of that memory."""
    side = OUTPUT_SIDE

    def make_noise() -> bytes:
        buffer = io.BytesIO()
        Image.frombytes("RGB", (side, side), random.Random(0).randbytes(3 * side * side)).save(buffer, "PNG")
        return buffer.getvalue()

    assert not await asyncio.to_thread(
        find_problem, await upload_decoder.decode_picture(await asyncio.to_thread(make_noise))
    )


async def _run_case(outcome: Outcome, number: int, seed_pictures: list[Seed], upload_decoder: UploadDecoder) -> None:
    kind, content = await asyncio.to_thread(draw_case, outcome.seed, number, seed_pictures)
    tally = outcome.kinds.setdefault(kind, Tally())
    started_at = time.monotonic()
    tally.cases += 1
    try:
        async with asyncio.timeout(LATE):
            picture = await upload_decoder.decode_picture(content)
        tally.accepted += 1
        if problem := await asyncio.to_thread(find_problem, picture):
            outcome.failures.append((number, problem))
    except UserError as error:
        tally.refused += 1
        outcome.reasons[error.sentence] = outcome.reasons.get(error.sentence, 0) + 1
        if kind == "untouched":
            outcome.failures.append((number, f"a good picture was refused: {error.sentence}"))
    except TimeoutError:
        outcome.failures.append((number, f"no end after {LATE:.0f} s"))
    except Exception as error:
        outcome.failures.append((number, f"{type(error).__name__}: {error}"))
    tally.slowest_seconds = max(tally.slowest_seconds, time.monotonic() - started_at)


def find_problem(picture: DecodedImage) -> str:
    """Finds what is wrong with the decoded picture; empty if nothing is."""
    if hashlib.sha256(picture.png).hexdigest() != picture.sha256:
        return "another SHA-256"
    kinds = list[bytes]()
    offset = 8
    while offset + 12 <= len(picture.png):
        length, kind = struct.unpack_from(">I4s", picture.png, offset)
        kinds.append(kind)
        offset += length + 12
    if offset != len(picture.png) or {*kinds} != {b"IHDR", b"IDAT", b"IEND"}:
        return f"chunks {kinds[:9]}"
    try:
        with Image.open(io.BytesIO(picture.png), formats=("PNG",)) as image:
            image.load()
    except Exception as error:
        return f"cannot be decoded: {error}"
    if image.size != (picture.width, picture.height) or image.mode != "RGB" or max(image.size) > OUTPUT_SIDE:
        return f"{image.mode} {image.size} in place of RGB {picture.width} × {picture.height}"
    return f"metadata {sorted(image.info)}" if image.info else ""

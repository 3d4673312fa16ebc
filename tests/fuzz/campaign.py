"""A campaign: damaged pictures through the real intake, and what is seen of it from outside.

Knows the intake's promise, processes and clocks; knows nothing of how it reads.
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

from bot.images.intake import SECONDS, Brought, Intake
from bot.images.reading import KEPT_SIDE
from bot.refused import Refused
from fuzz.damage import drawn
from fuzz.seeds import Seed, seeds

LATE = SECONDS + 6.0  # seconds after which a case has no end: its own, and the grace for a process that hangs
GROWTH = 48 * 2**20  # bytes that this process may grow by once it has had the largest answers in every thread
AT_ONCE = 2
SAID = 500  # cases between two words of progress


@dataclass
class Tally:
    """Of one kind of damage."""

    cases: int = 0
    brought: int = 0
    refused: int = 0
    slowest: float = 0.0  # seconds


@dataclass
class Outcome:
    """A campaign that is over. `breaches`: the number of the case, and what was broken."""

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
    outcome, known, intake = Outcome(seed, cases), seeds(), Intake()
    began, numbers, us = time.monotonic(), iter(range(cases)), psutil.Process()
    others = set(us.children())  # of whoever else works in this process
    await asyncio.gather(*(_warmed(intake) for _ in range(4 * AT_ONCE)))
    outcome.before = us.memory_info().rss

    async def work() -> None:
        for number in numbers:
            await _case(outcome, number, known, intake)
            if number % SAID == SAID - 1:
                say(f"{number + 1} of {cases}, {time.monotonic() - began:.0f} s, {len(outcome.breaches)} broken")

    try:
        await asyncio.gather(*(work() for _ in range(AT_ONCE)))
        outcome.after = us.memory_info().rss
        if outcome.after - outcome.before > GROWTH:
            outcome.breaches.append((cases, f"grew from {outcome.before >> 20} to {outcome.after >> 20} MiB"))
        readers = [child for child in us.children() if child not in others]
        if stray := [one for reader in readers for one in reader.children(recursive=True)]:
            outcome.breaches.append((cases, f"children of the readers are left: {stray}"))
    finally:
        await intake.close()
    if left := [child for child in us.children() if child not in others]:
        outcome.breaches.append((cases, f"processes are left: {left}"))
    outcome.seconds = time.monotonic() - began
    return outcome


async def _warmed(intake: Intake) -> None:
    """The largest answer that there is, looked at: what Python keeps of that memory it keeps for good."""
    side = KEPT_SIDE

    def noisy() -> bytes:
        out = io.BytesIO()
        Image.frombytes("RGB", (side, side), random.Random(0).randbytes(3 * side * side)).save(out, "PNG")
        return out.getvalue()

    assert not await asyncio.to_thread(judged, await intake.read(await asyncio.to_thread(noisy)))


async def _case(outcome: Outcome, number: int, known: list[Seed], intake: Intake) -> None:
    kind, content = await asyncio.to_thread(drawn, outcome.seed, number, known)
    tally, began = outcome.kinds.setdefault(kind, Tally()), time.monotonic()
    tally.cases += 1
    try:
        async with asyncio.timeout(LATE):
            brought = await intake.read(content)
        tally.brought += 1
        if wrong := await asyncio.to_thread(judged, brought):
            outcome.breaches.append((number, wrong))
    except Refused as error:
        tally.refused += 1
        outcome.reasons[error.sentence] = outcome.reasons.get(error.sentence, 0) + 1
        if kind == "untouched":
            outcome.breaches.append((number, f"a good picture was refused: {error.sentence}"))
    except TimeoutError:
        outcome.breaches.append((number, f"no end after {LATE:.0f} s"))
    except Exception as error:
        outcome.breaches.append((number, f"{type(error).__name__}: {error}"))
    tally.slowest = max(tally.slowest, time.monotonic() - began)


def judged(brought: Brought) -> str:
    """What is wrong with what was brought; empty for nothing."""
    if hashlib.sha256(brought.png).hexdigest() != brought.sha256:
        return "another SHA-256"
    kinds, at = list[bytes](), 8
    while at + 12 <= len(brought.png):
        length, kind = struct.unpack_from(">I4s", brought.png, at)
        kinds.append(kind)
        at += length + 12
    if at != len(brought.png) or {*kinds} != {b"IHDR", b"IDAT", b"IEND"}:
        return f"chunks {kinds[:9]}"
    try:
        with Image.open(io.BytesIO(brought.png), formats=("PNG",)) as opened:
            opened.load()
    except Exception as error:
        return f"cannot be decoded: {error}"
    if opened.size != (brought.width, brought.height) or opened.mode != "RGB" or max(opened.size) > KEPT_SIDE:
        return f"{opened.mode} {opened.size} in place of RGB {brought.width} × {brought.height}"
    return f"metadata {sorted(opened.info)}" if opened.info else ""

"""Texts that all front ends share, and functions that make members' text safe to repeat.

Handles English and Discord's markdown and mentions as text; imports no discord library, HTML or terminal code.
"""

from __future__ import annotations

import math
import re
import unicodedata
from functools import lru_cache
from typing import TYPE_CHECKING

from engine import sizes
from engine.job import ALL_ALONG, SAMPLER_TITLES

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from engine.job import Blame, Method, ModelProgress, Recipe

NO_WORKER = "No worker is online. The job waits, and starts when one comes."
GONE = "The picture that this job begins with no longer exists."
DELETED = "Its pictures were deleted."
BLAMED = {
    "member": "This one counts against your limit.",
    "model": "The model's fault: it costs you nothing.",
    "worker": "The worker's fault: it costs you nothing.",
    "us": "Our fault: it costs you nothing.",
}

# Endings of notes that are said only once.
FULL_COURSE = "asks for the full course."
WHOLE = "the whole picture goes through the unmodified pipeline; midway it cannot go on elsewhere."

_JOINERS = "\u200c\u200d"  # needed inside Persian and Indic words and between emoji; a disguise anywhere else
_INVISIBLE = "\u034f\u115f\u1160\u17b4\u17b5\u2800\u3164\uffa0"  # letters and marks that draw nothing
MARKS = 4  # combining marks on a letter
_SPECIAL = frozenset("\\*_~`|<>#[]/")
_LIST = re.compile(r"[0-9]+(?=[.)] )")


def plain(text: str) -> str:
    """Return `text` on one line: no control, bidi, zero-width, private or unpaired character, single spaces, trimmed.

    A letter keeps at most four marks: no script needs more, and heaps of them cover the lines around.
    """
    kept = "".join(_kept(text, place) for place in range(len(text)))
    return " ".join("".join(_tamed(kept)).split())


def _tamed(text: str) -> Iterator[str]:
    marks = MARKS  # none at the beginning or after a space: there they would attach to other text
    for character in text:
        mark = unicodedata.category(character) in ("Mn", "Me")
        marks = marks + 1 if mark else MARKS if character == " " else 0
        if not mark or marks <= MARKS:
            yield character


def _kept(text: str, place: int) -> str:
    character = text[place]
    if character in _JOINERS:
        around = text[max(0, place - 1) : place] + text[place + 1 : place + 2]
        return character if len(around) == 2 and all(_joinable(one) for one in around) else ""
    if character in _INVISIBLE:
        return ""
    category = unicodedata.category(character)
    if category in ("Cf", "Cs", "Co", "Cn"):
        return ""
    return " " if category in ("Cc", "Zl", "Zp", "Zs") else character


def _joinable(character: str) -> bool:
    return not character.isascii() and unicodedata.category(character)[0] in "LMS"


@lru_cache(maxsize=2048)  # a job's prompt is repeated with each preview
def quoted(text: str, limit: int = 1000) -> str:
    """Escape `text` for a Discord message, at most `limit` characters: it pings nobody, links nowhere, formats nothing.

    A zero-width space after `@` breaks mentions, since Discord does not reliably honour a backslash there. Backslashes
    escape all else: markdown, `<#…>`, `<t:…>`, addresses, and invites that would unfold into an embed. The cut, marked
    by an ellipsis, never falls inside an escape.
    """
    text = plain(text)
    numbered = _LIST.match(text)
    pieces: list[str] = []
    left = limit
    for place, character in enumerate(text):
        listed = place == numbered.end() if numbered else place == 0 and character in "-+"
        piece = "\\" + character if listed else _escaped(character)
        rest = len(text) - place - 1
        if len(piece) > left - (1 if rest else 0):
            return "".join(pieces) + "…"[:left]
        pieces.append(piece)
        left -= len(piece)
    return "".join(pieces)


def _escaped(character: str) -> str:
    if character == "@":
        return "@\u200b"
    return "\\" + character if character in _SPECIAL else character


def shortened(text: str, limit: int = 60) -> str:
    """Return `text` on one line, cut with an ellipsis to `limit` characters; for quoting a value inside a sentence."""
    text = plain(text[: 4 * limit])
    return text if len(text) <= limit else text[: limit - 1].rstrip() + "…"


def duration(seconds: float) -> str:
    """Format seconds, rounded up: `0.4` → "1 s", `80` → "1 min 20 s", `7300` → "2 h 2 min", `2e5` → "2 d 8 h"."""
    whole = max(1, math.ceil(min(seconds, 1e9)))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return _two(whole, 60, "min", 1, "s")
    return _two(whole, 3600, "h", 60, "min") if whole < 86400 else _two(whole, 86400, "d", 3600, "h")


def _two(whole: int, big: int, big_name: str, small: int, small_name: str) -> str:
    first, rest = divmod(math.ceil(whole / small) * small, big)
    return f"{first} {big_name}" + (f" {rest // small} {small_name}" if rest else "")


def jobs(count: int) -> str:
    """Return "1 job", "3 jobs"."""
    return f"{count} job" if count == 1 else f"{count} jobs"


def lasting(notes: Sequence[str]) -> tuple[str, ...]:
    """Return the notes that stay under a job's picture; the others are said once."""
    return tuple(note for note in notes if not note.endswith((FULL_COURSE, WHOLE)))


def priced(count: int, cost: float) -> str:
    """Say what was queued and what it costs, in device-seconds as in `engine.job.cost`."""
    return f"{jobs(count)}, about {duration(cost)} of device time{'' if count == 1 else ' in all'}."


def waiting(ahead: int, eta: float | None, *, worker: bool = True, starting: str = "") -> str:
    """Say where a queued job stands: how many jobs start before it, and the seconds until it is done, if known.

    `starting`: a sentence about a worker that is starting up.
    """
    if not worker:
        return starting or NO_WORKER
    place = "Next in line" if ahead <= 0 else f"{jobs(ahead)} ahead of it"
    return f"{place}." if eta is None else f"{place}, done in about {duration(eta)}."


def percent(step: int, of: int) -> int:
    """Return the whole percent done; 100 only when it is done."""
    if of <= 0:
        return 0
    return max(0, min(100, step * 100 // of))


def bar(step: int, of: int, width: int = 20) -> str:
    """Return a progress bar of `width` blocks."""
    filled = percent(step, of) * width // 100
    return "█" * filled + "░" * (width - filled)


def progress(step: int, of: int, seconds_left: float | None) -> str:
    """Return a progress line: "██░░ 42 % · step 420 of 1000 · 12 s left"."""
    left = "" if seconds_left is None else f" · {duration(seconds_left)} left"
    return f"{bar(step, of)} {percent(step, of)} % · step {step} of {of}{left}"


def footer(recipe: Recipe, seconds: float | None = None, ms_per_step: float | None = None, enlargement: int = 1) -> str:
    """Summarise in one line how the pictures were made: enough to make them again with the same prompt."""
    parts = [f"{recipe.steps} steps of {SAMPLER_TITLES[recipe.sampler]}", f"seed {recipe.seed}"]
    parts += [guidance(recipe), sized(recipe, enlargement), recipe.model]
    parts += [f"LoRA {lora.name} ×{lora.weight:g}" for lora in recipe.loras]
    if seconds is not None:
        parts.append(duration(seconds))
    if ms_per_step:
        parts.append(f"{ms_per_step:.1f} ms a step")
    return " · ".join(parts)


def guidance(recipe: Recipe) -> str:
    """Return "guidance 4", "guidance 4 from 0.2 to 0.8"."""
    held = recipe.interval
    part = "" if held == ALL_ALONG else f" from {held[0]:g} to {held[1]:g}"
    return f"guidance {recipe.guidance:g}{part}"


def loading(model: str, done: float, size: int = 0) -> str:
    """Say that a job's worker loads its model: "loading sd15, 1.2 of 2.0 GB", or "loading sd15, 40 %"."""
    return sizes.loading(model, done, size)


def starting(progress: ModelProgress | None) -> str:
    """Say that a worker is starting up; empty if none is."""
    if progress is None:
        return ""
    if progress.model is None or progress.phase in ("prepare", "ready"):
        return "A worker is starting."
    if progress.phase == "measure":
        return f"A worker is starting: measuring {progress.model}."
    return f"A worker is starting: {loading(progress.model, progress.done, progress.size)}."


def failed(reason: str, blame: Blame) -> str:
    """Say why a job failed, and who pays for it."""
    return f"{shortened(reason, 400).rstrip('.')}. {BLAMED[blame]}"


def cancelled(step: int, of: int) -> str:
    """Say that a job was cancelled, and what it is charged."""
    if step <= 0:
        return "Cancelled before it began: it costs you nothing."
    return f"Cancelled at step {step} of {of}: only these steps are charged."


def sized(recipe: Recipe, enlargement: int) -> str:
    """Return "64×64, enlarged ×4"."""
    size = f"{recipe.width}×{recipe.height}"
    return size if enlargement == 1 else f"{size}, enlarged ×{enlargement}"


def enlarged(factor: int, width: int, height: int, method: Method) -> str:
    """Say how a single picture was upscaled."""
    if method == "gan":
        return f"Enlarged ×{factor} to {width}×{height} by our super-resolver, which makes up the finer detail."
    return f"Enlarged ×{factor} to {width}×{height} by Lanczos resampling: larger, but with no detail added."

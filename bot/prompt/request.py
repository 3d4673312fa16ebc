"""`Request`: what one prompt asks for; and the recipe that it becomes on a warm model."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bot.prompt.concepts import WORDLESS, balanced
from bot.prompt.emphasis import bare
from bot.prompt.loras import Addition, matched
from bot.prompt.possible import check_possible, interval
from bot.refused import Refused
from bot.sentences import FULL_COURSE, WHOLE
from engine.job import MAX_COUNT, MAX_STEPS, SAMPLER_TITLES, WHOLE_SAMPLERS, Concept, Recipe, Sampler, Warm

if TYPE_CHECKING:
    from collections.abc import Iterator

FAST_STEPS = 30
FAST_SAMPLER: Sampler = "dpmpp_2m"
CHAINS: tuple[Sampler, ...] = ("ddpm", "ddim")  # all of their steps are worth having; other samplers are good in few
FRAMES = 12  # of an interpolation
MAX_RATIO = 4
SIDES = (16, 4096)  # pixels, as `engine.job.Side`
TOKENS_A_WORD = 1.3  # of English, for a word-piece tokenizer; only the engine knows the true number

_PIECE = re.compile(r"\w+|[^\w\s]")


@dataclass(frozen=True)
class Request:
    """One prompt, parsed and in range. None means: the model's default, or for the seed, a random one.

    `concepts` carry the weights as written; `ar` is width : height. `interval` is where guidance begins and ends, as
    fractions of the steps. `loras` are None if none is named, empty to remove them. `text` is the cleaned prompt of
    this job, with its flags; `words` the same without them. `relaxed` is a tier of the queue and changes no pixel.
    `strength` is that of init images, `until` a fraction of the steps, `quality` a factor on the usual ones. `walk` is
    the prompt at the end of an interpolation, empty for none; its `frames` are pictures, in as many jobs as they need.
    """

    concepts: tuple[Concept, ...]
    negative: str = ""
    steps: int | None = None
    seed: int | None = None
    guidance: float | None = None
    interval: tuple[float, float] | None = None
    ar: tuple[int, int] | None = None
    model: str | None = None
    sampler: Sampler | None = None
    loras: tuple[Addition, ...] | None = None
    count: int | None = None
    fast: bool = False
    relaxed: bool = False
    eta: float = 0.0
    strength: float | None = None
    until: float | None = None
    tile: bool = False
    mixed: bool = False
    chaos: float = 0.0
    repeat: int = 1
    quality: float = 1.0
    walk: str = ""
    frames: int = FRAMES
    text: str = ""
    words: str = ""


def recipe(request: Request, warm: Warm, seed: int, *, bucket: int | None = None) -> Recipe:
    """Return everything that decides pixels, frozen. `seed` is used if the request names none.

    Raises `Refused` if the shape does not fit the model, or for what it lacks. Members cannot set `bucket`.
    """
    width, height = fit(request.ar or (1, 1), warm)
    sampler, steps = course(request, warm)
    start, stop = interval(request.interval, (warm.guidance_start, warm.guidance_stop), sampler, warm)
    made = Recipe(
        concepts=balanced(request.concepts),
        negative=request.negative,
        model=warm.name,
        revision=warm.revision,
        sampler=sampler,
        steps=steps,
        eta=request.eta,
        seed=seed if request.seed is None else request.seed,
        guidance=guidance(request, warm.guidance),
        width=width,
        height=height,
        count=MAX_COUNT if request.count is None else request.count,
        dtype=warm.dtype,
        bucket=bucket,
        guidance_start=start,
        guidance_stop=stop,
        guides=warm.guides,
        loras=matched(request.loras or (), warm),
        until=1.0 if request.until is None else request.until,
        tile=request.tile,
        mixed=request.mixed and len(request.concepts) > 1,
        chaos=request.chaos,
    )
    check_possible(made, warm)
    return made


def guidance(request: Request, usual: float) -> float:
    """Return the requested guidance, else the usual; 1 without words, which need no guidance and save a row."""
    if request.concepts == (WORDLESS,):
        return 1.0
    return usual if request.guidance is None else request.guidance


def course(request: Request, warm: Warm) -> tuple[Sampler, int]:
    """Return sampler and steps. A model without the fast sampler, or made for few steps, keeps its own sampler."""
    sampler, steps = warm.sampler, warm.steps
    if request.fast and FAST_SAMPLER in warm.samplers and warm.steps > FAST_STEPS:
        sampler, steps = FAST_SAMPLER, FAST_STEPS
    elif request.fast:
        steps = min(FAST_STEPS, warm.steps)
    return request.sampler or sampler, request.steps or min(MAX_STEPS, max(1, round(steps * request.quality)))


def fit(ar: tuple[int, int], warm: Warm) -> tuple[int, int]:
    """Return width and height in pixels near `ar` and the model's native area, in its multiples and within its pixels.

    Raises `Refused` if no such size exists.
    """
    if ar[0] == ar[1] and not warm.size % warm.multiple and warm.size**2 <= warm.max_pixels:
        return warm.size, warm.size
    ratio = ar[0] / ar[1]
    sizes = [(_misfit(w, h, ratio, warm.size), w, h) for w, h in _sizes(ratio, warm)]
    if not sizes:
        raise Refused(f"{warm.name} cannot draw in the shape --ar {ar[0]}:{ar[1]}.")
    _, width, height = min(sizes)
    return width, height


def _sizes(ratio: float, warm: Warm) -> Iterator[tuple[int, int]]:
    """Yield, for each width in the model's multiples, the height nearest to the ratio."""
    unit = warm.multiple
    least = math.ceil(SIDES[0] / unit) * unit
    for width in range(least, min(SIDES[1], 4 * warm.size) + 1, unit):
        height = max(least, round(width / ratio / unit) * unit)
        if height <= SIDES[1] and width * height <= warm.max_pixels:
            yield width, height


def _misfit(width: int, height: int, ratio: float, size: int) -> float:
    """Return the deviation in shape and area, in octaves: half and double weigh the same. Shape counts twice."""
    return 2 * abs(math.log2(width / height / ratio)) + abs(math.log2(width * height / size**2))


def remarks(request: Request, warm: Warm) -> tuple[str, ...]:
    """Return notes before the job runs: the unmodified pipeline, reduced steps, weak shapes, text that is not read."""
    said: list[str] = []
    sampler, _ = course(request, warm)
    if sampler in WHOLE_SAMPLERS:
        said.append(f"{SAMPLER_TITLES[sampler]}: {WHOLE}")
    if request.steps is None and not request.fast and sampler in CHAINS and warm.steps < MAX_STEPS:
        said.append(f"{warm.steps} steps on this machine; --steps {MAX_STEPS} {FULL_COURSE}")
    if request.ar and request.ar[0] != request.ar[1] and warm.size <= 64:
        said.append(f"{warm.name} was trained on squares of {warm.size} px: other shapes come out weaker.")
    if request.tile and warm.size <= 64:
        said.append(f"{warm.name} draws single things in the middle: as tiles they come out blurred.")
    said += (_cut(bare(part.text), warm, "prompt") for part in request.concepts)
    said.append(_cut(bare(request.negative), warm, "--no text"))
    return tuple(one for one in said if one)


def _cut(text: str, warm: Warm, what: str) -> str:
    """Return a note on where `warm` stops reading, by an estimate; "" if it reads all. Two tokens mark the ends."""
    read = 0.0
    for piece in _PIECE.finditer(text):
        read += TOKENS_A_WORD if piece[0][0].isalnum() else 1.0
        if read > warm.tokens - 2:
            return (
                f"{warm.name} reads about {warm.tokens} tokens, and this {what} is likely longer: "
                f"it may stop near “{_near(text, piece.start())}”."
            )
    return ""


def _near(text: str, place: int) -> str:
    before = text[:place].split()[-3:]
    return " ".join(before)[-60:] + " …"

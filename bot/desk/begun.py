"""Recipes that begin with an init image or at a keyframe instead of noise. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import msgspec

from bot.desk.origin import Origin
from bot.desk.recipes import remixed
from bot.prompt import Request, parse
from bot.prompt.concepts import clean
from bot.prompt.flags import split
from bot.prompt.own import spelt
from bot.prompt.permutations import expand, literally
from bot.prompt.request import MAX_RATIO
from bot.refused import Refused
from engine.job import Branch, Recipe, Warm, of_image, onto, stream

OTHER_COURSE = "A branch continues the sampling of its parent: its {} cannot be changed."
KEPT = ("sampler", "width", "height", "model", "eta")
NONE_LEFT = "Of {} steps none is left from step {} of {} on: take more, or an earlier step."


def shaped(request: Request, start: Origin | None) -> Request:
    """Return the request with the init image's aspect ratio, clamped to the allowed range, unless it has its own."""
    if start is None or request.ar:
        return request
    width, height = start.size
    longest = MAX_RATIO * min(width, height)
    return replace(request, ar=(min(width, longest), min(height, longest)))


def begun(recipe: Recipe, request: Request, start: Origin | None) -> Recipe:
    """Return the recipe with its init images, if there are any."""
    return recipe if start is None else msgspec.structs.replace(recipe, start=start.forward(request.strength))


def unused(request: Request, start: Origin | None) -> tuple[str, ...]:
    """Return a note if a strength is given without an init image."""
    if start is not None or request.strength is None:
        return ()
    return ("--strength and --iw are for a picture to begin with, and there is none.",)


def one_of(recipe: Recipe, image: int) -> Recipe:
    """Return the recipe of one image alone, run to its last step: the same noise stream, the same guidance."""
    one = of_image(recipe, image)
    return msgspec.structs.replace(one, seed=stream(one, image), count=1, chaos=0.0, until=1.0, walk=None)


@dataclass(frozen=True)
class Otherwise:
    """What changes from a keyframe on: a new prompt (with flags) in place of the `old` one, or flags alone.

    `options` as in `bot.prompt.parse`.
    """

    old: str
    text: str | None
    options: Mapping[str, object]

    @property
    def words(self) -> str:
        """The prompt that the new job is shown with."""
        return self.old if self.text is None else " ".join(self.text.split())


def worded(text: str, own: Mapping[str, str]) -> tuple[str, tuple[str, ...]]:
    """Expand a member's flag aliases in a text for one job; with a note on each. Raises `Refused` for several
    permutations.
    """
    if not own:
        return text, ()
    first, *more = expand(clean(text))
    if more:
        raise Refused("One job at a time: leave out the braces.")
    made, notes = spelt(first, own)
    return literally(made), notes


def branched(base: Recipe, ladder: str, step: int, other: Otherwise, warm: Warm, models: Sequence[str] = ()) -> Recipe:
    """Return `base` as a branch from `step` of a ladder (by SHA-256). Raises `Refused` for changes that sampling rules
    out.

    Without changes it gives the same picture. A seed, or several pictures, also draw the noise at that keyframe anew.
    Another number of steps is that of the whole schedule: the rest is run in its share of them.
    """
    made, fresh = base, False
    if other.text is not None or other.options:
        request = _request(other, base, models)
        made, fresh = remixed(base, request, warm), request.seed is not None
        if other.text is None:  # a frame of an interpolation has a prompt that nobody typed
            made = msgspec.structs.replace(made, concepts=base.concepts, mixed=base.mixed)
    for name in KEPT:
        if getattr(made, name) != getattr(base, name):
            raise Refused(OTHER_COURSE.format({"width": "shape", "height": "shape"}.get(name, name)))
    start = _left(step, base.steps, made.steps, Branch(ladder=ladder, step=step, fresh=fresh or made.count > 1))
    return msgspec.structs.replace(made, start=start, lineage=() if fresh else base.lineage)


def _left(step: int, of: int, steps: int, start: Branch) -> Branch:
    """Move the branch point into a schedule of `steps` steps. Raises `Refused` if none remains after it."""
    if steps == of:
        return start
    first = onto(step, of, steps)
    if first >= steps:
        raise Refused(NONE_LEFT.format(steps, step, of))
    return msgspec.structs.replace(start, step=first, rung=step)


def _request(other: Otherwise, base: Recipe, models: Sequence[str]) -> Request:
    """Parse one request; flags in the old prompt no longer count."""
    old = other.text is None
    words = literally(split(other.old)[0]) if other.text is None else other.text
    options = {"negative": base.negative, **other.options}
    return single(words, options, models, "branch", wordless=old)


def single(
    text: str, options: Mapping[str, object], models: Sequence[str], what: str, *, wordless: bool = False
) -> Request:  # fmt: skip
    """Parse a text for one job. Raises `Refused` for several."""
    first, *more = parse(text, None, models=models, options=options, wordless=wordless).requests
    if more:
        raise Refused(f"One {what} at a time: leave out the braces and --repeat.")
    return first


def nearest_said(at: int, step: int) -> tuple[str, ...]:
    """Return a note if the branch point is not the requested step."""
    return () if at == step else (f"Branched at step {at}: the nearest to {step} that keeps its latents.",)

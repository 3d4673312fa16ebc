"""A recipe that begins with something else than noise: pictures that were brought, or a rung of a ladder. Pure.

Knows requests, recipes and origins; knows nothing of who asks or where pictures lie.
"""

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

OTHER_COURSE = "A branch goes on in the course that it leaves: its {} cannot be changed."
KEPT = ("sampler", "width", "height", "model", "eta")
NONE_LEFT = "Of {} steps none is left from step {} of {} on: take more, or an earlier step."


def shaped(request: Request, start: Origin | None) -> Request:
    """Without a shape of its own, the request takes the pictures', as far as a picture may be long."""
    if start is None or request.ar:
        return request
    width, height = start.size
    longest = MAX_RATIO * min(width, height)
    return replace(request, ar=(min(width, longest), min(height, longest)))


def begun(recipe: Recipe, request: Request, start: Origin | None) -> Recipe:
    """The recipe with the pictures that it begins with, if it does."""
    return recipe if start is None else msgspec.structs.replace(recipe, start=start.forward(request.strength))


def unused(request: Request, start: Origin | None) -> tuple[str, ...]:
    """What is said of a strength where there is nothing to keep."""
    if start is not None or request.strength is None:
        return ()
    return ("--strength and --iw are about a picture that you bring, and there is none.",)


def one_of(recipe: Recipe, image: int) -> Recipe:
    """The recipe of one of its images alone, to its end: the same noise stream, the same guidance."""
    one = of_image(recipe, image)
    return msgspec.structs.replace(one, seed=stream(one, image), count=1, chaos=0.0, until=1.0, walk=None)


@dataclass(frozen=True)
class Otherwise:
    """What shall be other from a rung on: words (with flags) in place of the `old` ones, or flags alone.

    `options` as `bot.prompt.parse` has them.
    """

    old: str
    text: str | None
    options: Mapping[str, object]

    @property
    def words(self) -> str:
        """What the new job is called by."""
        return self.old if self.text is None else " ".join(self.text.split())


def worded(text: str, own: Mapping[str, str]) -> tuple[str, tuple[str, ...]]:
    """A text that asks for one job with what the member's own options stand for, and a note on each. Raises `Refused`
    for braces that make several.
    """
    if not own:
        return text, ()
    first, *more = expand(clean(text))
    if more:
        raise Refused("One job at a time: leave out the braces.")
    made, notes = spelt(first, own)
    return literally(made), notes


def branched(base: Recipe, ladder: str, step: int, other: Otherwise, warm: Warm, models: Sequence[str] = ()) -> Recipe:
    """`base` from that step of its ladder (by its SHA-256) on. Raises `Refused` for another course.

    With nothing other it is the same picture. A seed, or several pictures, also draw the noise at that rung anew.
    Another number of steps is that of the whole course: what is left is run in its share of them.
    """
    made, fresh = base, False
    if other.text is not None or other.options:
        request = _request(other, base, models)
        made, fresh = remixed(base, request, warm), request.seed is not None
        if other.text is None:  # a station of a walk has words that nobody typed
            made = msgspec.structs.replace(made, concepts=base.concepts, mixed=base.mixed)
    for name in KEPT:
        if getattr(made, name) != getattr(base, name):
            raise Refused(OTHER_COURSE.format({"width": "shape", "height": "shape"}.get(name, name)))
    start = _left(step, base.steps, made.steps, Branch(ladder=ladder, step=step, fresh=fresh or made.count > 1))
    return msgspec.structs.replace(made, start=start, lineage=() if fresh else base.lineage)


def _left(step: int, of: int, steps: int, start: Branch) -> Branch:
    """The same branch in a course of so many steps. Raises `Refused` where none of them is left."""
    if steps == of:
        return start
    first = onto(step, of, steps)
    if first >= steps:
        raise Refused(NONE_LEFT.format(steps, step, of))
    return msgspec.structs.replace(start, step=first, rung=step)


def _request(other: Otherwise, base: Recipe, models: Sequence[str]) -> Request:
    """One request; the flags that stood beside the old words count no more."""
    old = other.text is None
    words = literally(split(other.old)[0]) if other.text is None else other.text
    options = {"negative": base.negative, **other.options}
    return single(words, options, models, "branch", wordless=old)


def single(
    text: str, options: Mapping[str, object], models: Sequence[str], what: str, *, wordless: bool = False
) -> Request:  # fmt: skip
    """A text that asks for one job. Raises `Refused` for several."""
    first, *more = parse(text, None, models=models, options=options, wordless=wordless).requests
    if more:
        raise Refused(f"One {what} at a time: leave out the braces and --repeat.")
    return first


def nearest_said(at: int, step: int) -> tuple[str, ...]:
    """A note, where the rung is not the step that was asked for."""
    return () if at == step else (f"Branched at step {at}: the nearest to {step} that keeps its latents.",)

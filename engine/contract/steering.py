"""What changes of members mean at each step of a recipe, and why a change cannot be."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import msgspec

from engine.contract.evaluations import find_next_evaluation
from engine.contract.fields import FULL_INTERVAL, MAX_AMENDMENTS, MAX_CONCEPTS, MAX_STEPS
from engine.contract.messages import Snapshot
from engine.contract.recipe import (
    Amendment,
    Change,
    Concept,
    DropImages,
    Recipe,
    SetConcepts,
    SetGuidance,
    SetNegative,
    SplitImage,
)
from engine.contract.recipe_images import keep_style


@dataclass(frozen=True)
class ImageLife:
    """One image between two steps: it begins before `first_step`, and is dropped before `drop_step`, if ever.

    `parent` and `seed` are set if a split made it: the life that it left, and the split's seed.
    """

    image: int
    first_step: int
    drop_step: int | None = None
    parent: ImageLife | None = None
    seed: int | None = None

    @property
    def key(self) -> tuple[int, int]:
        """What tells it from all other lives of its job."""
        return self.image, self.first_step

    def is_alive(self, step: int) -> bool:
        """Whether step `step` is run for it."""
        return self.first_step <= step and (self.drop_step is None or step < self.drop_step)

    @property
    def origin(self) -> ImageLife:
        """The life that began with the job, which this one left by splits; or this one."""
        return self if self.parent is None else self.parent.origin

    def give_noise(self, recipe: Recipe) -> Recipe:
        """Return the recipe with the noise of this life, and with the style of the image that it left first."""
        if self.seed is None:
            return recipe
        return msgspec.structs.replace(keep_style(recipe, self.origin.image), seed=self.seed, lineage=())

    def is_unborn(self, step: int) -> bool:
        """Whether a split has yet to make it before step `step` is run."""
        return self.parent is not None and step < self.first_step


@dataclass(frozen=True)
class StepSegment:
    """Steps in which nothing changes: their recipe without amendments, and how many images develop."""

    first_step: int
    end_step: int
    recipe: Recipe
    image_count: int


def recipe_at_step(recipe: Recipe, step: int) -> Recipe:
    """Return the recipe of one step, without amendments: its prompt and guidance as amended until then."""
    return Timeline(recipe).advance(step)


def list_followed_changes(recipe: Recipe, step: int) -> tuple[tuple[int, int], ...]:
    """Return the number and the step of each change that the steps before `step` followed."""
    return tuple((each.number, each.step) for each in recipe.amendments if each.step < step)


def is_snapshot_of_recipe(snapshot: Snapshot, recipe: Recipe) -> bool:
    """Whether the steps of a snapshot followed just the changes that the recipe has for them.

    A repeated message may bring a job as it had been before its changes, to a worker that no longer finds them.
    """
    return snapshot.followed_changes == list_followed_changes(recipe, snapshot.next_step)


def recipe_at_end(recipe: Recipe) -> Recipe:
    """Return the recipe without amendments, with the texts and guidance of its last step: what all images end with."""
    return recipe_at_step(recipe, recipe.end_step - 1) if recipe.amendments else recipe


def settle_fades(recipe: Recipe) -> Recipe:
    """Return the recipe without amendments, with what holds once all are made, even a fade that goes beyond the end."""
    return recipe_at_step(recipe, 2 * MAX_STEPS) if recipe.amendments else recipe


def iterate_states(recipe: Recipe, first_step: int, end_step: int) -> Iterator[tuple[int, Recipe]]:
    """Yield each step with its recipe, without amendments. It is the same object while nothing changes."""
    timeline = Timeline(recipe)
    for step in range(first_step, end_step):
        yield step, timeline.advance(step)


def iterate_segments(recipe: Recipe) -> Iterator[StepSegment]:
    """Yield the steps that run, as segments in which neither the recipe nor the number of images changes."""
    if not recipe.amendments:
        yield StepSegment(recipe.first_step, recipe.end_step, recipe, recipe.drawn_count)
        return
    timeline = Timeline(recipe)
    lives = list_lives(recipe)
    edges = [step for step in _list_edges(recipe, lives) if recipe.first_step < step < recipe.end_step]
    for step, end_step in pairwise([recipe.first_step, *edges, recipe.end_step]):
        yield StepSegment(step, end_step, timeline.advance(step), sum(life.is_alive(step) for life in lives))


def _list_edges(recipe: Recipe, lives: Sequence[ImageLife]) -> list[int]:
    """Return the steps from which on something is different, in order; a fade is different at each of its steps."""
    edges = {step for life in lives for step in (life.first_step, life.drop_step) if step is not None}
    for amendment in recipe.amendments:
        fade_steps = amendment.change.fade_steps if isinstance(amendment.change, SetConcepts) else 0
        edges.update(range(amendment.step, amendment.step + max(1, fade_steps)))
    return sorted(edges)


class Timeline:
    """Applies amendments in order. `advance` must be called with steps that do not fall."""

    def __init__(self, recipe: Recipe) -> None:
        # The version rises again to what the rest needs.
        self._state = msgspec.structs.replace(recipe, amendments=(), v=1) if recipe.amendments else recipe
        self._waiting = list(recipe.amendments)
        self._fade: _Fade | None = None

    def advance(self, step: int) -> Recipe:
        """Return the recipe of a step, without amendments: the same object while nothing changes."""
        while self._waiting and self._waiting[0].step <= step:
            self._apply(self._waiting.pop(0))
        if self._fade is not None:
            self._set_concepts(self._fade.concepts_at(step), self._fade.mixed)
            if step >= self._fade.last_step:
                self._fade = None
        return self._state

    @property
    def faded_concepts(self) -> tuple[Concept, ...]:
        """The concepts that the present fade goes away from."""
        return () if self._fade is None else self._fade.old

    def _apply(self, amendment: Amendment) -> None:
        change = amendment.change
        match change:
            case SetConcepts():
                self._begin_fade(change, amendment.step)
            case SetNegative():
                self._state = msgspec.structs.replace(self._state, negative=change.negative)
            case SetGuidance():
                self._state = msgspec.structs.replace(
                    self._state, guidance=change.guidance, guidance_start=change.start, guidance_stop=change.stop
                )
            case DropImages() | SplitImage():
                pass

    def _begin_fade(self, change: SetConcepts, step: int) -> None:
        """Begin where an earlier fade has come to in the step before."""
        old = self._state.concepts
        if self._fade is not None:
            old = self._fade.concepts_at(min(step - 1, self._fade.last_step))
        self._fade = _Fade(old, change.concepts, change.mixed, step, step + max(1, change.fade_steps) - 1)

    def _set_concepts(self, concepts: tuple[Concept, ...], mixed: bool) -> None:
        if (concepts, mixed) != (self._state.concepts, self._state.mixed):
            self._state = msgspec.structs.replace(self._state, concepts=concepts, mixed=mixed and len(concepts) > 1)


@dataclass(frozen=True)
class _Fade:
    """The way from some concepts to others; at `last_step` they are reached."""

    old: tuple[Concept, ...]
    new: tuple[Concept, ...]
    mixed: bool
    first_step: int
    last_step: int

    def concepts_at(self, step: int) -> tuple[Concept, ...]:
        """Return the concepts of a step; before the first one, the old ones."""
        if step < self.first_step:
            return self.old
        if step >= self.last_step:
            return self.new
        share = (step - self.first_step + 1) / (self.last_step - self.first_step + 1)
        old = _sum_weights(self.old)
        new = _sum_weights(self.new)
        faded = (
            Concept(text, (1 - share) * old.get(text, 0.0) + share * new.get(text, 0.0)) for text in {**new, **old}
        )
        return tuple(concept for concept in faded if concept.weight) or self.new


def _sum_weights(concepts: Sequence[Concept]) -> dict[str, float]:
    weights: dict[str, float] = {}
    for concept in concepts:
        weights[concept.text] = weights.get(concept.text, 0.0) + concept.weight
    return weights


def list_lives(recipe: Recipe) -> tuple[ImageLife, ...]:
    """Return every image that ever develops, in the order of their beginnings."""
    lives = [ImageLife(image, recipe.first_step) for image in range(recipe.drawn_count)]
    for amendment in recipe.amendments:
        change = amendment.change
        step = amendment.step
        if isinstance(change, DropImages):
            lives = [
                _drop(life, change, step, lives)
                for life in lives
                if life.image not in change.images or not life.is_unborn(step)
            ]
        elif isinstance(change, SplitImage) and (parent := _find_parent(lives, change, step)) is not None:
            first_step = find_next_evaluation(recipe, step)
            lives += [ImageLife(place, first_step, parent=parent, seed=change.seed) for place in change.places]
    return tuple(lives)


def _find_parent(lives: Sequence[ImageLife], change: SplitImage, step: int) -> ImageLife | None:
    """Return the life that new images leave. One that has yet to begin has no x0 but that of the image it leaves."""
    life = next((life for life in lives if life.image == change.image and life.drop_step is None), None)
    return life.parent if life is not None and life.is_unborn(step) else life


def _drop(life: ImageLife, change: DropImages, step: int, lives: Sequence[ImageLife]) -> ImageLife:
    """Return the life as dropped, if it is; a split that waits for the next step comes first."""
    if life.drop_step is not None or life.image not in change.images:
        return life
    splits = [each.first_step for each in lives if each.parent is not None and each.parent.key == life.key]
    return replace(life, drop_step=max(step, life.first_step, *splits))


def list_needed_lives(recipe: Recipe) -> tuple[ImageLife, ...]:
    """Return the lives that the finished pictures need: those that nobody drops, and those that these leave."""
    lives = list_lives(recipe)
    needed = set[tuple[int, int]]()
    for life in lives:
        ancestor: ImageLife | None = life if life.drop_step is None else None
        while ancestor is not None:
            needed.add(ancestor.key)
            ancestor = ancestor.parent
    return tuple(life for life in lives if life.key in needed)


def list_final_images(recipe: Recipe) -> tuple[int, ...]:
    """Return the images of which pictures are made."""
    if not any(isinstance(amendment.change, DropImages | SplitImage) for amendment in recipe.amendments):
        return tuple(range(recipe.count))
    return tuple(sorted(life.image for life in list_lives(recipe) if life.drop_step is None))


def count_ending_images(recipe: Recipe) -> int:
    """Return how many images are drawn to the end: all candidates, else those of which pictures are made."""
    return recipe.drawn_count if recipe.needs_choice else len(list_final_images(recipe))


def find_life(recipe: Recipe, image: int, step: int | None = None) -> ImageLife | None:
    """Return the life of an image's finished picture, or of the image at a step; None if there is none."""
    lives = (life for life in list_lives(recipe) if life.image == image)
    return next((life for life in lives if (life.drop_step is None if step is None else life.is_alive(step))), None)


def find_ancestor(recipe: Recipe, image: int, step: int) -> ImageLife | None:
    """Return what became an image's finished picture, as it was at a step: its own life, or one that splits left."""
    life = find_life(recipe, image)
    while life is not None and life.parent is not None and step < life.first_step:
        life = life.parent
    return life


def settle_amendments(recipe: Recipe, image: int, step: int | None = None) -> Recipe:
    """Return the recipe of one image without amendments: as it is at its end, or at a step.

    Its texts and guidance are those of that step in all steps, and its noise is the image's own. So it is another
    picture than the amended one, but what a variation, a branch from that step, or a new seed goes on from.
    """
    if not recipe.amendments:
        return recipe
    state = recipe_at_step(recipe, recipe.end_step - 1 if step is None else step)
    life = find_life(recipe, image, step)
    return state if life is None else life.give_noise(state)


TOO_MANY = f"This picture has been changed {MAX_AMENDMENTS} times, which is the most."
TOO_LATE = "This picture is as good as finished."
A_WALK = "The pictures of a walk cannot be steered."
NETWORK_INTERVAL = "This model has guidance built into its network, so it holds at every step."
CANDIDATES = "Its pictures are chosen among candidates at the end, so none can be dropped or split now."


def find_amendment_problem(recipe: Recipe, amendment: Amendment) -> str:
    """Return why the recipe cannot be amended so, as one sentence; empty if it can."""
    if len(recipe.amendments) >= MAX_AMENDMENTS:
        return TOO_MANY
    if amendment.step >= recipe.end_step - 1:
        return TOO_LATE
    if recipe.interpolation is not None:
        return A_WALK
    if any(later.step > amendment.step or later.number >= amendment.number for later in recipe.amendments):
        return "An amendment cannot come before an earlier one."
    return _find_change_problem(recipe, amendment)


def find_amendments_problem(recipe: Recipe) -> str:
    """Return why a recipe's amendments contradict it or each other, as one sentence; empty if they do not."""
    checked = msgspec.structs.replace(recipe, amendments=())
    for amendment in recipe.amendments:
        if problem := find_amendment_problem(checked, amendment):
            return problem
        checked = msgspec.structs.replace(checked, amendments=(*checked.amendments, amendment))
    return ""


def _find_change_problem(recipe: Recipe, amendment: Amendment) -> str:
    change: Change = amendment.change
    match change:
        case SetConcepts():
            old_concepts = _list_faded_concepts(recipe, amendment) if change.fade_steps > 1 else ()
            return _find_prompt_problem(old_concepts, change)
        case SetNegative():
            return ""
        case SetGuidance():
            if recipe.guidance_kind == "network" and (change.start, change.stop) != FULL_INTERVAL:
                return NETWORK_INTERVAL
            return "Guidance cannot stop before it starts." if change.start > change.stop else ""
        case DropImages() | SplitImage():
            return _find_image_problem(recipe, change)


def _list_faded_concepts(recipe: Recipe, amendment: Amendment) -> tuple[Concept, ...]:
    """Return the concepts that a change of the prompt fades from; an earlier fade may have come half-way."""
    timeline = Timeline(msgspec.structs.replace(recipe, amendments=(*recipe.amendments, amendment)))
    timeline.advance(amendment.step)
    return timeline.faded_concepts


def _find_prompt_problem(old_concepts: Sequence[Concept], change: SetConcepts) -> str:
    concepts = (*old_concepts, *change.concepts)
    if change.mixed and any(concept.weight <= 0 for concept in concepts):
        return "Every concept of a mixed prompt needs a weight above 0."
    if len({concept.text for concept in concepts}) > MAX_CONCEPTS:
        return f"Old and new prompt together have more than {MAX_CONCEPTS} parts."
    if all(concept.weight == 0 for concept in change.concepts):
        return "A prompt needs a part with a weight other than 0."
    return ""


def _find_image_problem(recipe: Recipe, change: DropImages | SplitImage) -> str:
    if recipe.candidate_count or recipe.chosen_candidates:
        return CANDIDATES
    alive = set(list_final_images(recipe))
    for image in change.images if isinstance(change, DropImages) else (change.image,):
        if image not in alive:
            return f"Image {image + 1} is not developing."
    if isinstance(change, DropImages):
        return "" if alive - set(change.images) else "One image has to stay."
    if len(set(change.places)) < len(change.places) or alive & set(change.places):
        return "An image can be split only into free places."
    return ""

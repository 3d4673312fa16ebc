"""Changes a running job's images: from which step on, whether it can be, and what each image does then."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from engine.batching.fault_isolation import reject_before_start
from engine.batching.pipeline_images import PipelineImage
from engine.batching.trajectory import Trajectory
from engine.contract import (
    Amendment,
    AmendmentRequest,
    Change,
    JobRejected,
    Recipe,
    SetConcepts,
    SetGuidance,
    SetNegative,
    find_amendment_problem,
    list_lives,
    needs_unconditional_row,
    recipe_at_end,
    recipe_at_step,
    recipe_for_image,
    settle_fades,
)
from engine.models.families.picture_editing import is_edit
from engine.models.family import Family

CANNOT_STEER = "This sampler runs in the model's unmodified pipeline, which cannot be steered: choose another one."
ENDS_ALREADY = "A picture of this job is finished already."


def amend_images(
    images: Sequence[Trajectory | PipelineImage], families: Mapping[str, Family], request: AmendmentRequest
) -> Recipe:
    """Change a job's images from the next step on that none of them has run, and return its amended recipe.

    Raises `JobRejected`, and then changes nothing.
    """
    trajectories = [image for image in images if isinstance(image, Trajectory)]
    if not trajectories:
        raise JobRejected(CANNOT_STEER, "member")
    recipe = _amend_recipe(trajectories, request)
    try:
        inputs = [image.prepare_amendment(recipe) for image in trajectories]
    except JobRejected:
        raise
    except Exception as error:
        raise reject_before_start(error, families[trajectories[0].model].device) from error
    for image, inputs_of_image in zip(trajectories, inputs, strict=True):
        image.amend(recipe, inputs_of_image)
    return recipe


def _amend_recipe(images: Sequence[Trajectory], request: AmendmentRequest) -> Recipe:
    """Return the job's recipe with the change, from the step on that no image has run. Raises `JobRejected`."""
    recipe = images[0].job_recipe
    _check_unfinished(images, recipe)
    step = max([image.k for image in images] + [amendment.step for amendment in recipe.amendments[-1:]])
    amendment = Amendment(request.number, step, request.change)
    if problem := find_amendment_problem(recipe, amendment):
        raise JobRejected(problem, "member")
    return msgspec.structs.replace(recipe, amendments=(*recipe.amendments, amendment))


def _check_unfinished(images: Sequence[Trajectory], recipe: Recipe) -> None:
    """Refuse a change once an image has left the engine: drawn anew, it would be another."""
    steps = {image.life.key: image.k for image in images}
    for life in list_lives(recipe):
        has_begun = life.parent is None or steps.get(life.parent.key, life.first_step) >= life.first_step
        if has_begun and life.drop_step is None and life.key not in steps:
            raise JobRejected(ENDS_ALREADY, "member")


def has_new_texts(recipe: Recipe, change: Change) -> bool:
    """Return whether a change may need a text that the recipe needs not; guidance may begin to need the negative."""
    if isinstance(change, SetGuidance):
        return not needs_unconditional_row(recipe_at_end(recipe))
    return isinstance(change, SetConcepts | SetNegative)


def encode_change(recipe: Recipe, change: Change, family: Family) -> None:
    """Encode a change's texts, on any thread, so that the family has them when the engine asks."""
    if is_edit(recipe, family):  # then the encoder reads the picture, too, which the engine has
        return
    step = recipe.amendments[-1].step if recipe.amendments else recipe.first_step
    amended = msgspec.structs.replace(recipe, amendments=(*recipe.amendments, Amendment(1, step, change)))
    for state in (recipe_at_step(amended, step), settle_fades(amended)):  # a fade ends without its old texts
        _encode_texts(state, family)


def _encode_texts(state: Recipe, family: Family) -> None:
    """Encode all texts of a step. The longest of them decides the shape of each."""
    for image_recipe in dict.fromkeys(recipe_for_image(state, image) for image in range(state.drawn_count)):
        for concept in image_recipe.concepts:
            family.encode_conditioning(concept.text, image_recipe)
        if needs_unconditional_row(image_recipe):
            family.encode_conditioning(image_recipe.negative, image_recipe, negative=True)

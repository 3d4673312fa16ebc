"""Decides whether a job can be steered, by what it is and who draws it; one sentence if not. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from bot.domain.errors import UserError
from bot.domain.job_states import is_end
from bot.prompt.capability_check import check_capabilities, check_features
from bot.services.steering.requested_changes import RequestedChange
from bot.store import JobRecord
from bot.store.transitions.amendments import MAX_REQUESTS, AmendmentRecord
from engine.contract import PIPELINE_SAMPLERS, ModelProfile, Presence, Recipe, settle_fades

AN_UPSCALE = "An upscale is done in one go, so it cannot be steered."
CANCELLING = "It is being cancelled."
WHOLE_PIPELINE = (
    "The sampler {} runs in the model's unmodified pipeline, which cannot be steered: choose another one next time."
)
TOO_MANY_REQUESTS = f"{MAX_REQUESTS} changes were asked for of this picture, which is the most."


def require_steerable(record: JobRecord, workers: Mapping[str, Presence]) -> Recipe:
    """Return the job's recipe. Raises `UserError` if it cannot be steered now, whatever the change is."""
    if not isinstance(record.task, Recipe):
        raise UserError(AN_UPSCALE)
    if is_end(record.state):
        raise UserError(f"Too late: it has {record.state} already.")
    if record.cancelling:
        raise UserError(CANCELLING)
    if record.task.sampler in PIPELINE_SAMPLERS:
        raise UserError(WHOLE_PIPELINE.format(record.task.sampler))
    return record.task


def presume_recipe(recipe: Recipe, known: Sequence[AmendmentRecord], step: int) -> Recipe:
    """Return the recipe as if every waiting change held from `step` on, in the order of their numbers."""
    known_numbers = {each.number for each in known}  # the others were in the recipe before: it reproduces a steered job
    amendments = [each for each in recipe.amendments if each.number not in known_numbers]
    accepted = [each for each in known if each.state != "refused"]
    if len(known) >= MAX_REQUESTS:
        raise UserError(TOO_MANY_REQUESTS)
    for index, each in enumerate(accepted):
        earliest = amendments[-1].step if amendments else 0
        later_steps = [later.step for later in accepted[index:] if later.step is not None]
        amendments.append(each.to_amendment(min([max(earliest, step), *later_steps])))
    return msgspec.structs.replace(recipe, amendments=tuple(amendments))


def check_changes(changes: Sequence[RequestedChange], model: ModelProfile) -> None:
    """Raise `UserError` if the model cannot do what a recipe asks for once it is changed."""
    recipe = changes[-1].recipe
    if "amendments" in model.lacks:
        check_features(recipe, model)
    check_capabilities(settle_fades(recipe), model)

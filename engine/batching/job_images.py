"""Turns a job into its images (`Trajectory` or `PipelineImage`), and changes those that run.

What cannot be raises `JobRejected` with a sentence.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from types import MappingProxyType

import msgspec

from engine.batching.fault_isolation import reject_before_start
from engine.batching.input_pictures import InitLatents, check_pictures
from engine.batching.pipeline_images import PipelineImage, PipelineSource
from engine.batching.trajectory import Trajectory, restore_images
from engine.contract import (
    FULL_INTERVAL,
    Amendment,
    AmendmentRequest,
    Branch,
    Change,
    ImageToImage,
    Job,
    JobRejected,
    ModelProfile,
    Quantization,
    Recipe,
    SetConcepts,
    SetGuidance,
    SetNegative,
    Snapshot,
    Task,
    find_amendment_problem,
    find_amendments_problem,
    find_borders,
    find_missing_part,
    list_evaluated_steps,
    list_lives,
    list_needed_lives,
    needs_unconditional_row,
    recipe_at_end,
    recipe_at_step,
    recipe_for_image,
    settle_fades,
)
from engine.models.families.picture_editing import EditsPictures, is_edit
from engine.models.family import (
    Family,
    HasSingleFormat,
    SkipsTextLayers,
    TakesEmbeddings,
    TakesLoras,
    TakesPictures,
    find_judge,
    with_autoencoder,
)
from engine.models.picture_conditions import PictureConditions
from engine.models.quantization import find_quantization
from engine.pipelines.network_call import refuse_unsupported_recipe
from engine.sampling import NotTabled, Plan, compose

log = logging.getLogger(__name__)


def build_images(
    job: Job,
    families: Mapping[str, Family],
    snapshots: Sequence[Snapshot] = (),
    row_ms_by_model: Mapping[str, float] = MappingProxyType({}),
    init_latents: InitLatents | None = None,
    forward_times: Mapping[str, Mapping[int, float]] = MappingProxyType({}),
    pictures: PictureConditions = (),
) -> Sequence[Trajectory] | Sequence[PipelineImage]:
    """Return one image per picture of the job, text encoded, at its first step or restored from its snapshot.

    If the sampler has no table, the images run through the model's whole pipeline, from the start. By model name:
    `row_ms_by_model`, milliseconds a row-step at the native size, 1 for unknown models; `forward_times`, milliseconds
    of a forward by rows. `init_latents`: what replaces the initial noise (`load_init_latents`). `pictures`: beside the
    prompt (`load_pictures`). Raises `JobRejected`; raises `DeviceLost` if the device no longer computes.
    """
    recipe, family = _check_recipe(job, families)

    def build() -> Sequence[Trajectory] | Sequence[PipelineImage]:
        images = _build_images(job, recipe, family, init_latents, pictures)
        for image in images:
            image.row_ms = row_ms_by_model.get(recipe.model, 1.0) * recipe.width * recipe.height / family.size**2
            if image.bucket is None:  # a pinned forward costs its whole bucket, padding included
                image.forward_times = forward_times.get(recipe.model, {})
        return images

    try:
        images = build()
    except JobRejected:
        raise
    except Exception as error:
        raise reject_before_start(error, family.device) from error
    trajectories = [image for image in images if isinstance(image, Trajectory)]
    if not trajectories:
        return images
    return restore_images(
        trajectories, snapshots, lambda: [image for image in build() if isinstance(image, Trajectory)]
    )


def _build_images(
    job: Job, recipe: Recipe, family: Family, init_latents: InitLatents | None, pictures: PictureConditions
) -> Sequence[Trajectory] | Sequence[PipelineImage]:
    """Return the images with their conditioning; this loads the recipe's LoRAs."""
    if recipe.loras:
        recipe = _with_loras(recipe, family)
    recipe = with_embeddings(recipe, family)
    plan = _find_plan(recipe, family)
    if plan is None:
        return _build_pipeline_images(job, recipe, family)
    plan = _plan_from_start(plan, recipe, init_latents)
    if isinstance(family, TakesPictures) and family.needs_pictures(recipe) and not pictures:
        raise JobRejected("The control or reference pictures of this picture did not reach the engine.", "us")
    lives = list_needed_lives(recipe)
    return [
        Trajectory(job, recipe, life, plan, family, init_latents, pictures) for life in lives if life.parent is None
    ]


def _plan_from_start(plan: Plan, recipe: Recipe, init_latents: InitLatents | None) -> Plan:
    """Return the plan from the recipe's first step on.

    A branch continues the noise count and the history of its keyframe, unless the number of steps changed.
    """
    start = recipe.start
    if start is not None and init_latents is None:
        raise JobRejected("The init image or keyframe of this picture did not reach the engine.", "us")
    if init_latents is None or not isinstance(start, Branch):
        return plan.starting_at(recipe.first_step)
    is_led_here = start.ladder_step is None and not (start.has_new_noise and plan.is_composed)
    plan = plan if is_led_here else plan.without_history(start.step)
    return plan.with_draw_count(start.step, init_latents.draw_count)


def check_job(job: Job, families: Mapping[str, Family]) -> None:
    """Raise `JobRejected` where `build_images` would, as far as that shows before images and text are encoded.

    It may run on any thread.
    """
    recipe, family = _check_recipe(job, families)
    if _find_plan(recipe, family) is None:
        refuse_unsupported_recipe(recipe)


def reason_to_decline(task: Task, models: Sequence[ModelProfile]) -> str:
    """Return why a worker that offers these models cannot take the task, as one sentence; empty if it may.

    Every worker can upscale, whatever its models. If no models are known, `build_images` decides later.
    """
    if not isinstance(task, Recipe) or not models:
        return ""
    profile = next((model for model in models if model.name == task.model), None)
    mismatch = _model_mismatch(task, profile and _OfferedModel(profile.revision, profile.quantization))
    return mismatch or (describe_missing_part(task, profile) if profile else "")


def prepare_plan(job: Job, families: Mapping[str, Family]) -> None:
    """Find the sampler's table, which takes up to a second, so that `build_images` does not delay other jobs.

    It may run on any thread. A large model that is in memory in another number format is loaded again in the recipe's.
    The recipe's autoencoder is loaded.
    """
    recipe = job.task
    if isinstance(recipe, Recipe) and (family := families.get(recipe.model)) is not None:
        with suppress(ValueError, JobRejected):  # `build_images` reports it
            if isinstance(family, HasSingleFormat) and family.is_single_format:
                family.get_network(recipe.dtype)
            with_autoencoder(family, recipe)
            _find_plan(recipe, family)
            if isinstance(family, TakesPictures) and family.needs_pictures(recipe):
                family.load_picture_networks(recipe)


def _check_recipe(job: Job, families: Mapping[str, Family]) -> tuple[Recipe, Family]:
    if not isinstance(job.task, Recipe):
        raise JobRejected("This job has no recipe for a picture.", "us")
    family = _find_family(job.task, families)
    _check_size(job.task, family)
    _check_steps(job.task)
    _check_candidates(job.task, family)
    check_parts(job.task, family)
    check_pictures(job.task, family)
    _check_edit(job.task, family)
    return job.task, family


def _check_edit(recipe: Recipe, family: Family) -> None:
    """Refuse an edit that tiles, and anything but an edit where the model does nothing else."""
    if recipe.tile and is_edit(recipe, family):
        raise JobRejected("A picture that is edited by words does not tile.", "member")
    if not isinstance(family, EditsPictures) or not family.needs_picture:
        return
    start = recipe.start
    if not isinstance(start, ImageToImage):
        raise JobRejected(f"{family.name} edits a picture by words: give it one.", "member")
    if not start.has_whole_pictures:
        raise JobRejected(f"{family.name} edits a picture as it is: no mask or strength.", "member")
    if len(start.pictures) > (most := family.max_edit_pictures):
        limit = "one picture at a time" if most == 1 else f"at most {most} pictures at once"
        raise JobRejected(f"{family.name} edits {limit}, and these are {len(start.pictures)}.", "member")


def _check_candidates(recipe: Recipe, family: Family) -> None:
    if recipe.needs_choice and find_judge(family) is None:
        raise JobRejected(f"{family.name} has no judge that could choose the best pictures.", "worker")
    if recipe.chosen_candidates and len(recipe.chosen_candidates) != recipe.count:
        raise JobRejected("This recipe chooses more or fewer pictures than it shows.", "us")


def _check_steps(recipe: Recipe) -> None:
    first_step = recipe.first_step
    end_step = recipe.end_step
    if first_step >= end_step:
        raise JobRejected(f"The picture would end after step {end_step}, but begin after step {first_step}.", "member")
    if recipe.amendments and (problem := find_amendments_problem(recipe)):
        raise JobRejected(problem, "member")
    if recipe.mixed and any(concept.weight <= 0 for concept in recipe.concepts):
        raise JobRejected("Every concept of a mixed prompt needs a weight above 0.", "member")
    interpolation = recipe.interpolation
    if interpolation is None:
        return
    if (
        interpolation.end_prompt is not None and len(recipe.concepts) > 1
    ) or interpolation.first + recipe.count > interpolation.total_frames:
        raise JobRejected("A walk goes from one text to another, and not beyond its end.", "us")
    if interpolation.noises and recipe.lineage:
        raise JobRejected("A walk between noises begins with no variation.", "us")
    if interpolation.noises and len(recipe.styles) > 1 and len(recipe.concepts) > 1:
        raise JobRejected("A walk between styles has one text.", "us")


def _find_family(recipe: Recipe, families: Mapping[str, Family]) -> Family:
    family = families.get(recipe.model)
    reason = _model_mismatch(
        recipe, None if family is None else _OfferedModel(family.revision, find_quantization(family))
    )
    if family is None or reason:
        raise JobRejected(reason, "worker")
    if recipe.guidance_kind != family.guides:
        raise JobRejected(f"{family.name} takes guidance in another way than this recipe says.", "us")
    if recipe.guidance_start > recipe.guidance_stop:
        raise JobRejected("Guidance cannot stop before it starts.", "member")
    if recipe.guidance_kind == "network" and recipe.guidance_interval != FULL_INTERVAL:
        raise JobRejected(f"{family.name} has guidance built into its network, so it holds at every step.", "member")
    return family


@dataclass(frozen=True)
class _OfferedModel:
    """What must be equal in a recipe and a worker's model."""

    revision: str
    quantization: Quantization


def _model_mismatch(recipe: Recipe, offered: _OfferedModel | None) -> str:
    """Return why this worker cannot run the recipe's model; `offered` is None if it lacks the model."""
    if offered is None:
        return f"This worker has no model called {recipe.model}."
    if recipe.revision and recipe.revision != offered.revision:
        return f"This worker has another version of {recipe.model} than the recipe names."
    if recipe.quantization != offered.quantization:
        wanted, present = (_describe_quantization(each) for each in (recipe.quantization, offered.quantization))
        return f"This worker has {recipe.model} {present}, and the recipe asks for it {wanted}."
    return ""


def _describe_quantization(quantization: Quantization) -> str:
    return "unquantised" if quantization == "none" else f"in {quantization}"


def _with_loras(recipe: Recipe, family: Family) -> Recipe:
    if not isinstance(family, TakesLoras):
        raise JobRejected(f"LoRAs cannot be added to {family.name}.", "model")
    return family.with_loras(recipe)


def _check_size(recipe: Recipe, family: Family) -> None:
    if recipe.width % family.multiple or recipe.height % family.multiple:
        raise JobRejected(f"With {family.name}, width and height must be multiples of {family.multiple}.", "member")
    if recipe.width * recipe.height > family.max_pixels:
        max_side = int(family.max_pixels**0.5)
        raise JobRejected(
            f"{recipe.width}×{recipe.height} is too large for {family.name}: at most {max_side}×{max_side} pixels.",
            "member",
        )


def _find_plan(recipe: Recipe, family: Family) -> Plan | None:
    """Return the plan; None if the sampler has no table but the model's own pipeline can run it."""
    try:
        plan = family.plan(recipe.sampler, recipe.steps, recipe.eta, recipe.width, recipe.height)
        steps = list_evaluated_steps(recipe)
        return plan if isinstance(steps, range) else compose(plan, tuple(steps), find_borders(recipe))
    except NotTabled as reason:
        if isinstance(family, PipelineSource):
            log.info("%s, %s: runs in its unmodified pipeline: %s", family.name, recipe.sampler, reason)
            return None
        raise _plan_rejection(recipe, family, reason) from reason
    except ValueError as error:
        raise _plan_rejection(recipe, family, error) from error


def _build_pipeline_images(job: Job, recipe: Recipe, family: Family) -> list[PipelineImage]:
    refuse_unsupported_recipe(recipe)
    assert isinstance(family, PipelineSource), "only such a family runs in its unmodified pipeline"
    try:
        return [
            PipelineImage(job, recipe_for_image(recipe, image), image, family) for image in range(recipe.drawn_count)
        ]
    except ValueError as error:
        raise _plan_rejection(recipe, family, error) from error


def _plan_rejection(recipe: Recipe, family: Family, error: ValueError) -> JobRejected:
    log.info("%s, %s, %d steps: %s", family.name, recipe.sampler, recipe.steps, error)
    request = f"{recipe.steps} steps with the sampler {recipe.sampler}"
    return JobRejected(f"{family.name} cannot take {request}; fewer steps or another may work.", "model")


def check_parts(recipe: Recipe, family: Family) -> None:
    """Raise `JobRejected` where the model cannot skip so many layers, or has no such autoencoder."""
    max_clip_skip = family.max_clip_skip if isinstance(family, SkipsTextLayers) else 0
    if recipe.clip_skip > max_clip_skip:
        raise JobRejected(_describe_clip_skip(family.name, max_clip_skip), "member")
    with_autoencoder(family, recipe)


def with_embeddings(recipe: Recipe, family: Family) -> Recipe:
    """Return the recipe with the revision of each textual inversion. Raises `JobRejected`."""
    if not recipe.embeddings:
        return recipe
    if not isinstance(family, TakesEmbeddings):
        raise JobRejected(f"{family.name} takes no textual inversions.", "model")
    return family.with_embeddings(recipe)


def describe_missing_part(recipe: Recipe, profile: ModelProfile) -> str:
    """Return which of the recipe's parts a worker lacks, by what it announces, as one sentence; empty: none."""
    missing = find_missing_part(recipe, profile)
    if missing is None:
        return ""
    if missing.kind == "skipped layers":
        return _describe_clip_skip(profile.name, profile.max_clip_skip)
    if missing.kind == "preprocessor":
        return f"This worker cannot make {missing.name} control images."
    return f"This worker has no such version of the {missing.kind} {missing.name} for {profile.name}."


def _describe_clip_skip(model: str, max_clip_skip: int) -> str:
    if not max_clip_skip:
        return f"The text encoder of {model} skips no layers."
    return f"The text encoder of {model} can skip at most {max_clip_skip} of its layers."


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

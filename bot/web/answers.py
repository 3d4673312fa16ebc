"""What the API answers: structs, of which its description is made, and how the services' values become them.

Pictures count from 1, as on U1 to U4.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from typing import Annotated, Any

from msgspec import UNSET, Meta, Struct, UnsetType
from msgspec.structs import asdict

from bot.domain import texts
from bot.domain.dto import AcceptedJob, JobView, Member
from bot.domain.errors import UserError
from bot.domain.steering import AmendmentView, SteeringOutlook
from bot.jobs.recipe import can_interpolate
from bot.pictures.animation import FilmFormat, available_formats
from bot.pictures.moderation_status import held_images, hold_reason
from bot.prompt.change_texts import final_prompt
from bot.prompt.flags import split_flags
from engine.contract import (
    Branch,
    Concept,
    ImageToImage,
    Interpolation,
    Presence,
    Recipe,
    UpscaleTask,
    count_requested_evaluations,
    is_draft,
    list_final_images,
    recipe_at_end,
    settle_fades,
)

LOADING_SENTENCE = "The engine is loading. Prompts wait here until it is ready."


class Error(Struct, frozen=True):
    """Why not, as a sentence."""

    error: str


class Path(Struct, frozen=True):
    """An address at this server."""

    path: str


class Notice(Struct, frozen=True):
    """What happened."""

    sentence: str


class Sentence(Struct, frozen=True):
    """What happened to a job."""

    id: str
    sentence: str


class Author(Struct, frozen=True):
    """Who asked. `you`: whether it was the reader, where that is known."""

    name: str
    you: bool | UnsetType = UNSET


class Steering(Struct, frozen=True):
    """What steering changes, as it is with all changes that are made. Images count from 1."""

    concepts: Sequence[Concept]
    mixed: bool
    negative: str
    guidance: float
    interval: Sequence[float]
    images: list[int]


class Amendment(Struct, frozen=True, kw_only=True):
    """A change of a job. `at`: when it was asked for, in seconds since 1970."""

    number: int
    state: str
    step: int | None
    total_steps: int
    reason: str
    author: Author
    kind: str
    text: str
    at: float


class Amendments(Struct, frozen=True):
    """The changes of a job, and what can be changed now: `steering` as if all that waits were made.

    It is null for an upscale. `left`: how many more it takes. `obstacle`: why the reader cannot change it.
    """

    id: str
    amendments: list[Amendment]
    steering: Steering | None
    left: int
    obstacle: str


class SubmittedJob(Struct, frozen=True, kw_only=True):
    """A job that was accepted. `eta`: seconds until it is done. `cost`: in calibrated device-seconds."""

    id: str
    prompt: str
    jobs_ahead: int
    eta: float | None
    has_worker: bool
    startup_notice: str
    notes: Sequence[str]
    steps: int
    evaluations: int
    sampler: str
    seed: int
    count: int
    cost: float
    url: str


class Accepted(SubmittedJob, frozen=True, kw_only=True):
    """The first job that was accepted, all of them (permutations make several), and every note once."""

    ids: list[str]
    jobs: list[SubmittedJob]


class Picture(Struct, frozen=True, kw_only=True):
    """A finished picture. `held`: why it is not shown. Some addresses it has only while it may be shown."""

    n: int
    url: str
    sha256: str
    width: int
    height: int
    held: str
    dissolve: str | None
    round_trip: str | None
    branch: str | None


class ParentPicture(Struct, frozen=True):
    """The picture that a job was made from."""

    id: str
    picture: int


class ViewFields(Struct, frozen=True, kw_only=True):
    """What every job has as its `JobView` has it. Times are seconds since 1970; `eta`: seconds until it is done."""

    id: str
    state: str
    action: str
    prompt: str
    created: float
    started: float | None
    finished: float | None
    seconds: float | None
    ms_per_step: float | None
    jobs_ahead: int | None
    eta: float | None
    step: int
    total_steps: int
    cost: float
    has_worker: bool
    startup_notice: str
    wait_reason: str
    notes: Sequence[str]


class JobFields(ViewFields, frozen=True, kw_only=True):
    """What every job has. `count` and `images`: its pictures; `chosen`: the candidates that they were."""

    prompt_text: str
    author: Author
    can_cancel: bool
    can_review: bool
    percent: int
    cancelling: bool
    reason: str
    parent: ParentPicture | None
    footer: str
    count: int
    images: list[int]
    pictures: list[Picture]
    grid: str | None
    film: str | None
    films: dict[str, str]
    keyframes: str | None
    walk_films: dict[str, str]
    chosen: Sequence[int] | None = None


class UpscaledJob(JobFields, frozen=True, kw_only=True, tag_field="kind", tag="upscale"):
    """A job that enlarges a picture."""

    factor: int
    method: str


class GeneratedJob(JobFields, frozen=True, kw_only=True, tag_field="kind", tag="generate"):
    """A job that draws. `steered`: how often; `stopped_at`: the step after which it stopped."""

    model: str
    sampler: str
    steps: int
    evaluations: int
    seed: int
    guidance: float
    interval: Sequence[float]
    loras: list[dict[str, Any]]
    controls: list[dict[str, Any]]
    references: list[dict[str, Any]]
    embeddings: list[str]
    vae: str | None
    clip_skip: int | None
    quantization: str
    styles: Sequence[str]
    negative: str
    width: int
    height: int
    candidates: int | None
    exact: bool
    start: dict[str, Any] | None
    walk: dict[str, Any] | None
    stopped_at: int | None
    steering: Steering
    steered: int
    can_interpolate: bool
    is_draft: bool


Job = Annotated[GeneratedJob | UpscaledJob, Meta(title="Job")]
SUBMITTED_FIELDS = tuple(name for name in SubmittedJob.__struct_fields__ if name not in ("id", "url"))
AMENDMENT_FIELDS = tuple(name for name in Amendment.__struct_fields__ if name != "author")
TASK_FIELDS = ("model", "sampler", "steps", "seed", "guidance", "quantization", "styles", "negative", "width", "height")
PROFILE_FIELDS = ("name", "size", "upscale_factor", "steps", "loaded", "samplers", "quantization")


class Jobs(Struct, frozen=True):
    """Running jobs, waiting ones in their order, and the last finished ones."""

    jobs: list[Job]


class WorkerModel(Struct, frozen=True, kw_only=True):
    """A model that a worker offers. `size`: its native width and height in pixels; `steps`: its usual ones."""

    name: str
    size: int
    upscale_factor: int
    steps: int
    loaded: bool
    samplers: Sequence[str]
    loras: list[str]
    controls: list[str]
    references: list[str]
    embeddings: list[str]
    vaes: list[str]
    quantization: str


class Worker(Struct, frozen=True, kw_only=True):
    """A live worker. `rows`: how many it runs at once, of which some are `free`."""

    name: str
    device: str
    rows: int
    free: int
    models: list[WorkerModel]


class Workers(Struct, frozen=True, kw_only=True):
    """The live workers, and the names of all models and of the loaded ones. `sentence`: why there are no workers."""

    online: bool
    engine_loading: bool
    workers: list[Worker]
    models: list[str]
    loaded: list[str]
    sentence: str


def job_url(job: str) -> str:
    """Return a job's address in the API."""
    return f"/api/jobs/{job}"


def take_fields(value: object, names: Iterable[str]) -> dict[str, Any]:
    """Return these attributes of a value, by name."""
    return {name: getattr(value, name) for name in names}


def describe_accepted(accepted_jobs: Iterable[AcceptedJob]) -> Accepted:
    """Return accepted jobs, as the answer to their request."""
    jobs = [
        SubmittedJob(**take_fields(one, SUBMITTED_FIELDS), id=one.job, url=job_url(one.job)) for one in accepted_jobs
    ]
    notes = list(dict.fromkeys(note for job in jobs for note in job.notes))
    first: dict[str, Any] = asdict(jobs[0]) | {"notes": notes}
    return Accepted(**first, ids=[job.id for job in jobs], jobs=jobs)


def describe_job(view: JobView, reader: Member) -> Job:
    """Return a job as `reader` sees it."""
    is_own = view.member_id == reader.id
    parent = view.parent_image
    common: dict[str, Any] = {
        **take_fields(view, ViewFields.__struct_fields__),
        "prompt_text": _prompt_without_flags(final_prompt(view.prompt, view.task)),
        "author": Author(view.member_name, is_own),
        "can_cancel": is_own or reader.is_moderator,
        "can_review": reader.is_moderator,
        "percent": 100 if view.state == "finished" else texts.percent_done(view.step, view.total_steps),
        "cancelling": view.is_cancelling,
        "reason": _reason_text(view),
        "parent": ParentPicture(parent[0], parent[1] + 1) if parent else None,
        **_list_results(view),
    }
    if isinstance(view.task, Recipe):
        footer = texts.format_footer(view.task, view.seconds, view.ms_per_step, view.enlargement)
        return GeneratedJob(**common, footer=footer, **_describe_recipe(view.task))
    return UpscaledJob(
        **common,
        footer=_upscale_footer(view, view.task),
        count=1,
        images=[1],
        factor=view.task.factor,
        method=view.task.method,
    )


def _upscale_footer(view: JobView, task: UpscaleTask) -> str:
    if not view.pictures:
        return ""
    return texts.format_upscale(task.factor, view.pictures[0].width, view.pictures[0].height, task.method)


def _prompt_without_flags(prompt: str) -> str:
    """Return the prompt without its flags, as the start of another prompt, which must not inherit an old seed."""
    try:
        return split_flags(prompt)[0]
    except UserError:  # a negative prompt of its own field may look like an unknown flag
        return prompt


def _reason_text(view: JobView) -> str:
    if view.state == "cancelled" and not view.reason:
        return texts.format_cancellation(view.step, view.total_steps)
    return view.reason


@cache
def _film_kinds() -> tuple[FilmFormat, ...]:
    """Return the kinds of films that can be made here; installed packages do not change at run time."""
    return available_formats()


def _list_results(view: JobView) -> dict[str, Any]:
    base = job_url(view.id)
    held_indices = held_images(view)
    pictures = list[Picture]()
    for picture in view.pictures:
        number = picture.index + 1
        is_shown = picture.index not in held_indices
        has_film = is_shown and picture.index in view.ladder_images
        pictures.append(
            Picture(
                n=number,
                url=f"{base}/pictures/{number}.png",
                sha256=picture.sha256,
                width=picture.width,
                height=picture.height,
                held="" if is_shown else hold_reason(picture.index, picture),
                dissolve=f"{base}/dissolve/{number}.webp" if is_shown else None,
                round_trip=f"{base}/round-trip/{number}.webp" if has_film else None,
                branch=f"{base}/branch/{number}" if has_film else None,
            )
        )
    has_any_film = view.state == "finished" and any(image not in held_indices for image in view.ladder_images)
    return {
        "pictures": pictures,
        "grid": f"{base}/grid.png" if view.state == "finished" and pictures else None,
        "film": f"{base}/film.webp" if has_any_film else None,
        "films": {kind: f"{base}/film.{kind}" for kind in _film_kinds()} if has_any_film else {},
        "keyframes": f"{base}/keyframes" if has_any_film else None,
        "walk_films": {kind: f"{base}/walk.{kind}" for kind in _film_kinds()} if view.ends_interpolation else {},
    }


def _describe_recipe(task: Recipe) -> dict[str, Any]:
    """Return a recipe's settings and its pictures; of a steered job, the settings that it has come to."""
    recipe = recipe_at_end(task)
    images = [image + 1 for image in list_final_images(task)]  # steering may drop some and add others
    return {
        **take_fields(recipe, TASK_FIELDS),
        "evaluations": count_requested_evaluations(recipe),
        "interval": (recipe.guidance_start, recipe.guidance_stop),
        "loras": [take_fields(lora, ("name", "weight")) for lora in recipe.loras],
        "controls": [take_fields(control, ("name", "scale", "start", "stop")) for control in recipe.controls],
        "references": [take_fields(reference, ("name", "scale")) for reference in recipe.references],
        "embeddings": [part.name for part in recipe.embeddings],
        "vae": recipe.autoencoder.name if recipe.autoencoder else None,
        "clip_skip": recipe.clip_skip + 1 if recipe.clip_skip else None,
        "candidates": recipe.candidate_count or None,
        "chosen": recipe.chosen_candidates or None,
        "exact": recipe.bucket is not None,
        "start": _describe_start(recipe.start),
        "walk": _describe_interpolation(recipe.interpolation),
        "stopped_at": recipe.end_step if recipe.end_step < recipe.steps else None,
        "count": len(images),
        "images": images,
        "steering": describe_steering(task),
        "steered": len(task.amendments),
        "can_interpolate": can_interpolate(task),
        "is_draft": is_draft(task),
    }


def _describe_start(start: ImageToImage | Branch | None) -> dict[str, Any] | None:
    """Return how it begins: the number of init images, or a step of its parent; None for noise."""
    if isinstance(start, Branch):
        return {"step": start.keyframe_step, "new_noise": start.has_new_noise}
    if isinstance(start, ImageToImage):
        return {"pictures": len(start.pictures), "strength": start.strength, "mask": start.mask is not None}
    return None


def _describe_interpolation(walk: Interpolation | None) -> dict[str, Any] | None:
    """Return which frames of an interpolation a job makes; None for a job that is no part of one."""
    if walk is None:
        return None
    frames = {"first_frame": walk.first, "total_frames": walk.total_frames}
    return {"to_prompt": walk.end_prompt, **frames, "noise_seeds": walk.noises}


def describe_steering(recipe: Recipe) -> Steering:
    """Return what steering changes, as it is with all changes that are made."""
    words = settle_fades(recipe)
    interval = (words.guidance_start, words.guidance_stop)
    images = [image + 1 for image in list_final_images(recipe)]
    return Steering(words.concepts, words.mixed, words.negative, words.guidance, interval, images)


def describe_amendment(view: AmendmentView, reader: Member | None = None) -> Amendment:
    """Return a change as `reader` sees it; None: as everybody does."""
    author = Author(view.member_name, UNSET if reader is None else view.member_id == reader.id)
    return Amendment(**take_fields(view, AMENDMENT_FIELDS), author=author)


def describe_amendments(
    job: str, reader: Member, views: Iterable[AmendmentView], outlook: SteeringOutlook | None
) -> Amendments:
    """Return a job's changes, and what can be changed now."""
    amendments = [describe_amendment(view, reader) for view in views]
    if outlook is None:
        return Amendments(job, amendments, None, 0, "")
    return Amendments(job, amendments, describe_steering(outlook.recipe), outlook.changes_left, outlook.obstacle)


def describe_workers(workers: Mapping[str, Presence], *, engine_loading: bool = False, starting: str = "") -> Workers:
    """Return every live worker with its device and its models.

    `engine_loading`: one is sure to come soon. `starting`: the sentence on one that is starting.
    """
    models = [model for worker in workers.values() for model in worker.models]
    return Workers(
        online=bool(workers),
        engine_loading=(engine_loading or bool(starting)) and not workers,
        workers=[_describe_worker(worker) for worker in sorted(workers.values(), key=lambda one: one.worker)],
        models=sorted({model.name for model in models}),
        loaded=sorted({model.name for model in models if model.loaded}),
        sentence="" if workers else starting or (LOADING_SENTENCE if engine_loading else texts.NO_WORKER),
    )


def _describe_worker(worker: Presence) -> Worker:
    models = [
        WorkerModel(
            **take_fields(model, PROFILE_FIELDS),
            loras=[lora.name for lora in model.loras],
            controls=[control.name for control in model.controls],
            references=[reference.name for reference in model.references],
            embeddings=[part.name for part in model.embeddings],
            vaes=[part.name for part in model.autoencoders],
        )
        for model in worker.models
    ]
    return Worker(name=worker.worker, device=worker.device, rows=worker.rows, free=worker.free, models=models)

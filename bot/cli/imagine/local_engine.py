"""`darkroom imagine` without a running bot: the same grammar, with an engine in this process.

A call imports torch. Writes no files and prints only progress and notes.
"""

from __future__ import annotations

import asyncio
import hashlib
import secrets
import time
from collections.abc import Mapping
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from ulid import ULID

from bot.app.wiring import read_model_choices
from bot.cli.imagine.job_inputs import ImagineRequest, JobInputs, KeyframeRef
from bot.cli.imagine.progress_display import ProgressDisplay
from bot.cli.imagine.result import GenerationError, ImagineResult
from bot.cli.store_session import load_store_settings, run_with_store
from bot.domain.dto import Member
from bot.domain.errors import UserError
from bot.domain.texts import INIT_IMAGE_GONE
from bot.jobs.beginnings import (
    BranchEdit,
    branch_base,
    branch_recipe,
    nearest_step_note,
    unused_strength_note,
    with_followed_pictures,
    with_init_images,
    with_input_aspect,
)
from bot.jobs.init_images import LoadedInitImages, decode_init_images
from bot.jobs.recipe import interpolation_recipes, pin_batch_shape
from bot.jobs.views import refusal_reason
from bot.pictures import ladder_keyframes
from bot.pictures.captions import list_recipe_captions
from bot.pictures.gallery import Gallery
from bot.pictures.ladder_film import render_film as film_of
from bot.pictures.ladder_film import render_interpolation_film
from bot.pictures.picture_store import ContentMissing, PictureStore
from bot.pictures.uploads.image_links import split_leading_links
from bot.pictures.uploads.upload_decoder import UploadDecoder
from bot.prompt import build_recipe, parse
from bot.prompt.capability_check import check_capabilities, check_start
from bot.prompt.change_texts import prompt_at_step
from bot.store import JobRecord, Store
from engine.contract import BillingKey, Frame, Job, ModelProfile, Recipe, estimate_cost, list_final_images
from engine.contract.evaluations import count_requested_evaluations
from engine.process.load_progress import format_loading, format_size
from engine.process.model_settings import EMBEDDED_MODEL, read_style_guide
from engine.prompt.style_guide import StyleGuide

if TYPE_CHECKING:
    from bot.app.settings import Settings
    from engine.models.family import Family
    from engine.process.settings import WorkerSettings

DAY_SECONDS = 86_400.0
TERMINAL_BILLING_KEY = BillingKey(tier="standard", guild="local", user="local:terminal")
TERMINAL_MEMBER = Member("local:terminal", "Terminal", "local")


def generate(
    request: ImagineRequest, settings: Settings, engine: WorkerSettings, display: ProgressDisplay
) -> ImagineResult:
    """Run one prompt here. Raise `UserError` for a bad request, `GenerationError` for any other failure."""
    missing_packages = [name for name in ("torch", "diffusers", "transformers") if find_spec(name) is None]
    if missing_packages:
        raise UserError(
            f"No Darkroom is running, and {missing_packages[0]} is not installed: pip install 'darkroom-bot[all]'."
        )
    if split_leading_links(request.prompt)[0]:
        raise UserError("Links need a running Darkroom (`darkroom up`). For a file of yours there is --image.")
    from engine.contract import JobRejected

    try:
        if request.inputs.keyframe is not None:
            return _branch(request, request.inputs.keyframe, settings, engine, display)
        return _imagine(request, engine, display)
    except JobRejected as error:
        if error.blame == "member":
            raise UserError(error.sentence) from error
        raise GenerationError(error.sentence) from error


def _imagine(request: ImagineRequest, engine: WorkerSettings, display: ProgressDisplay) -> ImagineResult:
    init_images = _load_init_images(request.inputs, display)
    # an option wins over the prompt's flag, and that over the default model
    chosen_model = request.options.get("model") or parse(request.prompt, None, allow_empty=True).prompts[0].model
    model = str(chosen_model or read_model_choices(engine.data).default or EMBEDDED_MODEL)
    family, model_profile = _load_model(model, display, engine)
    style_guide = read_style_guide() if model_profile.name == EMBEDDED_MODEL else None
    options = {**request.options, "model": None}
    recipes = _build_recipes(request.prompt, options, model_profile, display, init_images, style_guide)
    contents = init_images.new_contents if init_images else {}
    if recipes[0].interpolation is None:
        return _run_job(recipes[0], contents, family, model_profile, request.with_film, display, engine.data)
    results = [_run_job(part, contents, family, model_profile, False, display, engine.data) for part in recipes]
    pictures = tuple(picture for result in results for picture in result.pictures)
    return replace(
        results[0],
        pictures=pictures,
        film=render_interpolation_film(pictures),
        preview_count=sum(result.preview_count for result in results),
        seconds=sum(result.seconds for result in results),
    )


def _run_job(
    job_recipe: Recipe,
    contents: Mapping[str, bytes],
    family: Family,
    model_profile: ModelProfile,
    film: bool,
    display: ProgressDisplay,
    data: Path,
) -> ImagineResult:
    from engine.preview_maps.latent_map import MapStore
    from engine.worker import local_run

    job = Job(
        id=str(ULID()),
        task=job_recipe,
        billing_key=TERMINAL_BILLING_KEY,
        cost=estimate_cost(job_recipe, model_profile),
        deadline=time.time() + DAY_SECONDS,
        ladder=film,
    )
    first_index = job_recipe.interpolation.first if job_recipe.interpolation else 0

    def show_frame(frame: Frame) -> None:
        display.show_step(frame.step, frame.total_steps, frame.seconds_left)
        display.show_frame(first_index + frame.image, frame.picture)

    run_result = local_run.run_locally(
        job, {family.name: family}, contents, on_frame=show_frame, map_store=MapStore(data)
    )
    captions = list_recipe_captions(job_recipe)
    return ImagineResult(
        id=job.id,
        seed=job_recipe.seed,
        steps=job_recipe.steps,
        evaluations=count_requested_evaluations(job_recipe),
        sampler=job_recipe.sampler,
        pictures=tuple(run_result.pictures),
        film=film_of(run_result.ladders, finals=run_result.pictures, captions=captions) if film else None,
        preview_count=run_result.frame_count,
        seconds=run_result.seconds,
        ms_per_step=run_result.ms_per_step,
        numbers=tuple(image + 1 for image in list_final_images(job_recipe)) if job_recipe.amendments else (),
    )


def _load_model(model: str, display: ProgressDisplay, engine: WorkerSettings) -> tuple[Family, ModelProfile]:
    from engine import models
    from engine.calibration.calibration import calibrate
    from engine.device.memory import choose_device
    from engine.model_cache.discovery import choose_for_one
    from engine.upscaling.super_resolver import SuperResolver

    if "/" in model:
        display.print_note(f"{model} is loaded here. `darkroom up --model {model}` keeps it in memory.")
    else:
        display.print_note(f"No Darkroom is running: {model} is loaded here. `darkroom up` keeps it in memory.")
    name = Path(model).name
    data = engine.data
    display.show_loading(f"loading {name}", None)
    device = choose_device()
    path, chosen = choose_for_one(model, engine.quantization_requests, data, device, engine.offload)
    if chosen.quantization:
        display.print_note(f"{name} is loaded with its {chosen.quantization}: about {format_size(chosen.size)}.")

    def show_progress(fraction: float) -> None:
        display.show_loading(format_loading(name, fraction, chosen.size), round(100 * fraction))

    family = models.load_model(
        path,
        data,
        device=device,
        resolver=SuperResolver.load(engine.upscaler, device),
        on_progress=show_progress,
        quantization=chosen.quantization,
        offload=chosen.offload,
    )
    display.show_loading(f"measuring {name}", None)
    model_profile = calibrate(family, data / "calibration.json").to_model_profile(family)
    return family, read_model_choices(data).get(family.name).apply(model_profile)


def _load_init_images(inputs: JobInputs, display: ProgressDisplay) -> LoadedInitImages | None:
    """Decode the init images as the bot does, and print its notes about them."""
    if not (inputs.images or inputs.controls or inputs.references):
        return None
    parts = inputs.read_parts()
    mask = parts["mask"][0] if parts["mask"] else None

    async def decode() -> LoadedInitImages:
        decoder = UploadDecoder()
        try:
            return await decode_init_images(decoder, parts["picture"], mask, (), parts["control"], parts["reference"])
        finally:
            await decoder.close()

    init_images = asyncio.run(decode())
    for note in init_images.notes:
        display.print_note(note)
    return init_images


def _build_recipes(
    prompt: str,
    options: Mapping[str, object],
    model_profile: ModelProfile,
    display: ProgressDisplay,
    init_images: LoadedInitImages | None,
    style_guide: StyleGuide | None,
) -> list[Recipe]:
    """Return the recipe as the bot makes it in exact mode, so that the pixels match; several for an interpolation."""
    has_start = init_images is not None and init_images.recipe_part(None) is not None
    parsed = parse(prompt, model_profile, options=options, allow_empty=has_start)
    request = with_input_aspect(parsed.prompts[0], init_images)
    for note in (*parsed.notes, *unused_strength_note(request, init_images, model_profile)):
        display.print_note(note)
    job_recipe = build_recipe(request, model_profile, secrets.randbelow(2**32), style_guide=style_guide)
    job_recipe = with_init_images(job_recipe, request, init_images, model_profile)
    job_recipe = with_followed_pictures(job_recipe, request, init_images, model_profile)
    end_prompt = request.end_prompt
    recipes = interpolation_recipes(job_recipe, end_prompt, request.frames) if end_prompt else [job_recipe]
    check_capabilities(recipes[0], model_profile)
    check_start(recipes[0], model_profile)
    return [pin_batch_shape(part) for part in recipes]


def _branch(
    request: ImagineRequest, keyframe: KeyframeRef, settings: Settings, engine: WorkerSettings, display: ProgressDisplay
) -> ImagineResult:
    """Branch from a job in the store of this data folder. Raise `UserError` if it is not there."""
    database = load_store_settings(settings.data).database
    record, ladder, contents = run_with_store(database, lambda store: _load_branch_source(store, settings, keyframe))
    assert isinstance(record.task, Recipe)
    family, model_profile = _load_model(record.task.model, display, engine)
    sha256 = hashlib.sha256(ladder).hexdigest()
    step = ladder_keyframes.nearest_branch_step(ladder, keyframe.step)
    for note in nearest_step_note(step, keyframe.step):
        display.print_note(note)
    prompt = prompt_at_step(record.prompt, record.task, step)
    branch_edit = BranchEdit(prompt, request.prompt or None, request.options)
    base = branch_base(record.task, keyframe.image, step)
    job_recipe = pin_batch_shape(branch_recipe(base, sha256, step, branch_edit, model_profile, parent=record.task))
    contents[sha256] = ladder
    return _run_job(job_recipe, contents, family, model_profile, request.with_film, display, settings.data)


async def _load_branch_source(
    store: Store, settings: Settings, keyframe: KeyframeRef
) -> tuple[JobRecord, bytes, dict[str, bytes]]:
    """Return the job, its ladder and the pictures that it follows, by SHA-256.

    The checks are those that a running Darkroom applies to the terminal.
    """
    record = await store.get_job(keyframe.job)
    if record is None or record.deleted is not None or not isinstance(record.task, Recipe):
        raise UserError(f"There is no job {keyframe.job} here to branch from.")
    if refusal := refusal_reason("branch", TERMINAL_MEMBER, record):
        raise UserError(refusal, 403)
    pictures = PictureStore(settings.pictures)
    gallery = Gallery(store, pictures)
    followed = [each.picture for each in (*record.task.controls, *record.task.references)]
    try:
        contents = {sha256: await pictures.get(sha256) for sha256 in followed}
    except ContentMissing as error:
        raise UserError(INIT_IMAGE_GONE, 404) from error
    return record, await gallery.read_file(await gallery.find_ladder(keyframe.job, keyframe.image)), contents

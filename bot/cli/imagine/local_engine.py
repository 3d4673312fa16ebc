"""`darkroom imagine` without a running bot: the same grammar, with an engine in this process.

A call imports torch. Writes no files and prints only progress and notes.
"""

from __future__ import annotations

import asyncio
import hashlib
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from ulid import ULID

from bot.app.wiring import read_model_choices
from bot.cli.imagine.job_inputs import JobInputs, KeyframeRef, read_files
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
    prompt: str,
    options: Mapping[str, object],
    settings: Settings,
    *,
    inputs: JobInputs,
    film: bool,
    display: ProgressDisplay,
    engine: WorkerSettings,
) -> ImagineResult:
    """Run one prompt here. Raise `UserError` for a bad request, `GenerationError` for any other failure."""
    missing_packages = [name for name in ("torch", "diffusers", "transformers") if find_spec(name) is None]
    if missing_packages:
        raise UserError(
            f"No Darkroom is running, and {missing_packages[0]} is not installed: pip install 'darkroom-bot[all]'."
        )
    if split_leading_links(prompt)[0]:
        raise UserError("Links need a running Darkroom (`darkroom up`). For a file of yours there is --image.")
    from engine.contract import JobRejected

    try:
        if inputs.keyframe is not None:
            return branch_locally(prompt, options, settings, inputs.keyframe, film, display, engine)
        return _generate_here(prompt, options, inputs, film, display, engine)
    except JobRejected as error:
        if error.blame == "member":
            raise UserError(error.sentence) from error
        raise GenerationError(error.sentence) from error


def _generate_here(
    prompt: str,
    options: Mapping[str, object],
    inputs: JobInputs,
    film: bool,
    display: ProgressDisplay,
    engine: WorkerSettings,
) -> ImagineResult:
    init_images = _load_init_images(inputs, display)
    model = _model_name(prompt, options, read_model_choices(engine.data).default)
    family, model_profile = _load_model(model, display, engine)
    style_guide = read_style_guide() if model_profile.name == EMBEDDED_MODEL else None
    recipes = _build_recipes(prompt, {**options, "model": None}, model_profile, display, init_images, style_guide)
    is_walk = recipes[0].interpolation is not None
    contents = init_images.new_contents if init_images else {}
    results = [
        _run_job(part, contents, family, model_profile, film and not is_walk, display, engine.data) for part in recipes
    ]
    return _join_walk(results) if is_walk else results[0]


def _join_walk(results: Sequence[ImagineResult]) -> ImagineResult:
    """Return the jobs of an interpolation as one, with its film."""
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

    job = _make_job(job_recipe, model_profile, film)
    first_index = job_recipe.interpolation.first if job_recipe.interpolation else 0
    run_result = local_run.run_locally(
        job,
        {family.name: family},
        contents,
        on_frame=lambda frame: _show_frame(frame, display, first_index),
        map_store=MapStore(data),
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


def _model_name(prompt: str, options: Mapping[str, object], default: str) -> str:
    """Return a folder or a name; an option wins over the prompt's flag, and that over the default model."""
    chosen_model = options.get("model") or parse(prompt, None, allow_empty=True).prompts[0].model
    return str(chosen_model or default or "embedded")


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
    resolver = SuperResolver.load(engine.upscaler, device)
    path, chosen = choose_for_one(model, engine.quantization_requests, data, device, engine.offload)
    if chosen.quantization:
        display.print_note(f"{name} is loaded with its {chosen.quantization}: about {format_size(chosen.size)}.")
    family = models.load_model(
        path,
        data,
        device=device,
        resolver=resolver,
        on_progress=_loading_callback(name, chosen.size, display),
        quantization=chosen.quantization,
        offload=chosen.offload,
    )
    display.show_loading(f"measuring {name}", None)
    model_profile = calibrate(family, data / "calibration.json").to_model_profile(family)
    return family, read_model_choices(data).get(family.name).apply(model_profile)


def _loading_callback(name: str, size: int, display: ProgressDisplay) -> Callable[[float], None]:
    """Return a callback that shows loading progress, in bytes where `size` is known."""
    return lambda fraction: display.show_loading(format_loading(name, fraction, size), round(100 * fraction))


def _load_init_images(inputs: JobInputs, display: ProgressDisplay) -> LoadedInitImages | None:
    """Decode the init images as the bot does, and print its notes about them."""
    if not (inputs.images or inputs.controls or inputs.references):
        return None
    contents = inputs.read_pictures()
    mask = inputs.read_mask()
    controls = read_files(inputs.controls)
    references = read_files(inputs.references)

    async def decode() -> LoadedInitImages:
        decoder = UploadDecoder()
        try:
            return await decode_init_images(decoder, contents, mask, (), controls, references)
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
    parsed = parse(
        prompt,
        model_profile,
        options=options,
        allow_empty=init_images is not None and init_images.recipe_part(None) is not None,
    )
    request = with_input_aspect(parsed.prompts[0], init_images)
    for note in (*parsed.notes, *unused_strength_note(request, init_images, model_profile)):
        display.print_note(note)
    job_recipe = build_recipe(request, model_profile, secrets.randbelow(2**32), style_guide=style_guide)
    job_recipe = with_init_images(job_recipe, request, init_images, model_profile)
    job_recipe = with_followed_pictures(job_recipe, request, init_images, model_profile)
    recipes = (
        interpolation_recipes(job_recipe, request.end_prompt, request.frames) if request.end_prompt else [job_recipe]
    )
    check_capabilities(recipes[0], model_profile)
    check_start(recipes[0], model_profile)
    return [pin_batch_shape(part) for part in recipes]


def branch_locally(
    prompt: str,
    options: Mapping[str, object],
    settings: Settings,
    keyframe: KeyframeRef,
    film: bool,
    display: ProgressDisplay,
    engine: WorkerSettings,
) -> ImagineResult:
    """Branch from a job in the store of this data folder. Raise `UserError` if it is not there."""
    record, ladder, contents = run_with_store(
        load_store_settings(settings.data).database, lambda store: _load_branch_source(store, settings, keyframe)
    )
    assert isinstance(record.task, Recipe)
    family, model_profile = _load_model(record.task.model, display, engine)
    sha256 = hashlib.sha256(ladder).hexdigest()
    step = ladder_keyframes.nearest_branch_step(ladder, keyframe.step)
    for note in nearest_step_note(step, keyframe.step):
        display.print_note(note)
    branch_edit = BranchEdit(prompt_at_step(record.prompt, record.task, step), prompt or None, options)
    base = branch_base(record.task, keyframe.image, step)
    job_recipe = branch_recipe(base, sha256, step, branch_edit, model_profile, parent=record.task)
    contents[sha256] = ladder
    return _run_job(pin_batch_shape(job_recipe), contents, family, model_profile, film, display, settings.data)


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


def _make_job(job_recipe: Recipe, model_profile: ModelProfile, film: bool) -> Job:
    return Job(
        id=str(ULID()),
        task=job_recipe,
        billing_key=TERMINAL_BILLING_KEY,
        cost=estimate_cost(job_recipe, model_profile),
        deadline=time.time() + DAY_SECONDS,
        ladder=film,
    )


def _show_frame(frame: Frame, display: ProgressDisplay, first_index: int) -> None:
    display.show_step(frame.step, frame.total_steps, frame.seconds_left)
    display.show_frame(first_index + frame.image, frame.picture)

"""`POST /sdapi/v1/txt2img` and `/img2img`: pictures in the answer, as soon as they are finished.

A request of AUTOMATIC1111's API as a prompt with options, as `JobService.imagine` takes them. Pure.

What it cannot mean here is refused with a sentence, if the picture would not be what was asked for.

`/sdapi/v1/extra-single-image` and `/extra-batch-images`: enlarges uploaded pictures, each as a job.

What AUTOMATIC1111's API does to pictures by itself: it exchanges a mask's colours, and fits a size.
"""

from __future__ import annotations

import asyncio
import io
import json
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec
from aiohttp import web
from PIL import Image, ImageOps

from bot.apis.a1111.bodies import (
    BatchUpscaleBody,
    ImageToImageBody,
    OptionsBody,
    SingleUpscaleBody,
    TextToImageBody,
    UpscaleBody,
    answer_missing,
)
from bot.apis.a1111.listings import choose_profile
from bot.apis.a1111.names import (
    NO_UPSCALER,
    UnitPictures,
    choose_sampler,
    choose_upscaler,
    read_unit_pictures,
    read_units,
)
from bot.apis.a1111.progress import OPEN_REQUESTS, OpenRequest
from bot.apis.a1111.result_fields import DrawnImage, describe_images
from bot.domain.dto import Member
from bot.domain.errors import UserError
from bot.domain.texts import shorten
from bot.jobs.admission import draw_seed
from bot.jobs.attended_requests import AttendedRequest, DrawnPicture, FeedClosed, PictureRequest, PicturesMissing
from bot.jobs.init_images import InitImageLoader, InitImages
from bot.pictures.image_codec import decode_image, encode_image, read_recipe_text, resize_image
from bot.prompt.concepts import MAX_JOBS, escape_braces
from bot.web.attendance import admit_attended, attend_accepted, read_pictures
from bot.web.middleware import member_of
from bot.web.request_body import decode_picture, destination_of, encode_base64, read_picture_body
from bot.web.routes import answer_json
from bot.web.sse import SERVICES
from engine.contract import MAX_COUNT, Recipe, UpscaleTask, settle_amendments

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from engine.contract import ModelProfile


class WebuiPictures(msgspec.Struct, frozen=True):
    """Pictures in base64, the request, and `info`: what they were drawn with, as JSON."""

    images: list[str]
    parameters: dict[str, Any]
    info: str


class WebuiPicture(msgspec.Struct, frozen=True):
    """An enlarged picture in base64."""

    image: str
    html_info: str = ""


class WebuiEnlarged(msgspec.Struct, frozen=True):
    """Enlarged pictures in base64."""

    images: list[str]
    html_info: str = ""


async def draw_from_text(request: web.Request) -> web.Response:
    """Draw pictures of a prompt, and return them. If the client goes, the jobs are cancelled."""
    async with AsyncExitStack() as stack:
        async with read_picture_body(request, TextToImageBody) as body:
            attended_request = await _admit(request, stack, body)
            body = msgspec.structs.replace(body, alwayson_scripts={})  # frees their pictures
        return await _answer(request, stack, attended_request, body, "txt2img")


async def draw_from_picture(request: web.Request) -> web.Response:
    """Draw pictures that begin with one, within a mask if there is one, and return them."""
    async with AsyncExitStack() as stack:
        async with read_picture_body(request, ImageToImageBody) as body:
            attended_request = await _admit(request, stack, body, *await _read_pictures(request, body))
            body = msgspec.structs.replace(body, alwayson_scripts={})
            if not body.include_init_images:
                body = msgspec.structs.replace(body, init_images=None, mask=None)
        return await _answer(request, stack, attended_request, body, "img2img")


async def _read_pictures(request: web.Request, body: ImageToImageBody) -> tuple[bytes, bytes | None]:
    """Return the init image and the mask, not decoded yet."""
    pictures = body.init_images or []
    if len(pictures) != 1:
        raise UserError(f"One picture begins a request (init_images), and these are {len(pictures)}.")
    mask = await asyncio.to_thread(decode_picture, body.mask, "mask") if body.mask else None
    if mask is not None and body.inpainting_mask_invert:
        mask = await invert_mask(request.app[SERVICES].get(InitImageLoader), member_of(request), mask)
    return await asyncio.to_thread(decode_picture, pictures[0]), mask


async def _admit(
    request: web.Request,
    stack: AsyncExitStack,
    body: TextToImageBody,
    init_image: bytes | None = None,
    mask: bytes | None = None,
) -> AttendedRequest:
    """Admit the jobs of a request, until the stack closes."""
    services = request.app[SERVICES]
    settings = body.override_settings
    profile = await choose_profile(services, member_of(request), settings.sd_model_checkpoint if settings else None)
    unit_pictures = await asyncio.to_thread(read_unit_pictures, read_units(body.alwayson_scripts), init_image)
    prompt_options = make_picture_options(body, profile, draw_seed(), unit_pictures)
    pictures = () if init_image is None else (init_image,)
    images = InitImages(pictures, mask, (), unit_pictures.control_pictures, unit_pictures.reference_pictures)
    picture_request = PictureRequest(
        prompt_options.prompt, prompt_options.options, images if images != InitImages() else None
    )
    return await stack.enter_async_context(admit_attended(request, picture_request, with_previews=False))


async def _answer(
    request: web.Request, stack: AsyncExitStack, attended_request: AttendedRequest, body: TextToImageBody, kind: str
) -> web.Response:
    """Wait for the pictures; return them with what they were drawn with."""
    started = time.time()
    open_request = OpenRequest(attended_request, kind, started, body.force_task_id)
    stack.enter_context(request.app[OPEN_REQUESTS].note(member_of(request).id, open_request))
    try:
        pictures = await read_pictures(request, attended_request, is_partial=True)
    except (PicturesMissing, FeedClosed) as missing:
        return answer_missing(missing)
    recipes = {view.id: view.task for view in attended_request.views if isinstance(view.task, Recipe)}
    payload = await asyncio.to_thread(_encode_answer, pictures, recipes, body, started)
    return web.Response(body=payload, content_type="application/json")


def _encode_answer(
    pictures: Sequence[DrawnPicture], recipes: dict[str, Recipe], body: TextToImageBody, started: float
) -> bytes:
    images = [
        DrawnImage(
            settle_amendments(recipes[each.job], each.index),
            each.index,
            each.width,
            each.height,
            read_recipe_text(each.png),
        )
        for each in pictures
    ]
    sent = [encode_base64(each.png) for each in pictures] if body.send_images is not False else []
    info = json.dumps(describe_images(images, body.prompt or "", body.batch_size or 1, started))
    return msgspec.json.encode(WebuiPictures(sent, msgspec.to_builtins(body), info))


MAX_PICTURES = MAX_JOBS * MAX_COUNT  # of one request
RANDOM_SEED = -1
NO_UNIT_PICTURES = UnitPictures()
OWN_AUTOENCODERS = ("", "automatic", "none")  # `sd_vae`: the model's own


@dataclass(frozen=True)
class PictureOptions:
    """A prompt in Darkroom's grammar, and the options that override its flags."""

    prompt: str
    options: Mapping[str, object]


def make_picture_options(
    body: TextToImageBody, profile: ModelProfile, drawn_seed: int, unit_pictures: UnitPictures = NO_UNIT_PICTURES
) -> PictureOptions:
    """Return the prompt and options of a request. `profile`: its model; `drawn_seed`: for a request without a seed;
    `unit_pictures`: what it names beside the prompt.

    More pictures than a job draws are several jobs, admitted all or none: the seeds count on. Raises `UserError`.
    """
    _refuse_unmapped(body)
    seed = drawn_seed if body.seed in (None, RANDOM_SEED) else body.seed
    count = count_pictures(body)
    settings = body.override_settings or OptionsBody()
    options: dict[str, object] = {
        "model": profile.name,
        "negative": body.negative_prompt or None if profile.guidance_kind == "rows" else None,
        "steps": body.steps,
        "evaluations": body.evaluations,
        "guidance": body.cfg_scale,
        "sampler": choose_sampler(body.sampler_name or body.sampler_index or "", body.scheduler or "", profile),
        "ar": (body.width, body.height) if body.width and body.height else None,
        "tile": body.tiling or None,
        "vae": None if (settings.sd_vae or "").lower() in OWN_AUTOENCODERS else settings.sd_vae,
        "clip_skip": settings.CLIP_stop_at_last_layers,
        "control": unit_pictures.controls or None,
        "reference": unit_pictures.references or None,
        "strength": body.denoising_strength if isinstance(body, ImageToImageBody) else None,
    }
    prompt = escape_braces(body.prompt or "")
    if count <= MAX_COUNT:
        options |= {"seed": seed, "count": count}
    else:
        prompt = f"{prompt} {{{','.join(_list_job_flags(seed or 0, count))}}}"
    return PictureOptions(prompt, {name: value for name, value in options.items() if value is not None})


def count_pictures(body: TextToImageBody) -> int:
    """Return how many pictures a request asks for. Raises `UserError` for too many."""
    count = (body.n_iter or 1) * (body.batch_size or 1)
    if count > MAX_PICTURES:
        raise UserError(f"n_iter × batch_size is {count}: one request draws at most {MAX_PICTURES} pictures.")
    return count


def _list_job_flags(seed: int, count: int) -> Iterator[str]:
    """Yield the flags of each job: its first seed, and its number of pictures."""
    for first in range(0, count, MAX_COUNT):
        yield f"--seed {seed + first} --count {min(MAX_COUNT, count - first)}"


def _refuse_unmapped(body: TextToImageBody) -> None:
    """Raise `UserError` for what has no counterpart here and would make another picture."""
    if body.script_name:
        raise UserError(f"Script “{shorten(body.script_name, 60)}” not found: Darkroom runs no scripts but ControlNet.")
    unmapped = {
        "enable_hr": (body.enable_hr, "enlarge the finished picture by /sdapi/v1/extra-single-image"),
        "restore_faces": (body.restore_faces, "leave it out"),
        "styles": (body.styles, "write their words into the prompt"),
        "subseed_strength": (body.subseed_strength, "vary a finished picture on the page or in Discord"),
    }
    for name, (value, advice) in unmapped.items():
        if value:
            raise UserError(f"{name} has no counterpart in Darkroom: {advice}.")


KIND = "extras"


@dataclass(frozen=True)
class TargetSize:
    """The size that a request asks for: a factor, or a box to reach. `crops`: what overlaps the box is cut off."""

    factor: float
    box: tuple[int, int] | None = None
    crops: bool = False

    def find_factor(self, width: int, height: int) -> float:
        """Return how much larger a picture of that size becomes."""
        if self.box is None:
            return self.factor
        factors = self.box[0] / width, self.box[1] / height
        return max(factors) if self.crops else min(factors)

    def find_size(self, width: int, height: int) -> tuple[int, int]:
        """Return the size in pixels that a picture of that size gets."""
        if self.box is not None and self.crops:
            return self.box
        factor = self.find_factor(width, height)
        return max(1, round(width * factor)), max(1, round(height * factor))


async def enlarge_picture(request: web.Request) -> web.Response:
    """Enlarge a picture, and return it."""
    async with AsyncExitStack() as stack:
        async with read_picture_body(request, SingleUpscaleBody) as body:
            attended_request = await _admit_upscaling(request, stack, body, body.image)
            target = make_target(body)
        del body
        try:
            image = await _read_image(request, attended_request, target)
        except (PicturesMissing, FeedClosed) as missing:
            return answer_missing(missing)
    return answer_json(WebuiPicture(image))


async def enlarge_pictures(request: web.Request) -> web.Response:
    """Enlarge up to four pictures, and return them in their order."""
    async with AsyncExitStack() as stack:
        async with read_picture_body(request, BatchUpscaleBody) as body:
            if not 1 <= len(body.imageList) <= MAX_COUNT:
                raise UserError(f"One to {MAX_COUNT} pictures are enlarged at once, not {len(body.imageList)}.")
            attended_requests = [await _admit_upscaling(request, stack, body, each.data) for each in body.imageList]
            target = make_target(body)
        del body
        try:
            images = [await _read_image(request, attended_request, target) for attended_request in attended_requests]
        except (PicturesMissing, FeedClosed) as missing:
            return answer_missing(missing)
    return answer_json(WebuiEnlarged(images))


def make_target(body: UpscaleBody) -> TargetSize:
    """Return the size that a request asks for."""
    box = (body.upscaling_resize_w, body.upscaling_resize_h) if body.resize_mode == 1 else None
    return TargetSize(body.upscaling_resize, box, body.upscaling_crop)


async def _admit_upscaling(
    request: web.Request, stack: AsyncExitStack, body: UpscaleBody, picture: str
) -> AttendedRequest:
    """Admit the job of one picture, until the stack closes."""
    _refuse_unmapped_upscaling(body)
    services = request.app[SERVICES]
    member = member_of(request)
    accepted = await services.variations.upscale_upload(
        await asyncio.to_thread(decode_picture, picture),
        make_target(body).find_factor,
        choose_upscaler(body.upscaler_1),
        member,
        destination_of(request),
    )
    attended_request = await stack.enter_async_context(attend_accepted(request, [accepted], with_previews=False))
    stack.enter_context(request.app[OPEN_REQUESTS].note(member.id, OpenRequest(attended_request, KIND, time.time())))
    return attended_request


def _refuse_unmapped_upscaling(body: UpscaleBody) -> None:
    second = body.extras_upscaler_2_visibility if body.upscaler_2.lower() != NO_UPSCALER else 0
    for name, value in (
        ("gfpgan_visibility", body.gfpgan_visibility),
        ("codeformer_visibility", body.codeformer_visibility),
        ("upscaler_2", second),
    ):
        if value:
            raise UserError(f"{name} has no counterpart in Darkroom: leave it out.")


async def _read_image(request: web.Request, attended_request: AttendedRequest, target: TargetSize) -> str:
    (picture,) = await read_pictures(request, attended_request)
    task = attended_request.views[0].task
    factor = task.factor if isinstance(task, UpscaleTask) else 1
    size = target.find_size(picture.width // factor, picture.height // factor)
    return encode_base64(await asyncio.to_thread(resize_png, picture.png, size, crops=target.crops))


async def invert_mask(loader: InitImageLoader, member: Member, mask: bytes) -> bytes:
    """Return a mask with black and white exchanged. The sandbox decodes it first. Raises `UserError`."""
    decoded = await loader.load_upload(member, mask)
    return await asyncio.to_thread(_invert, decoded.png)


def _invert(png: bytes) -> bytes:
    return encode_image(ImageOps.invert(decode_image(png).convert("L")), "PNG")


def resize_png(png: bytes, size: tuple[int, int], *, crops: bool) -> bytes:
    """Return a picture in that size, with its recipe; `crops`: what does not fit its shape is cut off. CPU-bound."""
    with Image.open(io.BytesIO(png)) as picture:
        if picture.size == size:
            return png
    pixels = decode_image(png)
    fitted = ImageOps.fit(pixels, size, Image.Resampling.LANCZOS) if crops else resize_image(pixels, size)
    return encode_image(fitted, "PNG", text=read_recipe_text(png))

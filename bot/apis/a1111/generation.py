"""`POST /sdapi/v1/txt2img` and `/img2img`: pictures in the answer, as soon as they are finished."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from typing import Any

import msgspec
from aiohttp import web

from bot.apis.a1111.bodies import ImageToImageBody, TextToImageBody
from bot.apis.a1111.control_units import read_unit_pictures, read_units
from bot.apis.a1111.errors import answer_missing
from bot.apis.a1111.models import choose_profile
from bot.apis.a1111.open_requests import OPEN_REQUESTS, OpenRequest
from bot.apis.a1111.picture_options import make_picture_options
from bot.apis.a1111.pictures import invert_mask
from bot.apis.a1111.result_fields import DrawnImage, describe_images
from bot.domain.errors import UserError
from bot.jobs.admission import draw_seed
from bot.jobs.attended_requests import AttendedRequest, DrawnPicture, FeedClosed, PictureRequest, PicturesMissing
from bot.jobs.init_images import InitImages
from bot.pictures.image_codec import read_recipe_text
from bot.web.attendance import admit_attended, read_pictures
from bot.web.base64_pictures import decode_picture, encode_base64
from bot.web.middleware import member_of
from bot.web.request_body import read_picture_body
from bot.web.sse import SERVICES
from engine.contract import Recipe, settle_amendments

PICTURE_FIELDS = ("init_images", "mask")


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
        mask = await invert_mask(request.app[SERVICES].init_image_loader, member_of(request), mask)
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
    answer: dict[str, Any] = {
        "images": [encode_base64(each.png) for each in pictures] if body.send_images is not False else [],
        "parameters": msgspec.to_builtins(body),
        "info": json.dumps(describe_images(images, body.prompt or "", body.batch_size or 1, started)),
    }
    return msgspec.json.encode(answer)

"""`/sdapi/v1/extra-single-image` and `/extra-batch-images`: enlarges uploaded pictures, each as a job."""

from __future__ import annotations

import asyncio
import time
from contextlib import AsyncExitStack
from dataclasses import dataclass

from aiohttp import web

from bot.apis.a1111.bodies import BatchUpscaleBody, SingleUpscaleBody, UpscaleBody
from bot.apis.a1111.errors import answer_missing
from bot.apis.a1111.names import NO_UPSCALER, choose_upscaler
from bot.apis.a1111.open_requests import OPEN_REQUESTS, OpenRequest
from bot.apis.a1111.pictures import resize_png
from bot.domain.errors import UserError
from bot.jobs.attended_requests import AttendedRequest, FeedClosed, PicturesMissing
from bot.web.attendance import attend_accepted, read_pictures
from bot.web.base64_pictures import decode_picture, encode_base64
from bot.web.middleware import member_of
from bot.web.request_body import read_picture_body
from bot.web.sse import SERVICES
from bot.web.submission import destination_of
from engine.contract import MAX_COUNT, UpscaleTask

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
            attended_request = await _admit(request, stack, body, body.image)
            target = make_target(body)
        del body
        try:
            image = await _read_image(request, attended_request, target)
        except (PicturesMissing, FeedClosed) as missing:
            return answer_missing(missing)
    return web.json_response({"image": image, "html_info": ""})


async def enlarge_pictures(request: web.Request) -> web.Response:
    """Enlarge up to four pictures, and return them in their order."""
    async with AsyncExitStack() as stack:
        async with read_picture_body(request, BatchUpscaleBody) as body:
            if not 1 <= len(body.imageList) <= MAX_COUNT:
                raise UserError(f"One to {MAX_COUNT} pictures are enlarged at once, not {len(body.imageList)}.")
            attended_requests = [await _admit(request, stack, body, each.data) for each in body.imageList]
            target = make_target(body)
        del body
        try:
            images = [await _read_image(request, attended_request, target) for attended_request in attended_requests]
        except (PicturesMissing, FeedClosed) as missing:
            return answer_missing(missing)
    return web.json_response({"images": images, "html_info": ""})


def make_target(body: UpscaleBody) -> TargetSize:
    """Return the size that a request asks for."""
    box = (body.upscaling_resize_w, body.upscaling_resize_h) if body.resize_mode == 1 else None
    return TargetSize(body.upscaling_resize, box, body.upscaling_crop)


async def _admit(request: web.Request, stack: AsyncExitStack, body: UpscaleBody, picture: str) -> AttendedRequest:
    """Admit the job of one picture, until the stack closes."""
    _refuse_unmapped(body)
    services = request.app[SERVICES]
    member = member_of(request)
    accepted = await services.upload_upscaler.upscale(
        await asyncio.to_thread(decode_picture, picture),
        make_target(body).find_factor,
        choose_upscaler(body.upscaler_1),
        member,
        destination_of(request),
    )
    attended_request = await stack.enter_async_context(attend_accepted(request, [accepted], with_previews=False))
    stack.enter_context(request.app[OPEN_REQUESTS].note(member.id, OpenRequest(attended_request, KIND, time.time())))
    return attended_request


def _refuse_unmapped(body: UpscaleBody) -> None:
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

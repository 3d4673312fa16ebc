"""`/sdapi/v1/png-info` and `/interrogate`: how a picture was made, and which prompt fits it."""

from __future__ import annotations

import asyncio

from aiohttp import web

from bot.apis.a1111.bodies import InterrogateBody, PictureBody
from bot.apis.a1111.models import choose_profile
from bot.apis.a1111.result_fields import parse_parameters
from bot.domain.errors import UserError
from bot.domain.feature import PromptSuggester
from bot.web.base64_pictures import decode_picture
from bot.web.media import wait_while_connected
from bot.web.middleware import member_of
from bot.web.request_body import read_picture_body
from bot.web.sse import SERVICES

NO_SUGGESTIONS = "This Darkroom suggests no prompts for pictures."


async def read_png_info(request: web.Request) -> web.Response:
    """Return the parameters that a picture carries: as text, and by their names. Empty for a picture without them."""
    async with read_picture_body(request, PictureBody) as body:
        loader = request.app[SERVICES].init_image_loader
        picture = await asyncio.to_thread(decode_picture, body.image)
        text = await loader.read_recipe_text(member_of(request), picture)
    items = {"parameters": text} if text else {}
    return web.json_response({"info": text, "items": items, "parameters": parse_parameters(text)})


async def interrogate(request: web.Request) -> web.Response:
    """Return the prompt with which the caller's model denoises a picture best, which takes seconds."""
    services = request.app[SERVICES]
    suggester = next(iter(services.list_all(PromptSuggester)), None)
    if suggester is None:
        raise UserError(NO_SUGGESTIONS, 404)
    async with read_picture_body(request, InterrogateBody) as body:
        picture = await asyncio.to_thread(decode_picture, body.image)
    del body
    member = member_of(request)
    profile = await choose_profile(services, member)
    prompts = await wait_while_connected(request, suggester.list_prompts(picture, member, profile.name))
    return web.json_response({"caption": prompts[0] if prompts else ""})

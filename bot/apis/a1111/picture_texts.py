"""`/sdapi/v1/png-info` and `/interrogate`: how a picture was made, and which prompt fits it."""

from __future__ import annotations

import asyncio

from aiohttp import web

from bot.apis.a1111.bodies import InterrogateBody, PictureBody
from bot.apis.a1111.models import choose_profile
from bot.apis.a1111.result_fields import parse_parameters
from bot.web.base64_pictures import decode_picture
from bot.web.media import wait_while_connected
from bot.web.middleware import member_of
from bot.web.request_body import read_picture_body
from bot.web.sse import SERVICES


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
    async with read_picture_body(request, InterrogateBody) as body:
        picture = await asyncio.to_thread(decode_picture, body.image)
    del body
    member = member_of(request)
    profile = await choose_profile(request.app[SERVICES], member)
    search = request.app[SERVICES].image_to_prompt.suggest_prompts(picture, member, profile.name)
    result = await wait_while_connected(request, search)
    return web.json_response({"caption": result.prompts[0].prompt if result.prompts else ""})

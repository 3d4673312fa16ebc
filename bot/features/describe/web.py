"""`POST /api/describe`: suggests prompts for a picture."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import msgspec
from aiohttp import web

from bot.domain.errors import UserError
from bot.features.describe.service import ImageToPrompt, ScoredPrompt
from bot.web.media import wait_while_connected
from bot.web.middleware import member_of
from bot.web.request_body import FormFiles, read_form
from bot.web.routes import Route, Shape, answer_json
from bot.web.sse import SERVICES


class Suggestions(msgspec.Struct, frozen=True):
    """Prompts for a picture, the best first."""

    model: str
    tried_texts: int
    prompts: Sequence[ScoredPrompt]
    sentence: str
    notes: Sequence[str]


class DescribeBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The part `request` of the form, beside one part `picture`. Without a model, the default one is used."""

    model: Annotated[str, msgspec.Meta(max_length=64)] | None = None


async def describe_picture(request: web.Request) -> web.Response:
    """Return prompts for the picture, which takes seconds. The search ends when the client goes."""
    # other forms may be sent while this picture is scored: scoring has its own queue
    async with read_form(request, DescribeBody) as (body, files):
        if len(files.pictures) != 1 or files != FormFiles(files.pictures):
            raise UserError("The form needs one part `picture`, beside `request`.", 400)
    member = member_of(request)
    image_to_prompt = request.app[SERVICES].get(ImageToPrompt)
    search = image_to_prompt.suggest_prompts(files.pictures[0], member, body.model)
    result = await wait_while_connected(request, search)
    return answer_json(msgspec.convert(result, Suggestions, from_attributes=True))


SHAPE = Shape(Suggestions, body=DescribeBody, files=("picture",))
ROUTES = (Route("POST", "/api/describe", describe_picture, "describe", SHAPE),)

"""`POST /api/describe`: suggests prompts for a picture."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import msgspec
from aiohttp import web

from bot.desk.describing import Describing
from bot.refused import Refused
from bot.web.body import form_of
from bot.web.door import member_of

DESCRIBING = web.AppKey("describing", Describing)


class Question(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The part `order` of the form, beside one part `picture`. Without a model, the default one is used."""

    model: Annotated[str, msgspec.Meta(max_length=64)] | None = None


def routes() -> list[web.RouteDef]:
    return [web.post("/api/describe", describe)]


async def describe(request: web.Request) -> web.Response:
    """Return prompts for the picture, which takes seconds."""
    said, picture = await _asked(request)
    found = await request.app[DESCRIBING].describe(picture, member_of(request), said.model)
    prompts = [asdict(one) for one in found.words]
    return web.json_response(
        {"model": found.model, "tried": found.tried, "prompts": prompts, "sentence": found.sentence,
         "notes": list(found.notes)}
    )  # fmt: skip


async def _asked(request: web.Request) -> tuple[Question, bytes]:
    """Read the form. Other forms may be sent while this picture is scored: scoring has its own queue."""
    async with form_of(request, Question) as (said, brought):
        if len(brought.pictures) != 1 or brought.mask is not None:
            raise Refused("The form needs one part `picture`, beside `order`.", 400)
        return said, brought.pictures[0]

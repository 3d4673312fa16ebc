"""The HTTP API of edits: inpaint, zoom out, pan and branch from a finished picture.

Every decision is the studio's. Pictures count from 1, as on the buttons.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from aiohttp import web

from bot.refused import Refused
from bot.web.api import key_of, made_of, place_of
from bot.web.body import body_of, form_of
from bot.web.door import member_of
from bot.web.live import STUDIO, permitted
from bot.web.prints import index_of


class Edit(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The part `order` of `POST /api/jobs/{id}/edit/{n}`, beside the part `mask`. Without a prompt: the old one."""

    prompt: str | None = None
    strength: Annotated[float, msgspec.Meta(ge=0.05, le=1)] | None = None


class Zoom(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body of `POST /api/jobs/{id}/zoom/{n}`. `square`: until the picture is square, whatever the factor."""

    factor: float = 2.0
    square: bool = False


class Pan(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body of `POST /api/jobs/{id}/pan/{n}`."""

    direction: Literal["left", "right", "up", "down"]


class Branch(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body of `POST /api/jobs/{id}/branch/{n}`. The options mean the same as the prompt's flags."""

    step: Annotated[int, msgspec.Meta(ge=1, le=1000)]
    prompt: str | None = None
    steps: int | None = None
    seed: int | None = None
    guidance: float | None = None
    count: int | None = None
    negative: str | None = None
    exact: bool = False

    def options(self) -> dict[str, Any]:
        """Return the options that the request sets."""
        said = {name: getattr(self, name) for name in ("steps", "seed", "guidance", "count", "negative")}
        return {name: value for name, value in said.items() if value is not None}


def routes() -> list[web.RouteDef]:
    job = "/api/jobs/{id}"
    return [
        web.post(job + "/edit/{n}", edit),
        web.post(job + "/zoom/{n}", zoom),
        web.post(job + "/pan/{n}", pan),
        web.get(job + "/branch/{n}", steps),
        web.post(job + "/branch/{n}", branch),
    ]


async def edit(request: web.Request) -> web.Response:
    """Inpaint a picture where the mask is white."""
    view, index = await permitted(request, "edit"), index_of(request)
    async with form_of(request, Edit) as (said, brought):
        if brought.mask is None or brought.pictures:
            raise Refused("The form needs a part `mask`: white where the picture shall be drawn anew.", 400)
        made = await request.app[STUDIO].edit(
            view.id, index, brought.mask, member_of(request), place_of(request),
            text=said.prompt, strength=said.strength, key=key_of(request),
        )  # fmt: skip
    return made_of(made)


async def zoom(request: web.Request) -> web.Response:
    """Zoom out: outpaint around the picture."""
    view, index = await permitted(request, "zoom"), index_of(request)
    said, who = await body_of(request, Zoom), (member_of(request), place_of(request))
    if said.square:
        return made_of(await request.app[STUDIO].square(view.id, index, *who, key=key_of(request)))
    return made_of(await request.app[STUDIO].zoom(view.id, index, said.factor, *who, key=key_of(request)))


async def pan(request: web.Request) -> web.Response:
    """Outpaint beyond one edge of the picture."""
    view, index = await permitted(request, "pan"), index_of(request)
    said, who = await body_of(request, Pan), (member_of(request), place_of(request))
    return made_of(await request.app[STUDIO].pan(view.id, index, said.direction, *who, key=key_of(request)))


async def steps(request: web.Request) -> web.Response:
    """Return the steps to branch from."""
    view, index = await permitted(request, "branch"), index_of(request)
    return web.json_response({"steps": list(await request.app[STUDIO].steps(view.id, index, member_of(request)))})


async def branch(request: web.Request) -> web.Response:
    """Branch from one of these steps."""
    view, index = await permitted(request, "branch"), index_of(request)
    said = await body_of(request, Branch)
    made = await request.app[STUDIO].branch(
        view.id, index, said.step, member_of(request), place_of(request),
        text=said.prompt, exact=said.exact, key=key_of(request), **said.options(),
    )  # fmt: skip
    return made_of(made)

"""The HTTP API of finished pictures: vary, upscale, inpaint, zoom out, pan and branch.

The job service makes every decision. Pictures count from 1, as on the buttons.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from aiohttp import web

from bot.domain.errors import UserError
from bot.web.api.jobs import Count, Evaluations, Guidance, Seed, StepCount, accepts, submit
from bot.web.media import picture_index_of
from bot.web.middleware import member_of
from bot.web.request_body import FormFiles, read_body, read_form
from bot.web.routes import Route, Shape, answer_json
from bot.web.sse import SERVICES, require_permitted


class EditBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The part `request` of `POST /api/jobs/{id}/edit/{n}`, beside the part `mask`. Without a prompt: the old one."""

    prompt: str | None = None
    strength: Annotated[float, msgspec.Meta(ge=0.05, le=1)] | None = None


class ZoomBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body of `POST /api/jobs/{id}/zoom/{n}`. `square`: until the picture is square, whatever the factor."""

    factor: float = 2.0
    square: bool = False


class PanBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body of `POST /api/jobs/{id}/pan/{n}`."""

    direction: Literal["left", "right", "up", "down"]


BRANCH_OPTIONS = ("steps", "evaluations", "seed", "guidance", "count", "negative")


class BranchBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body of `POST /api/jobs/{id}/branch/{n}`. The options mean the same as the prompt's flags.

    `undo`: as a steered picture was before that step.
    """

    step: Annotated[int, msgspec.Meta(ge=1, le=1000)]
    prompt: str | None = None
    steps: StepCount = None
    evaluations: Evaluations = None
    seed: Seed = None
    guidance: Guidance = None
    count: Count = None
    negative: str | None = None
    raw: bool | None = None
    exact: bool = False
    undo: bool = False

    def options(self) -> dict[str, Any]:
        """Return the options that the request sets."""
        values = {name: getattr(self, name) for name in BRANCH_OPTIONS}
        values["raw"] = self.raw or None
        return {name: value for name, value in values.items() if value is not None}


class Steps(msgspec.Struct, frozen=True):
    """The steps of a picture to branch from."""

    steps: list[int]


async def vary(request: web.Request) -> web.Response:
    """V1 to V4: make variations of a picture."""
    view = await require_permitted(request, "vary")
    return await submit(request, request.app[SERVICES].variations.vary, view.id, picture_index_of(request))


async def upscale(request: web.Request) -> web.Response:
    """U1 to U4: upscale a picture."""
    view = await require_permitted(request, "upscale")
    return await submit(request, request.app[SERVICES].variations.upscale, view.id, picture_index_of(request))


async def edit(request: web.Request) -> web.Response:
    """Inpaint a picture where the mask is white."""
    view = await require_permitted(request, "edit")
    index = picture_index_of(request)
    service = request.app[SERVICES].edits
    async with read_form(request, EditBody) as (body, files):
        if files.mask is None or files != FormFiles(mask=files.mask):
            raise UserError("The form needs a part `mask`: white where the picture is redrawn.", 400)
        options = {"text": body.prompt, "strength": body.strength}
        return await submit(request, service.edit, view.id, index, files.mask, **options)


async def zoom(request: web.Request) -> web.Response:
    """Zoom out: outpaint around the picture."""
    view = await require_permitted(request, "zoom")
    index = picture_index_of(request)
    body = await read_body(request, ZoomBody)
    service = request.app[SERVICES].edits
    if body.square:
        return await submit(request, service.zoom_to_square, view.id, index)
    return await submit(request, service.zoom, view.id, index, body.factor)


async def pan(request: web.Request) -> web.Response:
    """Outpaint beyond one edge of the picture."""
    view = await require_permitted(request, "pan")
    index = picture_index_of(request)
    body = await read_body(request, PanBody)
    return await submit(request, request.app[SERVICES].edits.pan, view.id, index, body.direction)


async def list_steps(request: web.Request) -> web.Response:
    """Return the steps to branch from."""
    view = await require_permitted(request, "branch")
    index = picture_index_of(request)
    steps = await request.app[SERVICES].edits.list_branch_steps(view.id, index, member_of(request))
    return answer_json(Steps(list(steps)))


async def branch(request: web.Request) -> web.Response:
    """Branch from one of these steps."""
    view = await require_permitted(request, "branch")
    index = picture_index_of(request)
    body = await read_body(request, BranchBody)
    options = {"text": body.prompt, "exact": body.exact, "is_undo": body.undo, **body.options()}
    return await submit(request, request.app[SERVICES].edits.branch, view.id, index, body.step, **options)


TITLE = "Continue from a picture"
BASE = "/api/jobs/{id}"
ROUTES = (
    Route("POST", f"{BASE}/vary/{{n}}", vary, "vary", accepts()),
    Route("POST", f"{BASE}/upscale/{{n}}", upscale, "upscale", accepts()),
    Route("POST", f"{BASE}/edit/{{n}}", edit, "edit", accepts(EditBody, "mask")),
    Route("POST", f"{BASE}/zoom/{{n}}", zoom, "zoom", accepts(ZoomBody)),
    Route("POST", f"{BASE}/pan/{{n}}", pan, "pan", accepts(PanBody)),
    Route("GET", f"{BASE}/branch/{{n}}", list_steps, "job", Shape(Steps)),
    Route("POST", f"{BASE}/branch/{{n}}", branch, "branch", accepts(BranchBody)),
)

"""The HTTP API of edits: inpaint, zoom out, pan and branch from a finished picture.

The job service makes every decision. Pictures count from 1, as on the buttons.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from aiohttp import web

from bot.domain.errors import UserError
from bot.web.api.jobs import Count, Evaluations, Guidance, Seed, Steps, created_response
from bot.web.media import picture_index_of
from bot.web.middleware import member_of
from bot.web.request_body import FormFiles, destination_of, idempotency_key_of, read_body, read_form
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
    steps: Steps = None
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


def routes() -> list[web.RouteDef]:
    base = "/api/jobs/{id}"
    return [
        web.post(base + "/edit/{n}", edit),
        web.post(base + "/zoom/{n}", zoom),
        web.post(base + "/pan/{n}", pan),
        web.get(base + "/branch/{n}", list_steps),
        web.post(base + "/branch/{n}", branch),
    ]


async def edit(request: web.Request) -> web.Response:
    """Inpaint a picture where the mask is white."""
    view = await require_permitted(request, "edit")
    index = picture_index_of(request)
    async with read_form(request, EditBody) as (body, files):
        if files.mask is None or files != FormFiles(mask=files.mask):
            raise UserError("The form needs a part `mask`: white where the picture is redrawn.", 400)
        accepted_job = await request.app[SERVICES].edits.edit(
            view.id,
            index,
            files.mask,
            member_of(request),
            destination_of(request),
            text=body.prompt,
            strength=body.strength,
            key=idempotency_key_of(request),
        )
    return created_response(accepted_job)


async def zoom(request: web.Request) -> web.Response:
    """Zoom out: outpaint around the picture."""
    view = await require_permitted(request, "zoom")
    index = picture_index_of(request)
    body = await read_body(request, ZoomBody)
    context = (member_of(request), destination_of(request))
    if body.square:
        return created_response(
            await request.app[SERVICES].edits.zoom_to_square(view.id, index, *context, key=idempotency_key_of(request))
        )
    return created_response(
        await request.app[SERVICES].edits.zoom(view.id, index, body.factor, *context, key=idempotency_key_of(request))
    )


async def pan(request: web.Request) -> web.Response:
    """Outpaint beyond one edge of the picture."""
    view = await require_permitted(request, "pan")
    index = picture_index_of(request)
    body = await read_body(request, PanBody)
    context = (member_of(request), destination_of(request))
    return created_response(
        await request.app[SERVICES].edits.pan(view.id, index, body.direction, *context, key=idempotency_key_of(request))
    )


async def list_steps(request: web.Request) -> web.Response:
    """Return the steps to branch from."""
    view = await require_permitted(request, "branch")
    index = picture_index_of(request)
    return web.json_response(
        {"steps": list(await request.app[SERVICES].edits.list_branch_steps(view.id, index, member_of(request)))}
    )


async def branch(request: web.Request) -> web.Response:
    """Branch from one of these steps."""
    view = await require_permitted(request, "branch")
    index = picture_index_of(request)
    body = await read_body(request, BranchBody)
    accepted_job = await request.app[SERVICES].edits.branch(
        view.id,
        index,
        body.step,
        member_of(request),
        destination_of(request),
        text=body.prompt,
        exact=body.exact,
        is_undo=body.undo,
        key=idempotency_key_of(request),
        **body.options(),
    )
    return created_response(accepted_job)

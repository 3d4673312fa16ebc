"""The HTTP API of jobs: submit, read, pause, cancel, vary, upscale. Every error is one sentence with its status.

The job service makes every decision about a job. Pictures count from 1, as on the buttons.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import msgspec
from aiohttp import web

from bot.domain.dto import AcceptedJob
from bot.domain.errors import UserError
from bot.jobs.init_images import ImageInput, InitImages, JobImageRef
from bot.prompt.concepts import MAX_JOBS
from bot.prompt.flag_values import MAX_CLIP_LAYER, MIN_FRAMES, MIN_STRENGTH
from bot.web import serializers
from bot.web.media import find_picture, picture_index_of
from bot.web.middleware import GUILD, HOST_POLICY, SESSION_TOKENS, TERMINAL_ID, VISITOR, member_of
from bot.web.request_body import FormFiles, destination_of, idempotency_key_of, read_body, read_form
from bot.web.sse import JOB_CACHE, SERVICES, require_permitted, require_stoppable, require_visible, workers_payload
from engine.contract import MAX_CONTROLS, MAX_COUNT, MAX_INTERPOLATION_FRAMES, MAX_REFERENCES, MAX_STEPS


def describe_range(minimum: float, maximum: float) -> msgspec.Meta:
    """Return a range for the API's description alone: the grammar refuses other values, by a sentence with the flag."""
    return msgspec.Meta(extra_json_schema={"minimum": minimum, "maximum": maximum})


Steps = Annotated[int | None, describe_range(1, MAX_STEPS)]
Evaluations = Annotated[
    int | str | None, msgspec.Meta(description="At how many of the steps the network is asked: a number, all or auto.")
]
Seed = Annotated[int | None, describe_range(0, 2**32 - 1)]
Guidance = Annotated[float | None, describe_range(1, 30)]
Count = Annotated[int | None, describe_range(1, MAX_COUNT)]
PictureName = Annotated[str, msgspec.Meta(extra_json_schema={"pattern": f"^[0-9A-Za-z]+/[1-{MAX_COUNT}]$"})]
NOT_OPTIONS = ("prompt", "exact", "init_images", "weights", "control_images", "reference_images")


class PriorityBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body of `POST /api/jobs/{id}/priority`."""

    weight: Annotated[float, msgspec.Meta(gt=0, le=1000)]


class InvitationBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body of `POST /api/invitations`, which may be left out."""

    for_operator: bool = False


class JobBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body of `POST /api/jobs`. The options mean the same as the prompt's flags, and override them."""

    prompt: str
    steps: Steps = None
    evaluations: Evaluations = None
    draft: bool | None = None
    seed: Seed = None
    guidance: Guidance = None
    interval: str | None = None
    sampler: str | None = None
    lora: str | list[str] | None = None
    control: str | list[str] | None = None
    reference: str | list[str] | None = None
    vae: str | None = None
    clip_skip: Annotated[int | None, describe_range(1, MAX_CLIP_LAYER)] = None
    model: str | None = None
    count: Count = None
    ar: str | None = None
    best: bool | None = None
    fast: bool | None = None
    turbo: bool | None = None
    negative: str | None = None
    strength: Annotated[float | None, describe_range(MIN_STRENGTH, 1)] = None
    edit: bool | None = None
    stop_at: Annotated[float | None, describe_range(10, 100)] = None
    tile: bool | None = None
    raw: bool | None = None
    mix: bool | None = None
    chaos: Annotated[float | None, describe_range(0, 100)] = None
    repeat: Annotated[int | None, describe_range(1, MAX_JOBS)] = None
    quality: Annotated[float | None, describe_range(0.25, 4)] = None
    walk: str | None = None
    frames: Annotated[int | None, describe_range(MIN_FRAMES, MAX_INTERPOLATION_FRAMES)] = None
    exact: bool = False
    init_images: Annotated[list[PictureName], msgspec.Meta(max_length=5)] = []
    weights: Annotated[list[float], msgspec.Meta(max_length=5)] = []
    control_images: Annotated[list[PictureName], msgspec.Meta(max_length=MAX_CONTROLS)] = []
    reference_images: Annotated[list[PictureName], msgspec.Meta(max_length=MAX_REFERENCES)] = []

    def options(self) -> dict[str, Any]:
        """Return the flags that the request sets."""
        values = msgspec.structs.asdict(self)
        return {name: value for name, value in values.items() if name not in NOT_OPTIONS and value is not None}


def routes() -> list[web.RouteDef]:
    base = "/api/jobs/{id}"
    return [
        web.get("/healthz", healthz),
        web.get("/api/workers", get_workers),
        web.post("/api/invitations", create_invitation),
        web.delete("/api/invitations", void_invitations),
        web.get("/api/jobs", list_jobs),
        web.post("/api/jobs", create_jobs),
        web.get(base, get_job),
        web.delete(base, cancel_job),
        web.post(base + "/pause", pause_job),
        web.post(base + "/resume", resume_job),
        web.post(base + "/priority", set_priority),
        web.post(base + "/vary/{n}", vary),
        web.post(base + "/upscale/{n}", upscale),
        web.post(base + "/reroll", reroll),
        web.post(base + "/finish", finish),
        web.post(base + "/walk", interpolate),
    ]


async def healthz(request: web.Request) -> web.Response:
    """Return that the server is up, and the number of workers."""
    workers = request.app[SERVICES].live_workers()
    return web.json_response({"status": "ok", "workers": len(workers), "app": "darkroom"})


async def get_workers(request: web.Request) -> web.Response:
    """Return the live workers."""
    return web.json_response(workers_payload(request.app))


async def create_invitation(request: web.Request) -> web.Response:
    """Make a one-time address for one more guest. The terminal may ask for one of the operator's, too."""
    body = await read_body(request, InvitationBody) if request.can_read_body else InvitationBody()
    if body.for_operator:
        if request[VISITOR].id != TERMINAL_ID:
            raise UserError("Only the terminal may do this: `darkroom visitors invite`.", 403)
        token = request.app[SESSION_TOKENS].create_invitation(for_operator=True)
        return web.json_response({"path": f"/?token={token}"}, status=201)
    if request.app[HOST_POLICY].is_local:
        raise UserError("Only this computer can reach the chatroom, so there are no invitations.", 422)
    if not request[VISITOR].is_operator:
        raise UserError("Only the operator may invite guests.", 403)
    token = request.app[SESSION_TOKENS].create_invitation()
    return web.json_response({"path": f"/?token={token}"}, status=201)


async def void_invitations(request: web.Request) -> web.Response:
    """Make every one-time address that nobody has used worthless."""
    if not request[VISITOR].is_operator:
        raise UserError("Only the operator may void invitations.", 403)
    request.app[SESSION_TOKENS].void_invitations()
    return web.json_response({"sentence": "One-time addresses that nobody has used are void."})


async def list_jobs(request: web.Request) -> web.Response:
    """Return the running jobs, the waiting ones in their order, and the last finished ones."""
    services = request.app[SERVICES]
    reader = member_of(request)
    queue = await services.job_views.load_queue(GUILD)
    recent = await services.job_views.load_recent(GUILD)
    queued_ids = {view.id for view in queue}
    ended_views = [view for view in recent if view.id not in queued_ids]
    views = [view for view in [*queue, *ended_views] if not view.is_hidden_from(reader.id)]
    body = request.app[JOB_CACHE].encode_list(views, reader)
    return web.Response(body=body, content_type="application/json", charset="utf-8")


async def create_jobs(request: web.Request) -> web.Response:
    """Submit a prompt: one job, or several where it holds permutations. A form may carry pictures."""
    async with read_form(request, JobBody) as (body, files):
        accepted_jobs = await request.app[SERVICES].jobs.imagine(
            body.prompt,
            member_of(request),
            destination_of(request),
            key=idempotency_key_of(request),
            is_exact=body.exact,
            init_images=await _init_images(request, body, files),
            **body.options(),
        )
    payload = serializers.serialize_all_accepted(accepted_jobs)
    return web.json_response(payload, status=201, headers={"Location": payload["url"]})


async def _init_images(request: web.Request, body: JobBody, files: FormFiles) -> InitImages | None:
    """Return the request's init, control and reference pictures, not decoded yet.

    Refuse finished pictures that this visitor may not use.
    """
    pictures, controls, references = [
        await _collect_pictures(request, uploads, names)
        for uploads, names in (
            (files.pictures, body.init_images),
            (files.controls, body.control_images),
            (files.references, body.reference_images),
        )
    ]
    if not (pictures or files.mask or controls or references):
        return None
    return InitImages(pictures, files.mask, tuple(body.weights), controls, references)


async def _collect_pictures(
    request: web.Request, uploads: tuple[bytes, ...], names: Sequence[str]
) -> tuple[ImageInput, ...]:
    """Return uploaded pictures, or finished ones by their names. Refuse both at once."""
    if uploads and names:
        raise UserError("Use uploaded pictures or finished ones, not both at once.")
    return uploads or tuple([JobImageRef(*await find_picture(request, name)) for name in names])


async def get_job(request: web.Request) -> web.Response:
    """Return one job."""
    return web.json_response(serializers.serialize_job(await require_visible(request), member_of(request)))


async def cancel_job(request: web.Request) -> web.Response:
    """Cancel a job that this visitor may stop."""
    job = await require_stoppable(request)
    sentence = await request.app[SERVICES].job_control.cancel(job, member_of(request))
    return web.json_response({"id": job, "sentence": sentence})


async def pause_job(request: web.Request) -> web.Response:
    """Pause a running job at its step, for a quarter of an hour at most."""
    job = await require_stoppable(request, "pause")
    sentence = await request.app[SERVICES].job_control.pause(job, member_of(request))
    return web.json_response({"id": job, "sentence": sentence})


async def resume_job(request: web.Request) -> web.Response:
    """Resume a paused job."""
    job = await require_stoppable(request, "pause")
    sentence = await request.app[SERVICES].job_control.resume(job, member_of(request))
    return web.json_response({"id": job, "sentence": sentence})


async def set_priority(request: web.Request) -> web.Response:
    """Set a running job's share of its author's rows; only for the operator."""
    if not request[VISITOR].is_operator:
        raise UserError("Only the operator may set priorities.", 403)
    job = request.match_info["id"]
    body = await read_body(request, PriorityBody)
    sentence = await request.app[SERVICES].job_control.set_priority(job, body.weight)
    return web.json_response({"id": job, "sentence": sentence})


async def vary(request: web.Request) -> web.Response:
    """V1 to V4: make variations of a picture."""
    view = await require_permitted(request, "vary")
    index = picture_index_of(request)
    accepted_job = await request.app[SERVICES].variations.vary(
        view.id, index, member_of(request), destination_of(request), key=idempotency_key_of(request)
    )
    return created_response(accepted_job)


async def upscale(request: web.Request) -> web.Response:
    """U1 to U4: upscale a picture."""
    view = await require_permitted(request, "upscale")
    index = picture_index_of(request)
    accepted_job = await request.app[SERVICES].variations.upscale(
        view.id, index, member_of(request), destination_of(request), key=idempotency_key_of(request)
    )
    return created_response(accepted_job)


async def reroll(request: web.Request) -> web.Response:
    """Run the same prompt with another seed."""
    view = await require_permitted(request, "reroll")
    accepted_job = await request.app[SERVICES].variations.reroll(
        view.id, member_of(request), destination_of(request), key=idempotency_key_of(request)
    )
    return created_response(accepted_job)


async def finish(request: web.Request) -> web.Response:
    """Draw a draft again with an evaluation at every step."""
    view = await require_permitted(request, "finish")
    accepted_job = await request.app[SERVICES].variations.finish(
        view.id, member_of(request), destination_of(request), key=idempotency_key_of(request)
    )
    return created_response(accepted_job)


async def interpolate(request: web.Request) -> web.Response:
    """Interpolate from each picture to the next, as several jobs."""
    view = await require_permitted(request, "walk")
    services = request.app[SERVICES]
    accepted_jobs = await services.variations.interpolate_pictures(
        view.id, member_of(request), destination_of(request), key=idempotency_key_of(request)
    )
    payload = serializers.serialize_all_accepted(accepted_jobs)
    return web.json_response(payload, status=201, headers={"Location": payload["url"]})


def created_response(accepted_job: AcceptedJob) -> web.Response:
    payload = serializers.serialize_all_accepted([accepted_job])
    return web.json_response(payload, status=201, headers={"Location": payload["url"]})

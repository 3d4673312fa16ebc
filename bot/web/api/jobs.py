"""The HTTP API of jobs: submit, read, pause, cancel, vary, upscale. Every error is one sentence with its status.

The job service makes every decision about a job. Pictures count from 1, as on the buttons.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Annotated, Any

import msgspec
from aiohttp import web

from bot.domain.dto import AcceptedJob
from bot.domain.errors import UserError
from bot.jobs.init_images import ImageInput, InitImages, JobImageRef
from bot.prompt.concepts import MAX_JOBS
from bot.prompt.flag_values import MAX_CLIP_LAYER, MIN_FRAMES, MIN_STRENGTH
from bot.web.answers import Accepted, Job, Jobs, Notice, Path, Sentence, Workers, describe_accepted, describe_job
from bot.web.media import find_picture
from bot.web.middleware import GUILD, HOST_POLICY, SESSION_TOKENS, TERMINAL_ID, VISITOR, member_of
from bot.web.request_body import FormFiles, destination_of, idempotency_key_of, read_body, read_form
from bot.web.routes import Route, Shape, answer_json
from bot.web.sse import JOB_CACHE, SERVICES, describe_workers, require_permitted, require_stoppable, require_visible
from engine.contract import MAX_CONTROLS, MAX_COUNT, MAX_INTERPOLATION_FRAMES, MAX_REFERENCES, MAX_STEPS


def describe_range(minimum: float, maximum: float) -> msgspec.Meta:
    """Return a range for the API's description alone: the grammar refuses other values, by a sentence with the flag."""
    return msgspec.Meta(extra_json_schema={"minimum": minimum, "maximum": maximum})


StepCount = Annotated[int | None, describe_range(1, MAX_STEPS)]
Evaluations = Annotated[
    int | str | None, msgspec.Meta(description="At how many of the steps the network is asked: a number, all or auto.")
]
Seed = Annotated[int | None, describe_range(0, 2**32 - 1)]
Guidance = Annotated[float | None, describe_range(1, 30)]
Count = Annotated[int | None, describe_range(1, MAX_COUNT)]
PictureName = Annotated[str, msgspec.Meta(extra_json_schema={"pattern": f"^[0-9A-Za-z]+/[1-{MAX_COUNT}]$"})]
INVITATIONS = "/api/invitations"
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
    steps: StepCount = None
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


class Health(msgspec.Struct, frozen=True):
    """That the server is up, and its number of workers."""

    workers: int
    status: str = "ok"
    app: str = "darkroom"


class WaitReason(msgspec.Struct, frozen=True):
    """Why a job waits. `eta`: seconds until it is done."""

    id: str
    state: str
    wait_reason: str
    jobs_ahead: int | None
    eta: float | None
    step: int


async def healthz(request: web.Request) -> web.Response:
    """Return that the server is up, and the number of workers."""
    return answer_json(Health(len(request.app[SERVICES].live_workers())))


async def get_workers(request: web.Request) -> web.Response:
    """Return the live workers."""
    return answer_json(describe_workers(request.app))


async def create_invitation(request: web.Request) -> web.Response:
    """Make a one-time address for one more guest. The terminal may ask for one of the operator's, too."""
    body = await read_body(request, InvitationBody) if request.can_read_body else InvitationBody()
    if body.for_operator:
        if request[VISITOR].id != TERMINAL_ID:
            raise UserError("Only the terminal may do this: `darkroom visitors invite`.", 403)
        token = request.app[SESSION_TOKENS].create_invitation(for_operator=True)
        return answer_json(Path(f"/?token={token}"), 201)
    if request.app[HOST_POLICY].is_local:
        raise UserError("Only this computer can reach the chatroom, so there are no invitations.", 422)
    if not request[VISITOR].is_operator:
        raise UserError("Only the operator may invite guests.", 403)
    token = request.app[SESSION_TOKENS].create_invitation()
    return answer_json(Path(f"/?token={token}"), 201)


async def void_invitations(request: web.Request) -> web.Response:
    """Make every one-time address that nobody has used worthless."""
    if not request[VISITOR].is_operator:
        raise UserError("Only the operator may void invitations.", 403)
    request.app[SESSION_TOKENS].void_invitations()
    return answer_json(Notice("One-time addresses that nobody has used are void."))


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
        images = await _init_images(request, body, files)
        options = {"is_exact": body.exact, "init_images": images, **body.options()}
        return await submit(request, request.app[SERVICES].jobs.imagine, body.prompt, **options)


async def submit(
    request: web.Request,
    ask: Callable[..., Awaitable[AcceptedJob | Sequence[AcceptedJob]]],
    *arguments: object,
    **options: object,
) -> web.Response:
    """Ask a service for jobs: with these arguments, the visitor, where the jobs are shown, and the request's key."""
    key = idempotency_key_of(request)
    accepted = await ask(*arguments, member_of(request), destination_of(request), key=key, **options)
    answer = describe_accepted([accepted] if isinstance(accepted, AcceptedJob) else accepted)
    return answer_json(answer, 201, {"Location": answer.url})


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
    return answer_json(describe_job(await require_visible(request), member_of(request)))


async def cancel_job(request: web.Request) -> web.Response:
    """Cancel a job that this visitor may stop."""
    job = await require_stoppable(request)
    sentence = await request.app[SERVICES].job_control.cancel(job, member_of(request))
    return answer_json(Sentence(job, sentence))


async def pause_job(request: web.Request) -> web.Response:
    """Pause a running job at its step, for a quarter of an hour at most."""
    job = await require_stoppable(request, "pause")
    sentence = await request.app[SERVICES].job_control.pause(job, member_of(request))
    return answer_json(Sentence(job, sentence))


async def resume_job(request: web.Request) -> web.Response:
    """Resume a paused job."""
    job = await require_stoppable(request, "pause")
    sentence = await request.app[SERVICES].job_control.resume(job, member_of(request))
    return answer_json(Sentence(job, sentence))


async def set_priority(request: web.Request) -> web.Response:
    """Set a running job's share of its author's rows; only for the operator."""
    if not request[VISITOR].is_operator:
        raise UserError("Only the operator may set priorities.", 403)
    job = request.match_info["id"]
    body = await read_body(request, PriorityBody)
    sentence = await request.app[SERVICES].job_control.set_priority(job, body.weight)
    return answer_json(Sentence(job, sentence))


async def reroll(request: web.Request) -> web.Response:
    """Run the same prompt with another seed."""
    view = await require_permitted(request, "reroll")
    return await submit(request, request.app[SERVICES].variations.reroll, view.id)


async def finish(request: web.Request) -> web.Response:
    """Draw a draft again with an evaluation at every step."""
    view = await require_permitted(request, "finish")
    return await submit(request, request.app[SERVICES].variations.finish, view.id)


async def interpolate(request: web.Request) -> web.Response:
    """Interpolate from each picture to the next, as several jobs."""
    view = await require_permitted(request, "walk")
    return await submit(request, request.app[SERVICES].variations.interpolate_pictures, view.id)


async def get_wait_reason(request: web.Request) -> web.Response:
    """Return what only the running bot knows: the reason for the wait, the job's step, and when it will be done.

    For holders of the terminal key, as `darkroom jobs why`: it covers every server's jobs and private ones, since it
    says nothing of their prompts.
    """
    if not request.app[SESSION_TOKENS].is_terminal_key(request.headers.get("Authorization", "")):
        raise UserError("This address needs the terminal key of this machine.", 403)
    view = await request.app[SERVICES].job_views.load_view(request.match_info["id"])
    return answer_json(msgspec.convert(view, WaitReason, from_attributes=True))


def accepts(body: type[msgspec.Struct] | None = None, *files: str) -> Shape:
    """Return the shape of a route that accepts a job."""
    return Shape(Accepted, 201, body, files)


TITLE = "Jobs"
BASE = "/api/jobs/{id}"
JOB_FORM = accepts(JobBody, "picture", "mask", "control", "reference")
ROUTES = (
    Route("GET", "/healthz", healthz, "page", Shape(Health)),
    Route("GET", "/api/workers", get_workers, "job", Shape(Workers)),
    Route("POST", INVITATIONS, create_invitation, "prefer", Shape(Path, 201, InvitationBody, is_optional=True)),
    Route("DELETE", INVITATIONS, void_invitations, "prefer", Shape(Notice)),
    Route("GET", "/api/jobs", list_jobs, "list", Shape(Jobs)),
    Route("POST", "/api/jobs", create_jobs, "imagine", JOB_FORM),
    Route("GET", BASE, get_job, "job", Shape(Job)),
    Route("DELETE", BASE, cancel_job, "cancel", Shape(Sentence)),
    Route("POST", f"{BASE}/pause", pause_job, "pause", Shape(Sentence)),
    Route("POST", f"{BASE}/resume", resume_job, "pause", Shape(Sentence)),
    Route("POST", f"{BASE}/priority", set_priority, "pause", Shape(Sentence, body=PriorityBody)),
    Route("POST", f"{BASE}/reroll", reroll, "reroll", accepts()),
    Route("POST", f"{BASE}/finish", finish, "finish", accepts()),
    Route("POST", f"{BASE}/walk", interpolate, "walk", accepts()),
    Route("GET", f"{BASE}/wait-reason", get_wait_reason, "job", Shape(WaitReason)),
)

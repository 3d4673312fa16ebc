"""The HTTP API of jobs: submit, read, pause, cancel, vary, upscale. Every error is one sentence with its status.

Every decision about a job is the studio's. Pictures count from 1, as on the buttons.
"""

from __future__ import annotations

import hashlib
from typing import Annotated, Any

import msgspec
from aiohttp import web

from bot.desk.bringing import Bring, Finished
from bot.refused import Refused
from bot.views import Place, Ticket
from bot.web import shown
from bot.web.body import Brought, body_of, form_of
from bot.web.door import DOOR, GATE, GUILD, VISITOR, member_of
from bot.web.live import STUDIO, at_work, permitted, visible, within_reach
from bot.web.prints import index_of, shot_of

BESIDES = ("prompt", "exact", "shots", "weights")


class Priority(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body of `POST /api/jobs/{id}/priority`."""

    weight: Annotated[float, msgspec.Meta(gt=0, le=1000)]


class Order(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body of `POST /api/jobs`. The options mean the same as the prompt's flags, and override them."""

    prompt: str
    steps: int | None = None
    seed: int | None = None
    guidance: float | None = None
    interval: str | None = None
    sampler: str | None = None
    lora: str | list[str] | None = None
    model: str | None = None
    count: int | None = None
    ar: str | None = None
    fast: bool | None = None
    negative: str | None = None
    strength: float | None = None
    until: float | None = None
    tile: bool | None = None
    mixed: bool | None = None
    chaos: float | None = None
    repeat: int | None = None
    quality: float | None = None
    walk: str | None = None
    frames: int | None = None
    exact: bool = False
    shots: Annotated[list[str], msgspec.Meta(max_length=5)] = []
    weights: Annotated[list[float], msgspec.Meta(max_length=5)] = []

    def options(self) -> dict[str, Any]:
        """Return the flags that the request sets."""
        said = msgspec.structs.asdict(self)
        return {name: value for name, value in said.items() if name not in BESIDES and value is not None}


def routes() -> list[web.RouteDef]:
    job = "/api/jobs/{id}"
    return [
        web.get("/healthz", healthz),
        web.get("/api/room", room),
        web.post("/api/invitations", invite),
        web.get("/api/jobs", jobs),
        web.post("/api/jobs", imagine),
        web.get(job, one),
        web.delete(job, cancel),
        web.post(job + "/pause", pause),
        web.post(job + "/resume", resume),
        web.post(job + "/priority", prioritise),
        web.post(job + "/vary/{n}", vary),
        web.post(job + "/upscale/{n}", upscale),
        web.post(job + "/reroll", reroll),
        web.post(job + "/walk", walk),
    ]


async def healthz(request: web.Request) -> web.Response:
    """Return that the server is up, and the number of workers."""
    workers = request.app[STUDIO].workers()
    return web.json_response({"status": "ok", "workers": len(workers), "app": "darkroom"})


async def room(request: web.Request) -> web.Response:
    """Return the live workers."""
    return web.json_response(at_work(request.app))


async def invite(request: web.Request) -> web.Response:
    """Make a one-time address for one more visitor, who comes as a guest."""
    if request.app[DOOR].open:
        raise Refused("This room is for this computer only; there is nobody to invite.", 422)
    if not request[VISITOR].owner:
        raise Refused("Only the owner of this room may invite.", 403)
    token = request.app[GATE].invite()
    return web.json_response({"path": f"/?token={token}"}, status=201)


async def jobs(request: web.Request) -> web.Response:
    """Return the running jobs, the waiting ones in their order, and the last finished ones."""
    studio, reader = request.app[STUDIO], member_of(request)
    queue, recent = await studio.queue(GUILD), await studio.recent(GUILD)
    waiting = {view.id for view in queue}
    done = [view for view in recent if view.id not in waiting]
    seen = [view for view in [*queue, *done] if not view.hidden_from(reader.id)]
    return web.json_response({"jobs": [shown.job(view, reader) for view in seen]})


async def imagine(request: web.Request) -> web.Response:
    """Submit a prompt: one job, or several where it holds permutations. A form may carry init images."""
    async with form_of(request, Order) as (order, brought):
        tickets = await request.app[STUDIO].imagine(
            order.prompt, member_of(request), place_of(request), key=key_of(request), exact=order.exact,
            bring=await _brought(request, order, brought), **order.options(),
        )  # fmt: skip
    answer = shown.accepted(tickets)
    return web.json_response(answer, status=201, headers={"Location": answer["url"]})


async def _brought(request: web.Request, order: Order, brought: Brought) -> Bring | None:
    """Return the order's init images, not decoded yet. Refuse finished pictures that this visitor may not use."""
    if not (brought.pictures or brought.mask or order.shots):
        return None
    if brought.pictures and order.shots:
        raise Refused("Use either pictures of your own or finished ones, not both at once.")
    shots = [Finished(*await shot_of(request, named)) for named in order.shots]
    return Bring((*brought.pictures, *shots), brought.mask, tuple(order.weights))


async def one(request: web.Request) -> web.Response:
    """Return one job."""
    return web.json_response(shown.job(await visible(request), member_of(request)))


async def cancel(request: web.Request) -> web.Response:
    """Cancel a job that this visitor may stop."""
    job = await within_reach(request)
    sentence = await request.app[STUDIO].cancel(job, member_of(request))
    return web.json_response({"id": job, "sentence": sentence})


async def pause(request: web.Request) -> web.Response:
    """Pause a running job at its step, for a quarter of an hour at most."""
    job = await within_reach(request, "pause")
    sentence = await request.app[STUDIO].pause(job, member_of(request))
    return web.json_response({"id": job, "sentence": sentence})


async def resume(request: web.Request) -> web.Response:
    """Resume a paused job."""
    job = await within_reach(request, "pause")
    sentence = await request.app[STUDIO].pause(job, member_of(request), on=False)
    return web.json_response({"id": job, "sentence": sentence})


async def prioritise(request: web.Request) -> web.Response:
    """Set a running job's share of its author's rows; only for the room's owner."""
    if not request[VISITOR].owner:
        raise Refused("Only the owner of this room may set priorities.", 403)
    job, said = request.match_info["id"], await body_of(request, Priority)
    return web.json_response({"id": job, "sentence": await request.app[STUDIO].prioritise(job, said.weight)})


async def vary(request: web.Request) -> web.Response:
    """V1 to V4: make variations of a picture."""
    view, index = await permitted(request, "vary"), index_of(request)
    made = await request.app[STUDIO].vary(view.id, index, member_of(request), place_of(request), key=key_of(request))
    return made_of(made)


async def upscale(request: web.Request) -> web.Response:
    """U1 to U4: upscale a picture."""
    view, index = await permitted(request, "upscale"), index_of(request)
    made = await request.app[STUDIO].upscale(view.id, index, member_of(request), place_of(request), key=key_of(request))
    return made_of(made)


async def reroll(request: web.Request) -> web.Response:
    """Run the same prompt with another seed."""
    view = await permitted(request, "reroll")
    made = await request.app[STUDIO].reroll(view.id, member_of(request), place_of(request), key=key_of(request))
    return made_of(made)


async def walk(request: web.Request) -> web.Response:
    """Interpolate from each picture to the next, as several jobs."""
    view, studio = await permitted(request, "walk"), request.app[STUDIO]
    made = await studio.walk_between(view.id, member_of(request), place_of(request), key=key_of(request))
    answer = shown.accepted(made)
    return web.json_response(answer, status=201, headers={"Location": answer["url"]})


def place_of(request: web.Request) -> Place:
    return Place("terminal" if request.headers.get("X-Darkroom") == "terminal" else "web")


def key_of(request: web.Request) -> str | None:
    """Return the studio's key for an Idempotency-Key: the same visitor, address and key mean the same request."""
    sent = request.headers.get("Idempotency-Key")
    if sent is None:
        return None
    if not (1 <= len(sent) <= 200 and sent.isprintable()):
        raise Refused("An Idempotency-Key has 1 to 200 printable characters.", 400)
    wish = "\n".join([member_of(request).id, request.method, request.path, sent])
    return "web:" + hashlib.sha256(wish.encode()).hexdigest()[:40]


def made_of(made: Ticket) -> web.Response:
    answer = shown.accepted([made])
    return web.json_response(answer, status=201, headers={"Location": answer["url"]})

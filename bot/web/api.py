"""The HTTP API: ask for pictures, see how they stand, pause, cancel. Every error is one sentence with the right status.

Knows JSON bodies and addresses; every decision about a job is the studio's. Pictures count from 1, as on the buttons.
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
    """The body of `POST /api/jobs`. The options say the same as the prompt's flags, and override them."""

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
        """Only what was said of the prompt's flags."""
        said = msgspec.structs.asdict(self)
        return {name: value for name, value in said.items() if name not in BESIDES and value is not None}


def routes() -> list[web.RouteDef]:
    """The addresses of the API."""
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
    """Whether the room is open, and how many workers are."""
    workers = request.app[STUDIO].workers()
    return web.json_response({"status": "ok", "workers": len(workers), "app": "darkroom"})


async def room(request: web.Request) -> web.Response:
    """Who is at work."""
    return web.json_response(at_work(request.app))


async def invite(request: web.Request) -> web.Response:
    """A one-time address for one more visitor, who comes as a guest."""
    if request.app[DOOR].open:
        raise Refused("This room is for this computer only; there is nobody to invite.", 422)
    if not request[VISITOR].owner:
        raise Refused("Only whoever runs this room may invite.", 403)
    token = request.app[GATE].invite()
    return web.json_response({"path": f"/?token={token}"}, status=201)


async def jobs(request: web.Request) -> web.Response:
    """What runs, what waits in its order, and what was made last."""
    studio, reader = request.app[STUDIO], member_of(request)
    queue, recent = await studio.queue(GUILD), await studio.recent(GUILD)
    waiting = {view.id for view in queue}
    done = [view for view in recent if view.id not in waiting]
    seen = [view for view in [*queue, *done] if not view.hidden_from(reader.id)]
    return web.json_response({"jobs": [shown.job(view, reader) for view in seen]})


async def imagine(request: web.Request) -> web.Response:
    """A prompt becomes one job, or several where it holds permutations. A form may bring pictures to begin with."""
    async with form_of(request, Order) as (order, brought):
        tickets = await request.app[STUDIO].imagine(
            order.prompt, member_of(request), place_of(request), key=key_of(request), exact=order.exact,
            bring=await _brought(request, order, brought), **order.options(),
        )  # fmt: skip
    answer = shown.accepted(tickets)
    return web.json_response(answer, status=201, headers={"Location": answer["url"]})


async def _brought(request: web.Request, order: Order, brought: Brought) -> Bring | None:
    """What the order begins with, not read yet. Refuses finished pictures that this visitor may not go on from."""
    if not (brought.pictures or brought.mask or order.shots):
        return None
    if brought.pictures and order.shots:
        raise Refused("Either pictures that you bring or finished ones, not both at once.")
    shots = [Finished(*await shot_of(request, named)) for named in order.shots]
    return Bring((*brought.pictures, *shots), brought.mask, tuple(order.weights))


async def one(request: web.Request) -> web.Response:
    """A job as it stands."""
    return web.json_response(shown.job(await visible(request), member_of(request)))


async def cancel(request: web.Request) -> web.Response:
    """Stops a job of one's own."""
    job = await within_reach(request)
    sentence = await request.app[STUDIO].cancel(job, member_of(request))
    return web.json_response({"id": job, "sentence": sentence})


async def pause(request: web.Request) -> web.Response:
    """Holds a running job of one's own where it stands, for a quarter of an hour at most."""
    job = await within_reach(request, "pause")
    sentence = await request.app[STUDIO].pause(job, member_of(request))
    return web.json_response({"id": job, "sentence": sentence})


async def resume(request: web.Request) -> web.Response:
    """Lets it go on."""
    job = await within_reach(request, "pause")
    sentence = await request.app[STUDIO].pause(job, member_of(request), on=False)
    return web.json_response({"id": job, "sentence": sentence})


async def prioritise(request: web.Request) -> web.Response:
    """A running job's share of its author's rows, for whoever runs this machine."""
    if not request[VISITOR].owner:
        raise Refused("Only whoever runs this room may set priorities.", 403)
    job, said = request.match_info["id"], await body_of(request, Priority)
    return web.json_response({"id": job, "sentence": await request.app[STUDIO].prioritise(job, said.weight)})


async def vary(request: web.Request) -> web.Response:
    """V1 to V4: new pictures near this one."""
    view, index = await permitted(request, "vary"), index_of(request)
    made = await request.app[STUDIO].vary(view.id, index, member_of(request), place_of(request), key=key_of(request))
    return made_of(made)


async def upscale(request: web.Request) -> web.Response:
    """U1 to U4: this picture, larger."""
    view, index = await permitted(request, "upscale"), index_of(request)
    made = await request.app[STUDIO].upscale(view.id, index, member_of(request), place_of(request), key=key_of(request))
    return made_of(made)


async def reroll(request: web.Request) -> web.Response:
    """The same prompt with another seed."""
    view = await permitted(request, "reroll")
    made = await request.app[STUDIO].reroll(view.id, member_of(request), place_of(request), key=key_of(request))
    return made_of(made)


async def walk(request: web.Request) -> web.Response:
    """From each picture to the next, as several jobs."""
    view, studio = await permitted(request, "walk"), request.app[STUDIO]
    made = await studio.walk_between(view.id, member_of(request), place_of(request), key=key_of(request))
    answer = shown.accepted(made)
    return web.json_response(answer, status=201, headers={"Location": answer["url"]})


def place_of(request: web.Request) -> Place:
    return Place("terminal" if request.headers.get("X-Darkroom") == "terminal" else "web")


def key_of(request: web.Request) -> str | None:
    """The studio's key for an Idempotency-Key: the same visitor, address and key are the same wish."""
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

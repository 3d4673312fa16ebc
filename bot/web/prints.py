"""Finished pictures, grids, films and keyframes as files. A file never changes once it is shown.

The studio has the bytes. Pictures count from 1, keyframes from 0.
"""

from __future__ import annotations

from aiohttp import web

from bot.images.film_formats import KINDS, TYPES, kind_of
from bot.images.held import held
from bot.refused import Refused
from bot.states import over
from bot.views import View
from bot.web import shown
from bot.web.grids import Grids
from bot.web.live import STUDIO, permitted, visible
from engine.job import MAX_COUNT

GRIDS = web.AppKey("grids", Grids)
FOREVER = "private, max-age=31536000, immutable"
NOT_YET = "no-store"  # while a picture of the job is held: grid and film will change
CELL = 512  # least pixels of the shorter side of a picture in the grid


def routes() -> list[web.RouteDef]:
    job, kind = "/api/jobs/{id}", f"{{kind:{'|'.join(KINDS)}}}"
    return [
        web.get(job + "/pictures/{n}.png", picture),
        web.get(job + "/grid.png", whole_grid),
        web.get(job + "/film." + kind, film),
        web.get(job + "/walk." + kind, walk),
        web.get(job + "/dissolve/{n}." + kind, dissolve),
        web.get(job + "/return/{n}." + kind, there_and_back),
        web.get(job + "/rungs", rungs),
        web.get(job + "/rungs/{n}.webp", rung),
    ]


async def picture(request: web.Request) -> web.Response:
    """Return one finished picture."""
    view, index = await visible(request), index_of(request)
    return _file(await request.app[STUDIO].picture(view.id, index), "image/png", f"{view.id}-{index + 1}.png", view)


async def whole_grid(request: web.Request) -> web.Response:
    """Return the pictures of a job as a grid."""
    view, studio = _finished(await visible(request)), request.app[STUDIO]

    async def pictures() -> list[bytes]:
        return [await studio.shown(view.id, shot.index) for shot in view.pictures]

    hidden = held(view)
    key = tuple(f"{shot.sha256}{' held' if shot.index in hidden else ''}" for shot in view.pictures)
    return _file(await request.app[GRIDS].of(key, pictures), "image/png", f"{view.id}.png", view)


async def film(request: web.Request) -> web.Response:
    """Return the film of a job."""
    view, kind = _finished(await permitted(request, "film")), kind_of(request.match_info["kind"])
    made = await request.app[STUDIO].film(view.id, kind=kind)
    return _file(made, TYPES[kind], f"{view.id}.{kind}", view)


async def walk(request: web.Request) -> web.Response:
    """Return the film of an interpolation, there and back, of all its jobs.

    It is not cached: a moderator may still decide about a picture of another of its jobs.
    """
    view, kind = _finished(await permitted(request, "film")), kind_of(request.match_info["kind"])
    made = await request.app[STUDIO].walk(view.id, kind=kind)
    answer = _file(made, TYPES[kind], f"{view.id}-walk.{kind}", view)
    answer.headers["Cache-Control"] = NOT_YET
    return answer


async def dissolve(request: web.Request) -> web.Response:
    """Return a film of one picture as noise is added to it."""
    view, index, kind = await permitted(request, "film"), index_of(request), kind_of(request.match_info["kind"])
    made = await request.app[STUDIO].dissolve(view.id, index, kind)
    return _file(made, TYPES[kind], f"{view.id}-{index + 1}-dissolving.{kind}", view)


async def there_and_back(request: web.Request) -> web.Response:
    """Return a film of one picture as noise is added to it, then as it developed."""
    view, index, kind = await permitted(request, "film"), index_of(request), kind_of(request.match_info["kind"])
    made = await request.app[STUDIO].there_and_back(view.id, index, kind)
    return _file(made, TYPES[kind], f"{view.id}-{index + 1}-there-and-back.{kind}", view)


async def rungs(request: web.Request) -> web.Response:
    """Return the steps of the film's keyframes, and the address of each."""
    view = _finished(await permitted(request, "film"))
    steps = await request.app[STUDIO].rungs(view.id)
    base = f"{shown.address(view.id)}/rungs"
    return web.json_response({"rungs": [{"step": step, "url": f"{base}/{n}.webp"} for n, step in enumerate(steps)]})


async def rung(request: web.Request) -> web.Response:
    """Return one keyframe of the film; the first is 0."""
    view, number = _finished(await permitted(request, "film")), _number(request)
    return _file(await request.app[STUDIO].rung(view.id, number), "image/webp", f"{view.id}-{number}.webp", view)


def _finished(view: View) -> View:
    if view.state == "finished":
        return view
    raise Refused(f"This job {'ended without a picture' if over(view.state) else 'is not finished yet'}.", 404)


async def shot_of(request: web.Request, named: str) -> tuple[str, int]:
    """Return the finished picture that `JOB/2` names, if this visitor may use it. Refuse with 400, 404 or 403."""
    job, _, number = named.partition("/")
    if number not in [str(one) for one in range(1, MAX_COUNT + 1)]:
        raise Refused("A picture is named by its job and its number, as in 01J…/2.", 400)
    return (await permitted(request, "vary", job)).id, int(number) - 1


def _number(request: web.Request) -> int:
    text = request.match_info["n"]
    if not (text.isascii() and text.isdecimal() and len(text) <= 4):
        raise Refused("There is nothing with this number.", 404)
    return int(text)


def index_of(request: web.Request) -> int:
    """Return the index of the picture in the address, counted from 0 as the studio does."""
    number = _number(request)
    if not 1 <= number <= MAX_COUNT:
        raise Refused(f"Pictures are numbered from 1 to {MAX_COUNT}.", 404)
    return number - 1


def _file(content: bytes, kind: str, name: str, view: View) -> web.Response:
    keep = NOT_YET if held(view) else FOREVER
    headers = {"Cache-Control": keep, "Content-Disposition": f'inline; filename="{name}"'}
    return web.Response(body=content, content_type=kind, headers=headers)

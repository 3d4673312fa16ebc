"""What was made, as files: single pictures, the grid, the film and its rungs. None of it changes once it is shown.

Knows addresses and content types; the studio has the bytes. Pictures count from 1, rungs from 0.
"""

from __future__ import annotations

from aiohttp import web

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
CELL = 512  # pixels that the shorter side of a picture in the grid has at least


def routes() -> list[web.RouteDef]:
    """The addresses of the files."""
    job = "/api/jobs/{id}"
    return [
        web.get(job + "/pictures/{n}.png", picture),
        web.get(job + "/grid.png", whole_grid),
        web.get(job + "/film.webp", film),
        web.get(job + "/rungs", rungs),
        web.get(job + "/rungs/{n}.webp", rung),
    ]


async def picture(request: web.Request) -> web.Response:
    """One finished picture, as it was made."""
    view, index = await visible(request), index_of(request)
    return _file(await request.app[STUDIO].picture(view.id, index), "image/png", f"{view.id}-{index + 1}.png", view)


async def whole_grid(request: web.Request) -> web.Response:
    """The pictures of a job as one."""
    view, studio = _finished(await visible(request)), request.app[STUDIO]

    async def pictures() -> list[bytes]:
        return [await studio.shown(view.id, shot.index) for shot in view.pictures]

    hidden = held(view)
    key = tuple(f"{shot.sha256}{' held' if shot.index in hidden else ''}" for shot in view.pictures)
    return _file(await request.app[GRIDS].of(key, pictures), "image/png", f"{view.id}.png", view)


async def film(request: web.Request) -> web.Response:
    """How the pictures came out of noise, as an animation."""
    view = _finished(await permitted(request, "film"))
    return _file(await request.app[STUDIO].film(view.id), "image/webp", f"{view.id}.webp", view)


async def rungs(request: web.Request) -> web.Response:
    """The steps at which the film has an image, and where each lies."""
    view = _finished(await permitted(request, "film"))
    steps = await request.app[STUDIO].rungs(view.id)
    base = f"{shown.address(view.id)}/rungs"
    return web.json_response({"rungs": [{"step": step, "url": f"{base}/{n}.webp"} for n, step in enumerate(steps)]})


async def rung(request: web.Request) -> web.Response:
    """One image of the film; the first is 0."""
    view, number = _finished(await permitted(request, "film")), _number(request)
    return _file(await request.app[STUDIO].rung(view.id, number), "image/webp", f"{view.id}-{number}.webp", view)


def _finished(view: View) -> View:
    if view.state == "finished":
        return view
    raise Refused(f"This job {'ended without a picture' if over(view.state) else 'is not finished yet'}.", 404)


def _number(request: web.Request) -> int:
    text = request.match_info["n"]
    if not (text.isascii() and text.isdecimal() and len(text) <= 4):
        raise Refused("There is nothing with this number.", 404)
    return int(text)


def index_of(request: web.Request) -> int:
    """The picture that the address names, counted from 0 as the studio does."""
    number = _number(request)
    if not 1 <= number <= MAX_COUNT:
        raise Refused(f"Pictures are numbered from 1 to {MAX_COUNT}.", 404)
    return number - 1


def _file(content: bytes, kind: str, name: str, view: View) -> web.Response:
    keep = NOT_YET if held(view) else FOREVER
    headers = {"Cache-Control": keep, "Content-Disposition": f'inline; filename="{name}"'}
    return web.Response(body=content, content_type=kind, headers=headers)

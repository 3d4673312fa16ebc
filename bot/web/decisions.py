"""The HTTP API of held pictures: the room's owner looks at one, shows it to all, or keeps it hidden.

`Review` checks the permission.
"""

from __future__ import annotations

from aiohttp import web

from bot.desk.review import Review
from bot.refused import Refused
from bot.web import shown
from bot.web.door import member_of
from bot.web.live import visible
from bot.web.prints import NOT_YET, index_of

REVIEW = web.AppKey("review", Review)


def routes() -> list[web.RouteDef]:
    picture = "/api/jobs/{id}/pictures/{n}"
    return [
        web.get(picture + "/held.png", look),
        web.post(picture + "/show", show),
        web.post(picture + "/hide", hide),
    ]


async def look(request: web.Request) -> web.Response:
    """Return a held picture as it is."""
    view, index = await visible(request), index_of(request)
    pictures = dict(await request.app[REVIEW].look(view.id, member_of(request)))
    if index not in pictures:
        raise Refused(f"Picture {index + 1} is not held.", 404)
    return web.Response(body=pictures[index], content_type="image/png", headers={"Cache-Control": NOT_YET})


async def show(request: web.Request) -> web.Response:
    """Show the picture to everybody; return the job."""
    return await _decided(request, show=True)


async def hide(request: web.Request) -> web.Response:
    """Keep the picture hidden; return the job."""
    return await _decided(request, show=False)


async def _decided(request: web.Request, *, show: bool) -> web.Response:
    view, index, member = await visible(request), index_of(request), member_of(request)
    decided = await request.app[REVIEW].decide(view.id, index, member, show=show)
    return web.json_response(shown.job(decided, member))

"""The HTTP API of held pictures: the operator looks at one, shows it to all, or keeps it hidden.

`PictureReview` checks the permission.
"""

from __future__ import annotations

from aiohttp import web

from bot.domain.errors import UserError
from bot.services.moderation.picture_review import PictureReview
from bot.web.answers import Job, describe_job
from bot.web.media import NO_STORE, picture_index_of
from bot.web.middleware import member_of
from bot.web.routes import Route, Shape, answer_json
from bot.web.sse import require_visible

REVIEW = web.AppKey("review", PictureReview)


async def get_held_picture(request: web.Request) -> web.Response:
    """Return a held picture as it is."""
    view = await require_visible(request)
    index = picture_index_of(request)
    pictures = dict(await request.app[REVIEW].load_held_pictures(view.id, member_of(request)))
    if index not in pictures:
        raise UserError(f"Picture {index + 1} is not held.", 404)
    return web.Response(body=pictures[index], content_type="image/png", headers={"Cache-Control": NO_STORE})


async def show_picture(request: web.Request) -> web.Response:
    """Show the picture to everybody; return the job."""
    return await _decide(request, is_shown=True)


async def hide_picture(request: web.Request) -> web.Response:
    """Keep the picture hidden; return the job."""
    return await _decide(request, is_shown=False)


async def _decide(request: web.Request, *, is_shown: bool) -> web.Response:
    view = await require_visible(request)
    index = picture_index_of(request)
    member = member_of(request)
    decided_view = await request.app[REVIEW].decide(view.id, index, member, show=is_shown)
    return answer_json(describe_job(decided_view, member))


TITLE = "Review"
BASE = "/api/jobs/{id}/pictures/{n}"
ROUTES = (
    Route("GET", f"{BASE}/held.png", get_held_picture, "review", Shape(content=("image/png",))),
    Route("POST", f"{BASE}/show", show_picture, "approve", Shape(Job)),
    Route("POST", f"{BASE}/hide", hide_picture, "deny", Shape(Job)),
)

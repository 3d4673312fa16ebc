"""`GET /api/jobs/{id}/wait-reason`: why a job waits, for holders of the terminal key, as `darkroom jobs why`.

It covers every server's jobs and private ones, since it says nothing of their prompts.
"""

from __future__ import annotations

from aiohttp import web

from bot.domain.errors import UserError
from bot.web.middleware import SESSION_TOKENS
from bot.web.sse import SERVICES


def routes() -> list[web.RouteDef]:
    return [web.get("/api/jobs/{id}/wait-reason", get_wait_reason)]


async def get_wait_reason(request: web.Request) -> web.Response:
    """Return what only the running bot knows: the reason for the wait, the job's step, and when it will be done."""
    if not request.app[SESSION_TOKENS].is_terminal_key(request.headers.get("Authorization", "")):
        raise UserError("This address needs the terminal key of this machine.", 403)
    view = await request.app[SERVICES].job_views.load_view(request.match_info["id"])
    return web.json_response(
        {
            "id": view.id,
            "state": view.state,
            "wait_reason": view.wait_reason,
            "jobs_ahead": view.jobs_ahead,
            "eta": view.eta,
            "step": view.step,
        }
    )

"""Errors in AUTOMATIC1111's shape: `detail` is the sentence."""

from __future__ import annotations

from aiohttp import web

from bot.jobs.attended_requests import FeedClosed, PicturesMissing
from bot.web.middleware import Refusal

CHALLENGE = 'Basic realm="Darkroom"'  # its clients send Basic

# statuses of requests that got no pictures
FAILED = 500
CANCELLED = 409
HELD = 403
RESTARTING = 503
RESTART = "Darkroom restarts. The job goes on; its pictures are on the page."


def answer_missing(missing: PicturesMissing | FeedClosed) -> web.Response:
    """Return why a request got no pictures."""
    if isinstance(missing, FeedClosed):
        return shape_error(Refusal(RESTARTING, RESTART, missing))
    status = HELD if missing.is_held else CANCELLED if missing.state == "cancelled" else FAILED
    return shape_error(Refusal(status, missing.sentence, missing))


def shape_error(refusal: Refusal) -> web.Response:
    """Return an error as AUTOMATIC1111's clients read it."""
    status = 401 if refusal.is_stranger else refusal.status
    headers = {"WWW-Authenticate": CHALLENGE} if status == 401 else None
    error = {"error": "HTTPException", "detail": refusal.sentence, "body": "", "errors": refusal.sentence}
    return web.json_response(error, status=status, headers=headers)

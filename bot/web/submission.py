"""How a request's jobs are submitted: where they are shown, and the key that makes a repeated request the same."""

from __future__ import annotations

import hashlib

from aiohttp import web

from bot.domain.dto import Destination
from bot.domain.errors import UserError
from bot.web.middleware import member_of


def destination_of(request: web.Request) -> Destination:
    return Destination("terminal" if request.headers.get("X-Darkroom") == "terminal" else "web")


def idempotency_key_of(request: web.Request) -> str | None:
    """Return the job service's key for an Idempotency-Key: the same visitor, address and key mean the same request."""
    header = request.headers.get("Idempotency-Key")
    if header is None:
        return None
    if not (1 <= len(header) <= 200 and header.isprintable()):
        raise UserError("An Idempotency-Key has 1 to 200 printable characters.", 400)
    text = "\n".join([member_of(request).id, request.method, request.path, header])
    return "web:" + hashlib.sha256(text.encode()).hexdigest()[:40]

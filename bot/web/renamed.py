"""Old names of the HTTP API, as earlier versions had them.

An old name in a request is refused with a sentence that gives the new name. In answers and streams, old names stay
beside the new ones, so that older clients and open pages keep working.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from aiohttp import web

from bot.domain.errors import UserError

RENAMED_FIELDS: Mapping[str, str] = {"shots": "init_images", "until": "stop_at", "mixed": "mix"}
RENAMED_PARTS: Mapping[str, str] = {"order": "request"}
RENAMED_PATHS: Mapping[str, str] = {
    "/api/room": "/api/workers",
    "/api/refused": "/api/rejections",
    "/api/jobs/{id}/why": "/api/jobs/{id}/wait-reason",
    "/api/jobs/{id}/rungs": "/api/jobs/{id}/keyframes",
    "/api/jobs/{id}/rungs/{file}": "/api/jobs/{id}/keyframes/{file}",
    "/api/jobs/{id}/return/{file}": "/api/jobs/{id}/round-trip/{file}",
}
RENAMED_ANSWER_FIELDS: Mapping[str, str] = {
    "task": "kind", "walkable": "can_interpolate", "warming": "engine_loading", "enlargement": "upscale_factor",
}  # fmt: skip
OLD_KINDS: Mapping[str, str] = {"generate": "develop", "upscale": "enlarge"}  # the values of the old field `task`
OLD_WORKERS_EVENT = "room"  # the event `workers` of the page's stream, by its old name
UNKNOWN_FIELD = re.compile(r"Object contains unknown field `(\w+)`")  # msgspec's sentence


def routes() -> list[web.RouteDef]:
    return [web.get(path, refuse_old_path) for path in RENAMED_PATHS]


async def refuse_old_path(request: web.Request) -> web.Response:
    """Refuse an old address with the new one."""
    resource = request.match_info.route.resource
    assert resource is not None
    new_path = RENAMED_PATHS[resource.canonical].format(**request.match_info)
    raise UserError(f"Unknown address {request.path}: it is called {new_path} now.", 400)


def add_old_names(payload: dict[str, Any]) -> dict[str, Any]:
    """Return an answer with its renamed fields under their old names, too."""
    old_fields = {old: payload[new] for old, new in RENAMED_ANSWER_FIELDS.items() if new in payload}
    if "task" in old_fields:
        old_fields["task"] = OLD_KINDS[old_fields["task"]]
    return payload | old_fields


def describe_old_field(decode_error: str) -> str | None:
    """Return the sentence for a decoding error that an old field caused; None for any other error."""
    match = UNKNOWN_FIELD.match(decode_error)
    new_name = RENAMED_FIELDS.get(match[1]) if match else None
    return None if match is None or new_name is None else f"Unknown field {match[1]}: it is called {new_name} now."


def describe_old_part(part: str | None) -> str | None:
    """Return the sentence for an old part of a form; None for any other name."""
    new_name = RENAMED_PARTS.get(part or "")
    return None if new_name is None else f"Unknown form part {part}: it is called {new_name} now."

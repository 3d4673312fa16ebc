"""`/api/prefer/options`: a visitor's flag aliases, as `/prefer option` has them in Discord."""

from __future__ import annotations

import msgspec
from aiohttp import web

from bot.features.flag_aliases import service
from bot.web.middleware import member_of
from bot.web.request_body import read_body
from bot.web.routes import Route, Shape, answer_json
from bot.web.sse import SERVICES

PATH = "/api/prefer/options"


class FlagAliasBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body of `PUT /api/prefer/options`. Without a value the alias is deleted."""

    name: str
    value: str = ""


class FlagAliases(msgspec.Struct, frozen=True):
    """A visitor's flag aliases: what each name stands for."""

    options: dict[str, str]


async def list_aliases(request: web.Request) -> web.Response:
    """Return the visitor's flag aliases, and what they stand for."""
    return answer_json(FlagAliases(await _aliases(request).list_aliases(member_of(request).id)))


async def set_alias(request: web.Request) -> web.Response:
    """Set or delete one of the visitor's flag aliases; return them all."""
    body = await read_body(request, FlagAliasBody)
    member_id = member_of(request).id
    if body.value.strip():
        await _aliases(request).set_alias(member_id, body.name, body.value)
    else:
        await _aliases(request).delete_alias(member_id, body.name)
    return await list_aliases(request)


def _aliases(request: web.Request) -> service.FlagAliases:
    return request.app[SERVICES].get(service.FlagAliases)


ROUTES = (
    Route("GET", PATH, list_aliases, "job", Shape(FlagAliases)),
    Route("PUT", PATH, set_alias, "prefer", Shape(FlagAliases, body=FlagAliasBody)),
)

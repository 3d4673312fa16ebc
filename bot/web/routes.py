"""A route, declared once: its address, its handler, what it costs, and what it reads and answers."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec
from aiohttp import web

from bot.domain.feature import load_parts, merge_rows
from bot.domain.permission import Action
from bot.web.middleware import ERROR_SHAPES, PUBLIC_PREFIXES, ErrorShape


@dataclass(frozen=True)
class Shape:
    """What a handler reads and answers. `body`: its struct; `files`: the parts of a form besides `request`.

    `answer`: the struct of the answer, or the name of a schema of `bot.web.api.answers`, for JSON; else the answer is
    of the types in `content`.
    """

    answer: str | type[msgspec.Struct] = ""
    status: int = 200
    body: type[msgspec.Struct] | None = None
    files: tuple[str, ...] = ()
    content: tuple[str, ...] = ("application/json",)
    is_optional: bool = False  # the body
    is_flat: bool = False  # the body's fields are parts of the form
    json_body: type[msgspec.Struct] | None = None  # in place of that form


@dataclass(frozen=True)
class Route:
    """A feature's route.

    `action`: the row of prices that it is charged by, and the scope that an API key needs. Roles are the handler's to
    check (`forbidden_reason`). Below a public prefix, whoever asks is charged by the handler.
    `path` may bound a part by a pattern, as aiohttp writes it.
    """

    method: str
    path: str
    handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    action: Action
    shape: Shape

    @property
    def address(self) -> str:
        """The path without patterns, as aiohttp's resources say it."""
        return re.sub(r"{(\w+):[^}]*}", r"{\1}", self.path)


@dataclass(frozen=True)
class ErrorForm:
    """How an API of another program writes errors below `prefixes` of addresses.

    `schema`: the name of its schema. `client_text`, `server_text`: what the description says of 4XX and 5XX.
    """

    prefixes: tuple[str, ...]
    shape_error: ErrorShape
    schema: str
    client_text: str
    server_text: str


def list_routes() -> list[Route]:
    """Return the routes of all features."""
    return [route for module in load_parts("web").values() for route in module.ROUTES]


def list_error_forms() -> list[ErrorForm]:
    """Return the errors' forms of all features: their `ERROR_FORM`."""
    return [module.ERROR_FORM for module in load_parts("web").values() if hasattr(module, "ERROR_FORM")]


def list_public_prefixes() -> tuple[str, ...]:
    """Return the beginnings of the features' addresses that need no visitor: their `PUBLIC_PREFIXES`."""
    return tuple(prefix for module in load_parts("web").values() for prefix in getattr(module, "PUBLIC_PREFIXES", ()))


def join_tables(name: str) -> Mapping[str, Mapping[str, Any]]:
    """Return JSON Schemas of all features by name: of answers (`SCHEMAS`), or of parts of addresses (`PARAMETERS`)."""
    return merge_rows({}, *(getattr(module, name, {}) for module in load_parts("web").values()))


def set_up_features(app: web.Application) -> None:
    """Say how features write errors and what they make public, and call the `set_up` of those that have one."""
    app[ERROR_SHAPES] = {prefix: form.shape_error for form in list_error_forms() for prefix in form.prefixes}
    app[PUBLIC_PREFIXES] = list_public_prefixes()
    for module in load_parts("web").values():
        if hasattr(module, "set_up"):
            module.set_up(app)


def answer_json(answer: msgspec.Struct, status: int = 200) -> web.Response:
    """Return a struct as the answer to a request."""
    return web.Response(body=msgspec.json.encode(answer), status=status, content_type="application/json")

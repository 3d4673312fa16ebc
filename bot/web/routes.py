"""A route, declared once: its address, its handler, what it costs, and what it reads and answers."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec
from aiohttp import web

from bot.domain.feature import load_features, load_parts, merge_rows
from bot.domain.permission import Action
from bot.web.middleware import ERROR_SHAPES, PUBLIC_PREFIXES, ErrorShape


@dataclass(frozen=True)
class Shape:
    """What a handler reads and answers. `body`: its struct; `files`: the parts of a form besides `request`.

    `answer`: the type of the answer in JSON, a struct or made of structs; None: it is of the types in `content`.
    """

    answer: Any = None
    status: int = 200
    body: type[msgspec.Struct] | None = None
    files: tuple[str, ...] = ()
    content: tuple[str, ...] = ("application/json",)
    is_optional: bool = False  # the body
    is_flat: bool = False  # the body's fields are parts of the form
    json_body: type[msgspec.Struct] | None = None  # in place of that form


@dataclass(frozen=True)
class Route:
    """A route of the page or of a feature.

    `action`: the row of prices that it is charged by, and the scope that an API key needs. Roles are the handler's to
    check (`forbidden_reason`). Where no visitor is known, as below a public prefix, only the address is charged.
    `path` may bound a part by a pattern, as aiohttp writes it.
    """

    method: str
    path: str
    handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    action: Action
    shape: Shape = Shape()

    @property
    def address(self) -> str:
        """The path without patterns, as aiohttp's resources say it."""
        return re.sub(r"{(\w+):[^}]*}", r"{\1}", self.path)


@dataclass(frozen=True)
class ErrorForm:
    """How an API of another program writes errors below `prefixes` of addresses.

    `answer`: the struct of one. `client_text`, `server_text`: what the description says of 4XX and 5XX.
    """

    prefixes: tuple[str, ...]
    shape_error: ErrorShape
    answer: type[msgspec.Struct]
    client_text: str
    server_text: str


def list_feature_routes() -> list[tuple[str, Route]]:
    """Return the routes of all features, each with its feature's title."""
    features = load_features()
    return [(features[name].title, route) for name, module in load_parts("web").items() for route in module.ROUTES]


def list_error_forms() -> list[ErrorForm]:
    """Return the errors' forms of all features: their `ERROR_FORM`."""
    return [module.ERROR_FORM for module in load_parts("web").values() if hasattr(module, "ERROR_FORM")]


def list_public_prefixes() -> tuple[str, ...]:
    """Return the beginnings of the features' addresses that need no visitor: their `PUBLIC_PREFIXES`."""
    return tuple(prefix for module in load_parts("web").values() for prefix in getattr(module, "PUBLIC_PREFIXES", ()))


def join_parameters() -> Mapping[str, Mapping[str, Any]]:
    """Return the JSON Schemas of parts of addresses, of all features by name: their `PARAMETERS`."""
    return merge_rows({}, *(getattr(module, "PARAMETERS", {}) for module in load_parts("web").values()))


def set_up_features(app: web.Application) -> None:
    """Say how features write errors and what they make public, and call the `set_up` of those that have one."""
    app[ERROR_SHAPES] = {prefix: form.shape_error for form in list_error_forms() for prefix in form.prefixes}
    app[PUBLIC_PREFIXES] = list_public_prefixes()
    for module in load_parts("web").values():
        if hasattr(module, "set_up"):
            module.set_up(app)


def answer_json(answer: object, status: int = 200, headers: Mapping[str, str] | None = None) -> web.Response:
    """Return a struct, or what is made of structs, as the answer to a request."""
    body = msgspec.json.encode(answer)
    return web.Response(body=body, status=status, headers=headers, content_type="application/json", charset="utf-8")

"""`GET /openapi.json`: the description of the HTTP API (OpenAPI 3.1), for programs, the docs and `make schemathesis`.

Addresses come from the route table, requests and answers from `bot.web.api.shapes`: msgspec structs, and the schemas of
`bot.web.api.answers`.
"""

from __future__ import annotations

import inspect
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from importlib.metadata import version
from typing import Any

import msgspec
from aiohttp import web

from bot.domain.feature import load_features, load_parts
from bot.pictures.animation import FILM_FORMATS
from bot.web import pages
from bot.web.api import answers, jobs
from bot.web.api.shapes import SHAPES
from bot.web.auth import COOKIE_NAME
from bot.web.middleware import PUBLIC_PATHS, SIGN_IN_PATH
from bot.web.request_body import MAX_PARTS
from bot.web.routes import Shape, join_tables, list_error_forms, list_public_prefixes, list_routes
from engine.contract import MAX_COUNT

PATH = "/openapi.json"
DESCRIPTION = web.AppKey("description", str)
FORM_HEADER = "X-Darkroom"  # another site's form cannot send it
KEY_HEADER = "Idempotency-Key"
PARAMETERS: Mapping[str, dict[str, Any]] = {
    "id": {"type": "string", "minLength": 1, "maxLength": 64, "description": "A job."},
    "n": {"type": "integer", "minimum": 1, "maximum": MAX_COUNT, "description": "A picture, from 1."},
    "kind": {"type": "string", "enum": list(FILM_FORMATS)},
    "model": {"type": "string", "minLength": 1, "maxLength": 64, "description": "A model's name."},
}
KEYFRAME = {"type": "integer", "minimum": 0, "maximum": 9999, "description": "A keyframe, from 0."}

# module or package → what its operations are about
TAGS: Mapping[str, str] = {
    "jobs": "Jobs",
    "wait_reason": "Jobs",
    "sse": "Jobs",
    "steering": "Jobs",
    "media": "Results",
    "edits": "Continue from a picture",
    "review": "Review",
    "pages": "Chatroom",
    "metrics": "Operation",
    "openapi": "Operation",
}


def routes() -> list[web.RouteDef]:
    return [web.get(PATH, get_description)]


async def get_description(request: web.Request) -> web.Response:
    """Return the description of this API."""
    return web.Response(text=request.app[DESCRIPTION], content_type="application/json")


def describe_routes(app: web.Application) -> dict[str, Any]:
    """Return the OpenAPI document of every registered route, but for the static files."""
    paths: dict[str, dict[str, Any]] = {}
    shapes = list_shapes()
    tags = dict.fromkeys([*TAGS.values(), *(load_features()[name].title for name in load_parts("web"))])
    for route in app.router.routes():
        if route.method != "HEAD" and route.resource is not None and _is_own(route):
            paths.setdefault(route.resource.canonical, {})[route.method.lower()] = _describe_operation(
                route, shapes.get(route.handler, Shape())
            )
    parts = [part for shape in shapes.values() for part in (shape.body, shape.json_body, shape.answer)]
    structs = [part for part in parts if isinstance(part, type)]
    _, body_schemas = msgspec.json.schema_components(structs, ref_template="#/components/schemas/{name}")
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Darkroom",
            "version": version("darkroom-bot"),
            "license": {"name": "Apache-2.0"},
            "description": "Ask for pictures, follow and fetch them.",
        },
        "tags": [{"name": tag} for tag in tags],
        "security": [{"cookie": []}, {"key": []}, {"password": []}],
        "paths": paths,
        "components": {
            "schemas": {**answers.SCHEMAS, **join_tables("SCHEMAS"), **body_schemas},
            "securitySchemes": {
                "cookie": {"type": "apiKey", "in": "cookie", "name": COOKIE_NAME},
                "key": {"type": "http", "scheme": "bearer"},
                "password": {"type": "http", "scheme": "basic", "description": "The key is the password."},
            },
        },
    }


def list_shapes() -> Mapping[Callable[..., Any], Shape]:
    """Return the shape of every handler, those of features too."""
    return {**SHAPES, **{route.handler: route.shape for route in list_routes()}}


def _list_shared_handlers() -> set[Callable[..., Any]]:
    """Return the handlers of several addresses, whose operations are told apart by these."""
    counts = Counter(route.handler for route in list_routes())
    return {handler for handler, count in counts.items() if count > 1}


def _is_own(route: web.AbstractRoute) -> bool:
    return not isinstance(route.resource, web.StaticResource)


def _describe_operation(route: web.AbstractRoute, shape: Shape) -> dict[str, Any]:
    assert route.resource is not None
    handler = route.handler
    path = route.resource.canonical
    operation: dict[str, Any] = {
        "operationId": f"{handler.__name__}{path if handler in _list_shared_handlers() else ''}",
        "tags": [_find_tag(handler)],
        "summary": (inspect.getdoc(handler) or "").partition("\n\n")[0].replace("\n", " "),
        "parameters": [*_list_parameters(path, shape), *_list_headers(route.method, shape)],
        "responses": _describe_responses(path, shape),
    }
    if shape.body is not None:
        operation["requestBody"] = {"required": not shape.is_optional, "content": _describe_body(shape)}
    if path.startswith((*PUBLIC_PATHS, SIGN_IN_PATH, *list_public_prefixes())):
        operation["security"] = []
    return operation


def _find_tag(handler: Callable[..., Any]) -> str:
    names = handler.__module__.split(".")
    tags = {**TAGS, **{name: feature.title for name, feature in load_features().items()}}
    return next((tags[name] for name in names if name in tags), names[-1])


def _list_parameters(path: str, shape: Shape) -> Iterator[dict[str, Any]]:
    parameters = {**PARAMETERS, **join_tables("PARAMETERS")}
    for name in re.findall(r"{(\w+)}", path):
        is_keyframe = name == "n" and "/keyframes/" in path
        schema = KEYFRAME if is_keyframe else parameters.get(name, {"type": "string", "minLength": 1})
        yield {"name": name, "in": "path", "required": True, "schema": schema}


def _list_headers(method: str, shape: Shape) -> Iterator[dict[str, Any]]:
    if (shape.status, shape.answer) in ((201, "Accepted"), (202, "Amendments")):
        schema = {"type": "string", "minLength": 1, "maxLength": 200, "pattern": "^[ -~]+$"}
        yield {"name": KEY_HEADER, "in": "header", "required": False, "schema": schema}
    if shape.files:
        schema = {"type": "string"}
        needed = "A form with a visitor's cookie needs it, with any value."
        yield {"name": FORM_HEADER, "in": "header", "required": False, "schema": schema, "description": needed}


def _describe_body(shape: Shape) -> dict[str, Any]:
    """Return what a body may be: JSON, a form, or either of them."""
    assert shape.body is not None
    reference = {"$ref": f"#/components/schemas/{shape.body.__name__}"}
    if not shape.files:
        return {"application/json": {"schema": reference}}
    if shape.is_flat:
        return _describe_flat_form(shape, reference)
    is_job = shape.body is jobs.JobBody
    parts = {name: _describe_part(MAX_PARTS[name] if is_job else 1) for name in shape.files}
    required = ["request", *(() if is_job else shape.files)]
    form = {
        "type": "object",
        "properties": {"request": reference, **parts},
        "required": required,
        "additionalProperties": False,
    }
    content = {"multipart/form-data": {"schema": form, "encoding": {"request": {"contentType": "application/json"}}}}
    return content | ({"application/json": {"schema": reference}} if is_job else {})


def _describe_flat_form(shape: Shape, reference: Mapping[str, Any]) -> dict[str, Any]:
    """Return a form whose fields are parts beside its files, and the JSON body that does as well, if there is one."""
    binary = {"type": "string", "contentMediaType": "application/octet-stream"}
    files = {"type": "object", "properties": dict.fromkeys(shape.files, binary)}
    content: dict[str, Any] = {"multipart/form-data": {"schema": {"allOf": [reference, files]}}}
    if shape.json_body is not None:
        content["application/json"] = {"schema": {"$ref": f"#/components/schemas/{shape.json_body.__name__}"}}
    return content


def _describe_part(max_count: int) -> dict[str, Any]:
    """Return a part of a form that is a file, or up to `max_count` of them."""
    file = {"type": "string", "contentMediaType": "application/octet-stream", "minLength": 1}
    return file if max_count == 1 else {"type": "array", "items": file, "minItems": 1, "maxItems": max_count}


def _describe_responses(path: str, shape: Shape) -> dict[str, Any]:
    answer = shape.answer if isinstance(shape.answer, str) else shape.answer.__name__
    schema = {"schema": {"$ref": f"#/components/schemas/{answer}"}} if answer else {}
    success: dict[str, Any] = {"description": "As asked for."}
    if shape.content:
        success["content"] = {kind: schema if kind == "application/json" else {} for kind in shape.content}
    more = {"200": success, "201": success} if shape.body is pages.SignInBody else {str(shape.status): success}
    if shape.content == ("text/event-stream",):
        more["204"] = {"description": "The stream is over."}
    return more | _describe_refusals(path)


def _describe_refusals(path: str) -> dict[str, Any]:
    """Return the answers to a request that is too large, too frequent or not allowed: one sentence."""
    for form in list_error_forms():
        if path.startswith(form.prefixes):
            content = {"application/json": {"schema": {"$ref": f"#/components/schemas/{form.schema}"}}}
            texts = {"4XX": form.client_text, "5XX": form.server_text}
            return {status: {"description": text, "content": content} for status, text in texts.items()}
    is_json = path.startswith("/api/") or path in ("/healthz", "/metrics")
    schema = {"schema": {"$ref": "#/components/schemas/Error"}} if is_json else {}
    content = {"application/json" if is_json else "text/html": schema}
    return {"4XX": {"description": "Why not, as a sentence.", "content": content}}

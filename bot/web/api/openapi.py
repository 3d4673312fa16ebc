"""`GET /openapi.json`: the description of the HTTP API (OpenAPI 3.1), for programs, the docs and `make schemathesis`.

It is made from the routes: their addresses, and the structs that they read and answer.
"""

from __future__ import annotations

import inspect
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from typing import Any

import msgspec
from aiohttp import web

from bot.pictures.animation import FILM_FORMATS
from bot.web import pages
from bot.web.answers import Accepted, Amendments, Error
from bot.web.api import jobs
from bot.web.auth import COOKIE_NAME
from bot.web.middleware import PUBLIC_PATHS, SIGN_IN_PATH
from bot.web.request_body import MAX_PARTS
from bot.web.routes import Route, Shape, join_parameters, list_error_forms, list_public_prefixes
from engine.contract import MAX_COUNT

SchemaOf = Mapping[Any, Mapping[str, Any]]  # by the type of a body or an answer
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


async def get_description(request: web.Request) -> web.Response:
    """Return the description of this API."""
    return web.Response(text=request.app[DESCRIPTION], content_type="application/json")


def describe_routes(tagged_routes: Sequence[tuple[str, Route]]) -> dict[str, Any]:
    """Return the OpenAPI document of these routes, each with what it is about."""
    shapes = [route.shape for _, route in tagged_routes]
    bodies = {body for shape in shapes for body in (shape.body, shape.json_body)} - {None}
    answers = {shape.answer for shape in shapes} - {None} | {Error, *(form.answer for form in list_error_forms())}
    types = sorted(bodies | answers, key=str)
    _, body_schemas = msgspec.json.schema_components(bodies)
    found, schemas = msgspec.json.schema_components(types, ref_template="#/components/schemas/{name}")
    for name in schemas.keys() - body_schemas.keys():
        _require_defaults(schemas[name])
    (found, schemas), unions = _name_unions((found, schemas))
    schema_of = dict(zip(types, found, strict=True))
    handler_counts = Counter(route.handler for _, route in tagged_routes)
    paths: dict[str, dict[str, Any]] = {}
    for tag, route in tagged_routes:
        name = route.handler.__name__ + (route.address if handler_counts[route.handler] > 1 else "")
        operation = {"operationId": name, "tags": [tag], **_describe_operation(route, schema_of)}
        paths.setdefault(route.address, {})[route.method.lower()] = operation
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Darkroom",
            "version": version("darkroom-bot"),
            "license": {"name": "Apache-2.0"},
            "description": "Ask for pictures, follow and fetch them.",
        },
        "tags": [{"name": tag} for tag in dict.fromkeys(tag for tag, _ in tagged_routes)],
        "security": [{"cookie": []}, {"key": []}, {"password": []}],
        "paths": paths,
        "components": {
            "schemas": schemas | unions,
            "securitySchemes": {
                "cookie": {"type": "apiKey", "in": "cookie", "name": COOKIE_NAME},
                "key": {"type": "http", "scheme": "bearer"},
                "password": {"type": "http", "scheme": "basic", "description": "The key is the password."},
            },
        },
    }


def _name_unions(schemas: Any) -> tuple[Any, dict[str, Any]]:
    """Return schemas with references in place of unions that have a title, and these unions by title."""
    unions: dict[str, Any] = {}

    def name_union(part: dict[str, Any]) -> dict[str, Any]:
        if not part.keys() >= {"title", "anyOf"}:
            return part
        unions[part["title"]] = part
        return {"$ref": f"#/components/schemas/{part['title']}"}

    return json.loads(json.dumps(schemas), object_hook=name_union), unions


def _require_defaults(schema: dict[str, Any]) -> None:
    """Say of an answer's schema that fields with a default are there, too: a request may leave them out, no answer."""
    required = schema.get("required", ())
    fields = schema.get("properties", {}).items()
    schema["required"] = [name for name, field in fields if name in required or "default" in field]


def _describe_operation(route: Route, schema_of: SchemaOf) -> dict[str, Any]:
    shape = route.shape
    operation: dict[str, Any] = {
        "summary": (inspect.getdoc(route.handler) or "").partition("\n\n")[0].replace("\n", " "),
        "parameters": [*_list_parameters(route.address), *_list_headers(shape)],
        "responses": _describe_responses(route, schema_of),
    }
    if shape.body is not None:
        operation["requestBody"] = {"required": not shape.is_optional, "content": _describe_body(shape, schema_of)}
    if route.address.startswith((*PUBLIC_PATHS, SIGN_IN_PATH, *list_public_prefixes())):
        operation["security"] = []
    return operation


def _list_parameters(path: str) -> Iterator[dict[str, Any]]:
    parameters = {**PARAMETERS, **join_parameters()}
    for name in re.findall(r"{(\w+)}", path):
        is_keyframe = name == "n" and "/keyframes/" in path
        schema = KEYFRAME if is_keyframe else parameters.get(name, {"type": "string", "minLength": 1})
        yield {"name": name, "in": "path", "required": True, "schema": schema}


def _list_headers(shape: Shape) -> Iterator[dict[str, Any]]:
    if shape.answer in (Accepted, Amendments) and shape.status != 200:
        schema = {"type": "string", "minLength": 1, "maxLength": 200, "pattern": "^[ -~]+$"}
        yield {"name": KEY_HEADER, "in": "header", "required": False, "schema": schema}
    if shape.files:
        schema = {"type": "string"}
        needed = "A form with a visitor's cookie needs it, with any value."
        yield {"name": FORM_HEADER, "in": "header", "required": False, "schema": schema, "description": needed}


def _describe_body(shape: Shape, schema_of: SchemaOf) -> dict[str, Any]:
    """Return what a body may be: JSON, a form, or either of them."""
    reference = schema_of[shape.body]
    if not shape.files:
        return {"application/json": {"schema": reference}}
    if shape.is_flat:
        binary = {"type": "string", "contentMediaType": "application/octet-stream"}
        files = {"type": "object", "properties": dict.fromkeys(shape.files, binary)}
        content: dict[str, Any] = {"multipart/form-data": {"schema": {"allOf": [reference, files]}}}
        if shape.json_body is not None:
            content["application/json"] = {"schema": schema_of[shape.json_body]}
        return content
    is_job = shape.body is jobs.JobBody
    parts = {name: _describe_part(MAX_PARTS[name] if is_job else 1) for name in shape.files}
    form = {
        "type": "object",
        "properties": {"request": reference, **parts},
        "required": ["request", *(() if is_job else shape.files)],
        "additionalProperties": False,
    }
    content = {"multipart/form-data": {"schema": form, "encoding": {"request": {"contentType": "application/json"}}}}
    return content | ({"application/json": {"schema": reference}} if is_job else {})


def _describe_part(max_count: int) -> dict[str, Any]:
    """Return a part of a form that is a file, or up to `max_count` of them."""
    file = {"type": "string", "contentMediaType": "application/octet-stream", "minLength": 1}
    return file if max_count == 1 else {"type": "array", "items": file, "minItems": 1, "maxItems": max_count}


def _describe_responses(route: Route, schema_of: SchemaOf) -> dict[str, Any]:
    shape = route.shape
    schema = {} if shape.answer is None else {"schema": schema_of[shape.answer]}
    success: dict[str, Any] = {"description": "As asked for."}
    if shape.content:
        success["content"] = {kind: schema if kind == "application/json" else {} for kind in shape.content}
    responses = {str(shape.status): success}
    if shape.body is pages.SignInBody:  # of a visitor who is known already
        responses = {"200": success, **responses}
    if shape.content == ("text/event-stream",):
        responses["204"] = {"description": "The stream is over."}
    return responses | _describe_refusals(route.address, schema_of)


def _describe_refusals(path: str, schema_of: SchemaOf) -> dict[str, Any]:
    """Return the answers to a request that is too large, too frequent or not allowed: one sentence."""
    for form in list_error_forms():
        if path.startswith(form.prefixes):
            content = {"application/json": {"schema": schema_of[form.answer]}}
            texts = {"4XX": form.client_text, "5XX": form.server_text}
            return {status: {"description": text, "content": content} for status, text in texts.items()}
    is_json = path.startswith("/api/") or path in ("/healthz", "/metrics")
    content: dict[str, Any] = {"application/json": {"schema": schema_of[Error]}} if is_json else {"text/html": {}}
    return {"4XX": {"description": "Why not, as a sentence.", "content": content}}


TITLE = "Operation"
ROUTES = (Route("GET", PATH, get_description, "page"),)

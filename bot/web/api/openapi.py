"""`GET /openapi.json`: the description of the HTTP API (OpenAPI 3.1), for programs, the docs and `make schemathesis`.

Addresses come from the route table, request bodies from the msgspec structs, and answers from `bot.web.api.answers`.
`GET /api/openapi.json` is its earlier address.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from importlib.metadata import version
from typing import Any

import msgspec
from aiohttp import web

from bot.images.films.formats import FILM_FORMATS, MEDIA_TYPES
from bot.web import media, metrics, pages, renamed, sse
from bot.web.a1111_api import bodies as webui_bodies
from bot.web.a1111_api import generation, listings, picture_texts, progress, upscaling
from bot.web.a1111_api import models as webui_models
from bot.web.api import answers, describe, edits, flag_aliases, jobs, review, wait_reason
from bot.web.auth import COOKIE_NAME
from bot.web.middleware import PUBLIC_PATHS, SIGN_IN_PATH, SIGNED_PATH
from bot.web.openai_api import bodies, images, models, picture_addresses
from bot.web.openai_api.answers import FORMATS
from bot.web.request_body import MAX_PARTS
from engine.contract import MAX_COUNT

PATH = "/openapi.json"
OLD_PATH = "/api/openapi.json"
DESCRIPTION = web.AppKey("description", str)
FORM_HEADER = "X-Darkroom"  # another site's form cannot send it
KEY_HEADER = "Idempotency-Key"
FILMS = tuple(MEDIA_TYPES[kind] for kind in FILM_FORMATS)
PARAMETERS: Mapping[str, dict[str, Any]] = {
    "id": {"type": "string", "minLength": 1, "maxLength": 64, "description": "A job."},
    "n": {"type": "integer", "minimum": 1, "maximum": MAX_COUNT, "description": "A picture, from 1."},
    "kind": {"type": "string", "enum": list(FILM_FORMATS)},
    "format": {"type": "string", "enum": list(FORMATS)},
    "model": {"type": "string", "minLength": 1, "maxLength": 64, "description": "A model's name."},
}


KEYFRAME = {"type": "integer", "minimum": 0, "maximum": 9999, "description": "A keyframe, from 0."}


@dataclass(frozen=True)
class Shape:
    """What a handler reads and answers. `body`: its struct; `files`: the parts of a form besides `request`.

    `answer` names a schema of `bot.web.api.answers`, for JSON; else the answer is of the types in `content`.
    """

    answer: str = ""
    status: int = 200
    body: type[msgspec.Struct] | None = None
    files: tuple[str, ...] = ()
    content: tuple[str, ...] = ("application/json",)
    is_optional: bool = False  # the body
    is_flat: bool = False  # the body's fields are parts of the form
    json_body: type[msgspec.Struct] | None = None  # in place of that form


def _accepts(body: type[msgspec.Struct] | None = None, *files: str) -> Shape:
    return Shape("Accepted", 201, body, files)


def _file(*types: str) -> Shape:
    return Shape(content=types)


def _draws(body: type[msgspec.Struct], *files: str) -> Shape:
    """Return the shape of a request of OpenAI's API: pictures at once, or a stream of events."""
    content = ("application/json", "text/event-stream")
    return Shape("OpenAIImages", body=body, files=files, content=content, is_flat=bool(files))


SHAPES: Mapping[Callable[..., Any], Shape] = {
    pages.get_home: _file("text/html"),
    pages.get_discord_page: _file("text/html"),
    pages.redirect_icon: Shape(status=302, content=()),
    pages.sign_in: Shape("Path", body=pages.SignInBody),
    metrics.get_metrics: _file("text/plain"),
    metrics.list_rejections: Shape("Rejections"),
    jobs.healthz: Shape("Health"),
    jobs.get_workers: Shape("Workers"),
    jobs.create_invitation: Shape("Path", 201, jobs.InvitationBody, is_optional=True),
    jobs.list_jobs: Shape("Jobs"),
    jobs.create_jobs: _accepts(jobs.JobBody, "picture", "mask", "control", "reference"),
    jobs.get_job: Shape("Job"),
    jobs.cancel_job: Shape("Sentence"),
    jobs.pause_job: Shape("Sentence"),
    jobs.resume_job: Shape("Sentence"),
    jobs.set_priority: Shape("Sentence", body=jobs.PriorityBody),
    jobs.vary: _accepts(),
    jobs.upscale: _accepts(),
    jobs.reroll: _accepts(),
    jobs.interpolate: _accepts(),
    edits.edit: _accepts(edits.EditBody, "mask"),
    edits.zoom: _accepts(edits.ZoomBody),
    edits.pan: _accepts(edits.PanBody),
    edits.branch: _accepts(edits.BranchBody),
    edits.list_steps: Shape("Steps"),
    describe.describe_picture: Shape("Suggestions", body=describe.DescribeBody, files=("picture",)),
    flag_aliases.list_aliases: Shape("FlagAliases"),
    flag_aliases.set_alias: Shape("FlagAliases", body=flag_aliases.FlagAliasBody),
    wait_reason.get_wait_reason: Shape("WaitReason"),
    review.get_held_picture: _file("image/png"),
    review.show_picture: Shape("Job"),
    review.hide_picture: Shape("Job"),
    media.get_picture: _file("image/png"),
    media.get_grid: _file("image/png"),
    media.get_film: _file(*FILMS),
    media.get_interpolation_film: _file(*FILMS),
    media.get_dissolve_film: _file(*FILMS),
    media.get_return_film: _file(*FILMS),
    media.list_keyframes: Shape("Keyframes"),
    media.get_keyframe: _file("image/webp"),
    sse.stream_events: _file("text/event-stream"),
    sse.stream_job_events: _file("text/event-stream"),
    images.generate_images: _draws(bodies.GenerationBody),
    images.edit_images: replace(_draws(bodies.EditFields, "image", "image[]", "mask"), json_body=bodies.JsonEditBody),
    images.vary_image: _draws(bodies.VariationFields, "image", "image[]"),
    models.list_models: Shape("OpenAIModels"),
    models.get_model: Shape("OpenAIModel"),
    picture_addresses.get_signed_picture: _file(*(f"image/{name}" for name in FORMATS)),
    generation.draw_from_text: Shape("WebuiPictures", body=webui_bodies.TextToImageBody),
    generation.draw_from_picture: Shape("WebuiPictures", body=webui_bodies.ImageToImageBody),
    upscaling.enlarge_picture: Shape("WebuiPicture", body=webui_bodies.SingleUpscaleBody),
    upscaling.enlarge_pictures: Shape("WebuiEnlarged", body=webui_bodies.BatchUpscaleBody),
    picture_texts.read_png_info: Shape("WebuiParameters", body=webui_bodies.PictureBody),
    picture_texts.interrogate: Shape("WebuiCaption", body=webui_bodies.InterrogateBody),
    progress.get_progress: Shape("WebuiProgress"),
    progress.interrupt: Shape("WebuiNothing"),
    progress.skip: Shape("WebuiNothing"),
    webui_models.get_options: Shape("WebuiOptions"),
    webui_models.set_options: Shape("WebuiNothing", body=webui_bodies.OptionsBody),
    webui_models.list_checkpoints: Shape("WebuiModels"),
    webui_models.refresh_checkpoints: Shape("WebuiNothing"),
    listings.list_all_samplers: Shape("WebuiSamplers"),
    listings.list_schedulers: Shape("WebuiSchedulers"),
    listings.list_upscalers: Shape("WebuiNames"),
    listings.list_loras: Shape("WebuiNames"),
    listings.list_embeddings: Shape("WebuiEmbeddings"),
    listings.list_autoencoders: Shape("WebuiAutoencoders"),
    listings.list_scripts: Shape("WebuiScripts"),
    listings.list_nothing: Shape("WebuiNames"),
    listings.get_control_version: Shape("WebuiControlVersion"),
    listings.list_control_models: Shape("WebuiControlModels"),
    listings.list_control_modules: Shape("WebuiControlModules"),
}

SHARED_HANDLERS = (renamed.refuse_old_path, listings.list_nothing)  # of several addresses


# module or package → what its operations are about
TAGS: Mapping[str, str] = {
    "jobs": "Jobs", "wait_reason": "Jobs", "sse": "Jobs", "media": "Results", "edits": "Continue from a picture",
    "describe": "Image to prompt", "flag_aliases": "Flag aliases", "review": "Review", "pages": "Chatroom",
    "openai_api": "OpenAI's image API", "a1111_api": "AUTOMATIC1111's API",
    "metrics": "Operation", "openapi": "Operation", "renamed": "Earlier addresses",
}  # fmt: skip


def routes() -> list[web.RouteDef]:
    return [web.get(PATH, get_description), web.get(OLD_PATH, get_description_at_old_path)]


async def get_description(request: web.Request) -> web.Response:
    """Return the description of this API."""
    return web.Response(text=request.app[DESCRIPTION], content_type="application/json")


async def get_description_at_old_path(request: web.Request) -> web.Response:
    """Return the description of this API at its earlier address."""
    return await get_description(request)


def describe_routes(app: web.Application) -> dict[str, Any]:
    """Return the OpenAPI document of every registered route, but for the static files."""
    paths: dict[str, dict[str, Any]] = {}
    tags = list(dict.fromkeys(TAGS.values()))
    for route in app.router.routes():
        if route.method != "HEAD" and route.resource is not None and _is_own(route):
            paths.setdefault(route.resource.canonical, {})[route.method.lower()] = _describe_operation(route)
    structs = [body for shape in SHAPES.values() for body in (shape.body, shape.json_body) if body is not None]
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
            "schemas": {**answers.SCHEMAS, **body_schemas},
            "securitySchemes": {
                "cookie": {"type": "apiKey", "in": "cookie", "name": COOKIE_NAME},
                "key": {"type": "http", "scheme": "bearer"},
                "password": {"type": "http", "scheme": "basic", "description": "The key is the password."},
            },
        },
    }


def _is_own(route: web.AbstractRoute) -> bool:
    return not isinstance(route.resource, web.StaticResource)


def _describe_operation(route: web.AbstractRoute) -> dict[str, Any]:
    assert route.resource is not None
    handler, path = route.handler, route.resource.canonical
    shape = SHAPES.get(handler, Shape())
    operation: dict[str, Any] = {
        "operationId": f"{handler.__name__}{path if handler in SHARED_HANDLERS else ''}",
        "tags": [_find_tag(handler)],
        "summary": (inspect.getdoc(handler) or "").partition("\n\n")[0].replace("\n", " "),
        "parameters": [*_list_parameters(path, shape), *_list_headers(route.method, shape)],
        "responses": _describe_responses(path, shape),
    }
    if shape.body is not None:
        operation["requestBody"] = {"required": not shape.is_optional, "content": _describe_body(shape)}
    if path.startswith((*PUBLIC_PATHS, SIGN_IN_PATH, SIGNED_PATH)):
        operation["security"] = []
    if handler is renamed.refuse_old_path:
        operation |= {"deprecated": True, "responses": _describe_refusals(path)}
    return operation


def _find_tag(handler: Callable[..., Any]) -> str:
    names = handler.__module__.split(".")
    return next((TAGS[name] for name in names if name in TAGS), names[-1])


def _list_parameters(path: str, shape: Shape) -> Iterator[dict[str, Any]]:
    for name in re.findall(r"{(\w+)}", path):
        is_keyframe = name == "n" and "/keyframes/" in path
        schema = KEYFRAME if is_keyframe else PARAMETERS.get(name, {"type": "string", "minLength": 1})
        yield {"name": name, "in": "path", "required": True, "schema": schema}


def _list_headers(method: str, shape: Shape) -> Iterator[dict[str, Any]]:
    if shape.status == 201 and shape.answer == "Accepted":
        schema = {"type": "string", "minLength": 1, "maxLength": 200, "pattern": "^[ -~]+$"}
        yield {"name": KEY_HEADER, "in": "header", "required": False, "schema": schema}
    if shape.files:
        schema, needed = {"type": "string", "enum": ["1"]}, "A form with a visitor's cookie needs it."
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
        "type": "object", "properties": {"request": reference, **parts}, "required": required,
        "additionalProperties": False,
    }  # fmt: skip
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
    schema = {"schema": {"$ref": f"#/components/schemas/{shape.answer}"}} if shape.answer else {}
    success: dict[str, Any] = {"description": "As asked for."}
    if shape.content:
        success["content"] = {kind: schema if kind == "application/json" else {} for kind in shape.content}
    more = {"200": success, "201": success} if shape.body is pages.SignInBody else {str(shape.status): success}
    if shape.content == ("text/event-stream",):
        more["204"] = {"description": "The stream is over."}
    return more | _describe_refusals(path)


def _describe_refusals(path: str) -> dict[str, Any]:
    """Return the answers to a request that is too large, too frequent or not allowed: one sentence."""
    if path.startswith("/v1/"):
        error = {"application/json": {"schema": {"$ref": "#/components/schemas/OpenAIError"}}}
        sentences = {"4XX": "Why not, in OpenAI's shape.", "5XX": "Why no pictures came, in OpenAI's shape."}
        return {status: {"description": text, "content": error} for status, text in sentences.items()}
    if path.startswith(("/sdapi/", "/controlnet/")):
        error = {"application/json": {"schema": {"$ref": "#/components/schemas/WebuiError"}}}
        sentences = {"4XX": "Why not: `detail` is a sentence.", "5XX": "Why no pictures came, as a sentence."}
        return {status: {"description": text, "content": error} for status, text in sentences.items()}
    is_json = path.startswith("/api/") or path in ("/healthz", "/metrics")
    schema = {"schema": {"$ref": "#/components/schemas/Error"}} if is_json else {}
    content = {"application/json" if is_json else "text/html": schema}
    return {"4XX": {"description": "Why not, as a sentence.", "content": content}}

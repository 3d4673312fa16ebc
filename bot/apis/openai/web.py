"""The routes of OpenAI's API, what each reads and answers, its list of models, and how it writes errors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import msgspec
from aiohttp import web

from bot.apis.openai import bodies, images, picture_addresses, responses
from bot.apis.openai.answers import FORMATS, OpenAIImages, OpenAIResponse
from bot.apis.openai.errors import FieldError, OpenAIError, shape_error
from bot.apis.openai.picture_addresses import CONVERTED_PICTURES, SIGNED_PATH
from bot.web.media import EncodedPictureCache
from bot.web.middleware import member_of
from bot.web.routes import ErrorForm, Route, Shape, answer_json
from bot.web.sse import SERVICES
from engine.contract import ModelProfile


class OpenAIModel(msgspec.Struct, frozen=True):
    """A model. Nobody notes when it was made, so `created` is 0."""

    id: str
    loaded: bool
    size: int
    steps: int
    samplers: Sequence[str]
    object: str = "model"
    created: int = 0
    owned_by: str = "darkroom"


class OpenAIModels(msgspec.Struct, frozen=True):
    """The models that can be asked for."""

    data: list[OpenAIModel]
    object: str = "list"


async def list_models(request: web.Request) -> web.Response:
    """Return the models that can be asked for."""
    models = [_describe_model(profile) for profile in await _load_profiles(request)]
    return answer_json(OpenAIModels(models))


async def get_model(request: web.Request) -> web.Response:
    """Return one model."""
    name = request.match_info["model"]
    for profile in await _load_profiles(request):
        if profile.name == name:
            return answer_json(_describe_model(profile))
    raise FieldError("model", f"The model {name[:64]!r} does not exist here.", status=404, code="model_not_found")


async def _load_profiles(request: web.Request) -> list[ModelProfile]:
    services = request.app[SERVICES]
    rules = await services.rule_admin.effective_rules(member_of(request))
    return [profile for profile in services.catalog.list_profiles() if rules.allows("models", profile.name)]


def _describe_model(profile: ModelProfile) -> OpenAIModel:
    return OpenAIModel(profile.name, profile.loaded, profile.size, profile.steps, profile.samplers)


PARAMETERS: Mapping[str, Mapping[str, Any]] = {"format": {"type": "string", "enum": list(FORMATS)}}
PUBLIC_PREFIXES = (SIGNED_PATH,)
ERROR_FORM = ErrorForm(
    ("/v1/",), shape_error, OpenAIError, "Why not, in OpenAI's shape.", "Why no pictures came, in OpenAI's shape."
)
# all at once, or a stream of events
DRAWS = Shape(OpenAIImages, content=("application/json", "text/event-stream"))
FILES = ("image", "image[]")
ROUTES = (
    Route(
        "POST", "/v1/images/generations", images.generate_images, "imagine", replace(DRAWS, body=bodies.GenerationBody)
    ),
    Route(
        "POST",
        "/v1/images/edits",
        images.edit_images,
        "edit",
        replace(DRAWS, body=bodies.EditFields, files=(*FILES, "mask"), is_flat=True, json_body=bodies.JsonEditBody),
    ),
    Route(
        "POST",
        "/v1/images/variations",
        images.vary_image,
        "vary",
        replace(DRAWS, body=bodies.VariationFields, files=FILES, is_flat=True),
    ),
    Route("GET", "/v1/models", list_models, "list", Shape(OpenAIModels)),
    Route("GET", "/v1/models/{model}", get_model, "job", Shape(OpenAIModel)),
    Route(
        "GET",
        f"{SIGNED_PATH}{{id}}/{{n}}.{{format:{'|'.join(FORMATS)}}}",
        picture_addresses.get_signed_picture,
        "file",
        Shape(content=tuple(f"image/{name}" for name in FORMATS)),
    ),
    Route(
        "POST",
        "/v1/responses",
        responses.create_response,
        "imagine",
        replace(DRAWS, answer=OpenAIResponse, body=bodies.ResponseBody),
    ),
)


def set_up(app: web.Application) -> None:
    """Keep the pictures that were converted last."""
    app[CONVERTED_PICTURES] = EncodedPictureCache()

"""The routes of OpenAI's API, what each reads and answers, and how it writes errors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from aiohttp import web

from bot.apis.openai import bodies, images, models, picture_addresses, responses
from bot.apis.openai.answers import FORMATS, OpenAIImages, OpenAIResponse
from bot.apis.openai.errors import OpenAIError, shape_error
from bot.apis.openai.picture_addresses import CONVERTED_PICTURES, SIGNED_PATH
from bot.web.media import EncodedPictureCache
from bot.web.routes import ErrorForm, Route, Shape

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
    Route("GET", "/v1/models", models.list_models, "list", Shape(models.OpenAIModels)),
    Route("GET", "/v1/models/{model}", models.get_model, "job", Shape(models.OpenAIModel)),
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

"""The routes of OpenAI's API, what each reads and answers, and how it writes errors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import msgspec
from aiohttp import web

from bot.apis.openai import bodies, images, models, picture_addresses, responses
from bot.apis.openai.answers import FORMATS
from bot.apis.openai.errors import shape_error
from bot.apis.openai.picture_addresses import CONVERTED_PICTURES, SIGNED_PATH
from bot.web.api.answers import Schema, list_of, object_of
from bot.web.media import EncodedPictureCache
from bot.web.routes import ErrorForm, Route, Shape

OPENAI_MODEL = object_of(id="string", object="string", created="integer", owned_by="string")
OPENAI_USAGE = object_of(
    input_tokens="integer",
    output_tokens="integer",
    total_tokens="integer",
    input_tokens_details=object_of(text_tokens="integer", image_tokens="integer"),
)
SCHEMAS: Mapping[str, Schema] = {
    "OpenAIError": object_of(error=object_of(message="string", type="string", param="string?", code="string?")),
    "OpenAIModel": OPENAI_MODEL,
    "OpenAIModels": object_of(object="string", data=list_of(OPENAI_MODEL)),
    "OpenAIImages": object_of(
        created="integer",
        data=list_of("object"),
        background="string",
        output_format="string",
        quality="string",
        size="string",
        usage=OPENAI_USAGE,
        darkroom=object_of(jobs=list_of("object")),
    ),
    "OpenAIResponse": object_of(
        id="string",
        object="string",
        created_at="integer",
        status="string",
        model="string",
        output=list_of("object"),
        error="object?",
        usage="object?",
    ),
}
PARAMETERS: Mapping[str, Schema] = {"format": {"type": "string", "enum": list(FORMATS)}}
PUBLIC_PREFIXES = (SIGNED_PATH,)
ERROR_FORM = ErrorForm(
    ("/v1/",), shape_error, "OpenAIError", "Why not, in OpenAI's shape.", "Why no pictures came, in OpenAI's shape."
)


def _draws(body: type[msgspec.Struct], *files: str) -> Shape:
    """Return the shape of a request for pictures: all at once, or a stream of events."""
    content = ("application/json", "text/event-stream")
    return Shape("OpenAIImages", body=body, files=files, content=content, is_flat=bool(files))


EDIT = replace(_draws(bodies.EditFields, "image", "image[]", "mask"), json_body=bodies.JsonEditBody)
PICTURE = Shape(content=tuple(f"image/{name}" for name in FORMATS))
ROUTES = (
    Route("POST", "/v1/images/generations", images.generate_images, "imagine", _draws(bodies.GenerationBody)),
    Route("POST", "/v1/images/edits", images.edit_images, "edit", EDIT),
    Route(
        "POST", "/v1/images/variations", images.vary_image, "vary", _draws(bodies.VariationFields, "image", "image[]")
    ),
    Route("GET", "/v1/models", models.list_models, "list", Shape("OpenAIModels")),
    Route("GET", "/v1/models/{model}", models.get_model, "job", Shape("OpenAIModel")),
    Route(
        "GET",
        f"{SIGNED_PATH}{{id}}/{{n}}.{{format:{'|'.join(FORMATS)}}}",
        picture_addresses.get_signed_picture,
        "file",
        PICTURE,
    ),
    Route(
        "POST",
        "/v1/responses",
        responses.create_response,
        "imagine",
        replace(_draws(bodies.ResponseBody), answer="OpenAIResponse"),
    ),
)


def set_up(app: web.Application) -> None:
    """Keep the pictures that were converted last."""
    app[CONVERTED_PICTURES] = EncodedPictureCache()

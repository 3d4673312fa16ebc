"""The routes of AUTOMATIC1111's API, what each reads and answers, and how it writes errors."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from aiohttp import web

from bot.apis.a1111 import bodies, generation, listings, progress, result_fields
from bot.apis.a1111.names import WebuiSampler
from bot.apis.a1111.progress import OPEN_REQUESTS, OpenRequests
from bot.domain.permission import Action
from bot.web.routes import ErrorForm, Route, Shape
from bot.web.sse import SERVICES

ERROR_FORM = ErrorForm(
    ("/sdapi/", "/controlnet/"),
    bodies.shape_error,
    bodies.WebuiError,
    "Why not: `detail` is a sentence.",
    "Why no pictures came, as a sentence.",
)
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def _get(path: str, handler: Handler, answer: Any) -> Route:
    return Route("GET", path, handler, "job", Shape(answer))


def _post(name: str, handler: Handler, action: Action, answer: Any, body: Any = None) -> Route:
    return Route("POST", f"/sdapi/v1/{name}", handler, action, Shape(answer, body=body))


NOTHING = dict[str, str] | None
ROUTES = (
    _post("txt2img", generation.draw_from_text, "imagine", generation.WebuiPictures, bodies.TextToImageBody),
    _post("img2img", generation.draw_from_picture, "imagine", generation.WebuiPictures, bodies.ImageToImageBody),
    _post(
        "extra-single-image", generation.enlarge_picture, "upscale", generation.WebuiPicture, bodies.SingleUpscaleBody
    ),
    _post(
        "extra-batch-images", generation.enlarge_pictures, "upscale", generation.WebuiEnlarged, bodies.BatchUpscaleBody
    ),
    _post("png-info", result_fields.read_png_info, "info", result_fields.WebuiParameters, bodies.PictureBody),
    _post("interrogate", result_fields.interrogate, "describe", result_fields.WebuiCaption, bodies.InterrogateBody),
    _get("/sdapi/v1/progress", progress.get_progress, progress.WebuiProgress),
    _post("interrupt", progress.interrupt, "cancel", NOTHING),
    _post("skip", progress.skip, "cancel", NOTHING),
    _get("/sdapi/v1/sd-models", listings.list_checkpoints, list[listings.WebuiModel]),
    _get("/sdapi/v1/options", listings.get_options, listings.WebuiOptions),
    _post("options", listings.set_options, "prefer", NOTHING, bodies.OptionsBody),
    _post("refresh-checkpoints", listings.refresh_checkpoints, "page", NOTHING),
    _get("/sdapi/v1/samplers", listings.list_all_samplers, list[WebuiSampler]),
    _get("/sdapi/v1/schedulers", listings.list_schedulers, list[listings.WebuiScheduler]),
    _get("/sdapi/v1/upscalers", listings.list_upscalers, list[listings.WebuiUpscaler]),
    _get("/sdapi/v1/loras", listings.list_loras, list[listings.WebuiLora]),
    _get("/sdapi/v1/embeddings", listings.list_embeddings, listings.WebuiEmbeddings),
    _get("/sdapi/v1/sd-vae", listings.list_autoencoders, list[listings.WebuiAutoencoder]),
    _get("/sdapi/v1/scripts", listings.list_scripts, listings.WebuiScripts),
    *(_get(f"/sdapi/v1/{name}", listings.list_nothing, list[listings.WebuiName]) for name in listings.EMPTY_LISTS),
    _get("/controlnet/version", listings.get_control_version, listings.WebuiControlVersion),
    _get("/controlnet/model_list", listings.list_control_models, listings.WebuiControlModels),
    _get("/controlnet/module_list", listings.list_control_modules, listings.WebuiControlModules),
)


def set_up(app: web.Application) -> None:
    """Keep the requests that wait for pictures: programs ask how far they are."""
    app[OPEN_REQUESTS] = OpenRequests(app[SERVICES].feed)

"""The routes of AUTOMATIC1111's API, what each reads and answers, and how it writes errors."""

from __future__ import annotations

from collections.abc import Mapping

from aiohttp import web

from bot.apis.a1111 import bodies, generation, listings, progress, result_fields
from bot.apis.a1111.bodies import shape_error
from bot.apis.a1111.progress import OPEN_REQUESTS, OpenRequests
from bot.web.api.answers import Schema, list_of, map_of, object_of
from bot.web.routes import ErrorForm, Route, Shape
from bot.web.sse import SERVICES

BASE = "/sdapi/v1"
SCHEMAS: Mapping[str, Schema] = {
    "WebuiError": object_of(error="string", detail="string", body="string", errors="string"),
    "WebuiPictures": object_of(images=list_of("string"), parameters="object", info="string"),
    "WebuiPicture": object_of(image="string", html_info="string"),
    "WebuiEnlarged": object_of(images=list_of("string"), html_info="string"),
    "WebuiParameters": object_of(info="string", items=map_of("string"), parameters=map_of("string")),
    "WebuiCaption": object_of(caption="string"),
    "WebuiProgress": object_of(
        progress="number",
        eta_relative="number",
        state="object",
        current_image="string?",
        textinfo="string?",
        current_task="string?",
    ),
    "WebuiOptions": object_of(
        sd_model_checkpoint="string",
        sd_checkpoint_hash="string",
        sd_vae="string",
        CLIP_stop_at_last_layers="integer",
        samples_format="string",
        live_previews_enable="boolean",
        show_progress_every_n_steps="integer",
    ),
    "WebuiModels": list_of(object_of(title="string", model_name="string", hash="string?", sha256="string?")),
    "WebuiSamplers": list_of(object_of(name="string", aliases=list_of("string"), options="object")),
    "WebuiSchedulers": list_of(object_of(name="string", label="string")),
    "WebuiNames": list_of(object_of(name="string")),
    "WebuiAutoencoders": list_of(object_of(model_name="string", filename="string")),
    "WebuiEmbeddings": object_of(loaded="object", skipped="object"),
    "WebuiScripts": object_of(txt2img=list_of("string"), img2img=list_of("string")),
    "WebuiControlVersion": object_of(version="integer"),
    "WebuiControlModels": object_of(model_list=list_of("string")),
    "WebuiControlModules": object_of(module_list=list_of("string")),
    "WebuiNothing": {"type": ["null", "object"]},
}
ERROR_FORM = ErrorForm(
    ("/sdapi/", "/controlnet/"),
    shape_error,
    "WebuiError",
    "Why not: `detail` is a sentence.",
    "Why no pictures came, as a sentence.",
)
ROUTES = (
    Route(
        "POST",
        f"{BASE}/txt2img",
        generation.draw_from_text,
        "imagine",
        Shape("WebuiPictures", body=bodies.TextToImageBody),
    ),
    Route(
        "POST",
        f"{BASE}/img2img",
        generation.draw_from_picture,
        "imagine",
        Shape("WebuiPictures", body=bodies.ImageToImageBody),
    ),
    Route(
        "POST",
        f"{BASE}/extra-single-image",
        generation.enlarge_picture,
        "upscale",
        Shape("WebuiPicture", body=bodies.SingleUpscaleBody),
    ),
    Route(
        "POST",
        f"{BASE}/extra-batch-images",
        generation.enlarge_pictures,
        "upscale",
        Shape("WebuiEnlarged", body=bodies.BatchUpscaleBody),
    ),
    Route(
        "POST",
        f"{BASE}/png-info",
        result_fields.read_png_info,
        "info",
        Shape("WebuiParameters", body=bodies.PictureBody),
    ),
    Route(
        "POST",
        f"{BASE}/interrogate",
        result_fields.interrogate,
        "describe",
        Shape("WebuiCaption", body=bodies.InterrogateBody),
    ),
    Route("GET", f"{BASE}/progress", progress.get_progress, "job", Shape("WebuiProgress")),
    Route("POST", f"{BASE}/interrupt", progress.interrupt, "cancel", Shape("WebuiNothing")),
    Route("POST", f"{BASE}/skip", progress.skip, "cancel", Shape("WebuiNothing")),
    Route("GET", f"{BASE}/sd-models", listings.list_checkpoints, "job", Shape("WebuiModels")),
    Route("GET", f"{BASE}/options", listings.get_options, "job", Shape("WebuiOptions")),
    Route("POST", f"{BASE}/options", listings.set_options, "prefer", Shape("WebuiNothing", body=bodies.OptionsBody)),
    Route("POST", f"{BASE}/refresh-checkpoints", listings.refresh_checkpoints, "page", Shape("WebuiNothing")),
    Route("GET", f"{BASE}/samplers", listings.list_all_samplers, "job", Shape("WebuiSamplers")),
    Route("GET", f"{BASE}/schedulers", listings.list_schedulers, "job", Shape("WebuiSchedulers")),
    Route("GET", f"{BASE}/upscalers", listings.list_upscalers, "job", Shape("WebuiNames")),
    Route("GET", f"{BASE}/loras", listings.list_loras, "job", Shape("WebuiNames")),
    Route("GET", f"{BASE}/embeddings", listings.list_embeddings, "job", Shape("WebuiEmbeddings")),
    Route("GET", f"{BASE}/sd-vae", listings.list_autoencoders, "job", Shape("WebuiAutoencoders")),
    Route("GET", f"{BASE}/scripts", listings.list_scripts, "job", Shape("WebuiScripts")),
    *(
        Route("GET", f"{BASE}/{name}", listings.list_nothing, "job", Shape("WebuiNames"))
        for name in listings.EMPTY_LISTS
    ),
    Route("GET", "/controlnet/version", listings.get_control_version, "job", Shape("WebuiControlVersion")),
    Route("GET", "/controlnet/model_list", listings.list_control_models, "job", Shape("WebuiControlModels")),
    Route("GET", "/controlnet/module_list", listings.list_control_modules, "job", Shape("WebuiControlModules")),
)


def set_up(app: web.Application) -> None:
    """Keep the requests that wait for pictures: programs ask how far they are."""
    app[OPEN_REQUESTS] = OpenRequests(app[SERVICES].feed)

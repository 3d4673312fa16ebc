"""What each handler of a route reads and answers: its shape, of which `bot.web.api.openapi` makes the description."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import msgspec

from bot.images.films.formats import FILM_FORMATS, MEDIA_TYPES
from bot.web import media, metrics, pages, sse
from bot.web.a1111_api import bodies as webui_bodies
from bot.web.a1111_api import generation, listings, picture_texts, progress, upscaling
from bot.web.a1111_api import models as webui_models
from bot.web.api import describe, edits, flag_aliases, jobs, review, steering, wait_reason, webhooks
from bot.web.openai_api import bodies, images, models, picture_addresses, responses
from bot.web.openai_api.answers import FORMATS

FILMS = tuple(MEDIA_TYPES[kind] for kind in FILM_FORMATS)


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
    jobs.finish: _accepts(),
    jobs.interpolate: _accepts(),
    edits.edit: _accepts(edits.EditBody, "mask"),
    edits.zoom: _accepts(edits.ZoomBody),
    edits.pan: _accepts(edits.PanBody),
    edits.branch: _accepts(edits.BranchBody),
    edits.list_steps: Shape("Steps"),
    steering.amend: Shape("Amendments", 202, steering.AmendBody),
    steering.list_amendments: Shape("Amendments"),
    describe.describe_picture: Shape("Suggestions", body=describe.DescribeBody, files=("picture",)),
    flag_aliases.list_aliases: Shape("FlagAliases"),
    flag_aliases.set_alias: Shape("FlagAliases", body=flag_aliases.FlagAliasBody),
    wait_reason.get_wait_reason: Shape("WaitReason"),
    webhooks.list_webhooks: Shape("Webhooks"),
    webhooks.add_webhook: Shape("NewWebhook", 201, webhooks.WebhookBody),
    webhooks.remove_webhook: Shape("Sentence"),
    webhooks.list_dead_letters: Shape("DeadLetters"),
    webhooks.replay_events: Shape("Sentence", body=webhooks.ReplayBody, is_optional=True),
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
    responses.create_response: replace(_draws(bodies.ResponseBody), answer="OpenAIResponse"),
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

SHARED_HANDLERS = (listings.list_nothing,)  # each of several addresses

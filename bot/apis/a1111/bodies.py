"""The bodies of AUTOMATIC1111's API, with the fields that mean something here. Others are ignored, as it does.

The names are its own. A value of null means that the field is left out.

Errors in AUTOMATIC1111's shape: `detail` is the sentence.
"""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from aiohttp import web

from bot.jobs.attended_requests import FeedClosed, PicturesMissing
from bot.web.middleware import Refusal
from bot.web.routes import answer_json

MAX_SIDE = 16_384  # pixels
Count = Annotated[int, msgspec.Meta(ge=1, le=1000)]
Side = Annotated[int, msgspec.Meta(ge=1, le=MAX_SIDE)]
Share = Annotated[float, msgspec.Meta(ge=0, le=1)]
Text = Annotated[str, msgspec.Meta(max_length=20_000)]
Name = Annotated[str, msgspec.Meta(max_length=200)]
PictureText = str  # a picture in base64, perhaps as a data URL


class OptionsBody(msgspec.Struct, frozen=True):
    """The body of `POST /sdapi/v1/options`, and `override_settings` of a request."""

    sd_model_checkpoint: Name | None = None
    sd_vae: Name | None = None
    CLIP_stop_at_last_layers: int | None = None


class TextToImageBody(msgspec.Struct, frozen=True, kw_only=True):
    """The body of `POST /sdapi/v1/txt2img`."""

    prompt: Text | None = ""
    negative_prompt: Text | None = ""
    seed: int | None = -1
    subseed_strength: float | None = 0.0
    sampler_name: Name | None = None
    sampler_index: Name | None = None
    scheduler: Name | None = None
    batch_size: Count | None = 1
    n_iter: Count | None = 1
    steps: int | None = None
    evaluations: int | Name | None = None  # our own: of how many steps the network is asked
    cfg_scale: float | None = None
    width: Side | None = None
    height: Side | None = None
    tiling: bool | None = False
    restore_faces: bool | None = False
    enable_hr: bool | None = False
    styles: list[Name] | None = []
    script_name: Name | None = None
    alwayson_scripts: dict[str, Any] | None = {}
    override_settings: OptionsBody | None = None
    send_images: bool | None = True
    force_task_id: Name | None = None


class ImageToImageBody(TextToImageBody, frozen=True, kw_only=True):
    """The body of `POST /sdapi/v1/img2img`."""

    init_images: list[PictureText] | None = None
    mask: PictureText | None = None
    denoising_strength: float | None = 0.75
    inpainting_mask_invert: bool | int | None = 0
    include_init_images: bool | None = False


class UpscaleBody(msgspec.Struct, frozen=True, kw_only=True):
    """The body of `POST /sdapi/v1/extra-single-image`, but for its picture: the factor, or the size to reach."""

    resize_mode: Annotated[int, msgspec.Meta(ge=0, le=1)] = 0
    upscaling_resize: Annotated[float, msgspec.Meta(gt=0, le=100)] = 2.0
    upscaling_resize_w: Side = 512
    upscaling_resize_h: Side = 512
    upscaling_crop: bool = True
    upscaler_1: Name = "None"
    upscaler_2: Name = "None"
    extras_upscaler_2_visibility: Share = 0.0
    gfpgan_visibility: Share = 0.0
    codeformer_visibility: Share = 0.0


class SingleUpscaleBody(UpscaleBody, frozen=True, kw_only=True):
    """The body of `POST /sdapi/v1/extra-single-image`."""

    image: PictureText = ""


class NamedPicture(msgspec.Struct, frozen=True):
    """One of several pictures, in base64."""

    data: PictureText
    name: Name = ""


class BatchUpscaleBody(UpscaleBody, frozen=True, kw_only=True):
    """The body of `POST /sdapi/v1/extra-batch-images`."""

    imageList: list[NamedPicture]


class PictureBody(msgspec.Struct, frozen=True):
    """The body of `POST /sdapi/v1/png-info`."""

    image: PictureText


class InterrogateBody(msgspec.Struct, frozen=True):
    """The body of `POST /sdapi/v1/interrogate`. `model` names a captioning model there, and changes nothing here."""

    image: PictureText = ""
    model: Name = "clip"


class WebuiError(msgspec.Struct, frozen=True):
    """Why not: `detail` is a sentence."""

    detail: str
    errors: str
    error: str = "HTTPException"
    body: str = ""


CHALLENGE = 'Basic realm="Darkroom"'  # its clients send Basic

# statuses of requests that got no pictures
FAILED = 500
CANCELLED = 409
HELD = 403
RESTARTING = 503
RESTART = "Darkroom restarts. The job goes on; its pictures are on the page."


def answer_missing(missing: PicturesMissing | FeedClosed) -> web.Response:
    """Return why a request got no pictures."""
    if isinstance(missing, FeedClosed):
        return shape_error(Refusal(RESTARTING, RESTART, missing))
    status = HELD if missing.is_held else CANCELLED if missing.state == "cancelled" else FAILED
    return shape_error(Refusal(status, missing.sentence, missing))


def shape_error(refusal: Refusal) -> web.Response:
    """Return an error as AUTOMATIC1111's clients read it."""
    status = 401 if refusal.is_stranger else refusal.status
    headers = {"WWW-Authenticate": CHALLENGE} if status == 401 else None
    return answer_json(WebuiError(refusal.sentence, refusal.sentence), status, headers)

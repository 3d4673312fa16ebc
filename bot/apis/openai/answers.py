"""Answers of OpenAI's image API: pictures as base64 or as addresses, streamed events, usage.

Nothing here is counted in tokens, so usage has other units: words and pictures in, device-milliseconds out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from bot.apis.openai.bodies import DEFAULT_COMPRESSION, DrawBody, PictureFormat
from bot.domain.concurrency import run_in_thread
from bot.domain.dto import JobView
from bot.jobs.attended_requests import DrawnPicture, Preview
from bot.pictures.image_codec import ImageFormat, decode_image, encode_image, read_recipe_text
from bot.web import serializers
from engine.contract import Recipe, Task, count_requested_evaluations

EventKind = Literal["image_generation", "image_edit"]
FORMATS: dict[PictureFormat, ImageFormat] = {"png": "PNG", "jpeg": "JPEG", "webp": "WEBP"}
QUALITIES = {"low": "low", "high": "high", "hd": "high"}


@dataclass(frozen=True)
class RequestUsage:
    """`words` of the prompt and `pictures` that came in; `device_milliseconds` that the jobs were charged."""

    words: int
    pictures: int
    device_milliseconds: int

    def to_dict(self) -> dict[str, Any]:
        """Return it under OpenAI's names."""
        inputs = self.words + self.pictures
        output = self.device_milliseconds
        return {
            "input_tokens": inputs,
            "input_tokens_details": {"text_tokens": self.words, "image_tokens": self.pictures},
            "output_tokens": output,
            "output_tokens_details": {"image_tokens": output, "text_tokens": 0},
            "total_tokens": inputs + output,
        }


def count_usage(words: int, pictures: int, views: Sequence[JobView]) -> RequestUsage:
    """Return what a request took: what came in, and what its jobs were charged."""
    return RequestUsage(words, pictures, round(1000 * sum(view.cost for view in views)))


def share_usage(total: RequestUsage, parts: int) -> RequestUsage:
    """Return one part of a usage."""
    return RequestUsage(total.words // parts, total.pictures // parts, total.device_milliseconds // parts)


async def convert_picture(png: bytes, picture_format: PictureFormat, compression: int | None) -> bytes:
    """Return a finished picture in a format. `compression`: the quality in per cent, of JPEG and WebP."""
    if picture_format == "png":
        return png
    quality = max(1, DEFAULT_COMPRESSION if compression is None else compression)

    def convert() -> bytes:
        return encode_image(decode_image(png), FORMATS[picture_format], quality, read_recipe_text(png))

    return await run_in_thread(convert)


def describe_look(body: DrawBody, size: str) -> dict[str, Any]:
    """Return the fields that answers and events share."""
    return {
        "size": size,
        "quality": QUALITIES.get(body.quality or "", "medium"),
        "background": "opaque",
        "output_format": body.picture_format,
    }


def _count_evaluations(task: Task) -> int | None:
    return count_requested_evaluations(task) if isinstance(task, Recipe) else None


def describe_jobs(views: Sequence[JobView]) -> list[dict[str, Any]]:
    """Return what Darkroom knows of the jobs besides: an object of its own in the answer."""
    return [
        {
            "id": view.id,
            "url": serializers.job_url(view.id),
            "notes": list(view.notes),
            **{name: getattr(view.task, name, None) for name in ("seed", "steps", "sampler")},
            "evaluations": _count_evaluations(view.task),
        }
        for view in views
    ]


def build_images(
    body: DrawBody,
    images: Sequence[dict[str, Any]],
    size: str,
    usage: RequestUsage,
    views: Sequence[JobView],
    now: float,
) -> dict[str, Any]:
    """Return the answer with all pictures. `images`: each with `b64_json` or `url`."""
    return {
        "created": int(now),
        "data": list(images),
        **describe_look(body, size),
        "usage": usage.to_dict(),
        "darkroom": {"jobs": describe_jobs(views)},
    }


def build_partial(
    kind: EventKind, body: DrawBody, preview: Preview, partial_index: int, now: float
) -> tuple[str, dict[str, Any]]:
    """Return a preview as an event: the JPEG as it came from the worker, so it waits for nothing."""
    name = f"{kind}.partial_image"
    look = describe_look(body, body.size or "auto") | {"output_format": "jpeg"}
    return name, {
        "type": name,
        "b64_json": preview.jpeg,
        "partial_image_index": partial_index,
        "created_at": int(now),
        **look,
        "image_index": preview.picture,
    }


def build_completed(
    kind: EventKind, body: DrawBody, picture: DrawnPicture, content: bytes, usage: RequestUsage, now: float
) -> tuple[str, dict[str, Any]]:
    """Return a finished picture as an event."""
    name = f"{kind}.completed"
    size = f"{picture.width}x{picture.height}"
    return name, {
        "type": name,
        "b64_json": content,
        "created_at": int(now),
        **describe_look(body, size),
        "usage": usage.to_dict(),
        "image_index": picture.picture,
        "job": picture.job,
    }

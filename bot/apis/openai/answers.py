"""Answers of OpenAI's image API: pictures as base64 or as addresses, streamed events, usage.

Nothing here is counted in tokens, so usage has other units: words and pictures in, device-milliseconds out.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import msgspec

from bot.apis.openai.bodies import DEFAULT_COMPRESSION, DrawBody, PictureFormat
from bot.domain.concurrency import run_in_thread
from bot.domain.dto import JobView
from bot.jobs.attended_requests import DrawnPicture, Preview
from bot.pictures.image_codec import ImageFormat, decode_image, encode_image, read_recipe_text
from bot.web.answers import job_url
from engine.contract import Recipe, Task, count_requested_evaluations

EventKind = Literal["image_generation", "image_edit"]
FORMATS: dict[PictureFormat, ImageFormat] = {"png": "PNG", "jpeg": "JPEG", "webp": "WEBP"}
QUALITIES = {"low": "low", "high": "high", "hd": "high"}


class OpenAITokenDetails(msgspec.Struct, frozen=True):
    """Words and pictures that came in; device-milliseconds that went out."""

    text_tokens: int
    image_tokens: int


class OpenAIUsage(msgspec.Struct, frozen=True):
    """What a request took, under OpenAI's names; the output is what its jobs were charged, in device-milliseconds."""

    input_tokens: int
    input_tokens_details: OpenAITokenDetails
    output_tokens: int
    output_tokens_details: OpenAITokenDetails
    total_tokens: int


class DarkroomJobs(msgspec.Struct, frozen=True):
    """What Darkroom knows of the jobs besides."""

    jobs: list[dict[str, Any]]


class OpenAIImages(msgspec.Struct, frozen=True, kw_only=True):
    """All pictures of a request, each with `b64_json` or `url`."""

    created: int
    data: Sequence[dict[str, Any]]
    size: str
    quality: str
    background: str
    output_format: str
    usage: OpenAIUsage
    darkroom: DarkroomJobs


class OpenAITool(msgspec.Struct, frozen=True):
    """The tool that every response calls."""

    type: str = "image_generation"


class OpenAIResponse(msgspec.Struct, frozen=True, kw_only=True):
    """A response with the calls of its tool."""

    id: str
    object: str = "response"
    created_at: int
    status: str
    model: str
    output: list[dict[str, Any]]
    error: dict[str, str] | None = None
    incomplete_details: None = None
    instructions: None = None
    metadata: dict[str, str] = {}
    parallel_tool_calls: bool = False
    temperature: None = None
    top_p: None = None
    tool_choice: OpenAITool = OpenAITool()
    tools: tuple[OpenAITool, ...] = (OpenAITool(),)
    usage: dict[str, Any] | None
    darkroom: DarkroomJobs


def count_usage(words: int, pictures: int, views: Sequence[JobView], parts: int = 1) -> OpenAIUsage:
    """Return one of equal parts of what a request took."""
    came_in = OpenAITokenDetails(text_tokens=words // parts, image_tokens=pictures // parts)
    milliseconds = round(1000 * sum(view.cost for view in views)) // parts
    inputs = came_in.text_tokens + came_in.image_tokens
    return OpenAIUsage(
        input_tokens=inputs,
        input_tokens_details=came_in,
        output_tokens=milliseconds,
        output_tokens_details=OpenAITokenDetails(text_tokens=0, image_tokens=milliseconds),
        total_tokens=inputs + milliseconds,
    )


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


def describe_jobs(views: Sequence[JobView]) -> DarkroomJobs:
    """Return what Darkroom knows of the jobs besides: an object of its own in the answer."""
    jobs = [
        {
            "id": view.id,
            "url": job_url(view.id),
            "notes": list(view.notes),
            **{name: getattr(view.task, name, None) for name in ("seed", "steps", "sampler")},
            "evaluations": _count_evaluations(view.task),
        }
        for view in views
    ]
    return DarkroomJobs(jobs)


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
    kind: EventKind, body: DrawBody, picture: DrawnPicture, content: bytes, usage: OpenAIUsage, now: float
) -> tuple[str, dict[str, Any]]:
    """Return a finished picture as an event."""
    name = f"{kind}.completed"
    size = f"{picture.width}x{picture.height}"
    return name, {
        "type": name,
        "b64_json": content,
        "created_at": int(now),
        **describe_look(body, size),
        "usage": usage,
        "image_index": picture.picture,
        "job": picture.job,
    }

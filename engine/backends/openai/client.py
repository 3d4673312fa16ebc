"""OpenAI's image API as a backend: `/v1/images/generations` and `/v1/images/edits`, streamed where the server can.

Servers of that API differ: what one refuses is left out from then on. A server that is a Darkroom also takes seed,
steps, guidance, sampler and negative prompt, as further fields."""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import math
import re
from collections import defaultdict
from collections.abc import AsyncIterator, Mapping, Sequence
from io import BytesIO
from typing import Any, cast, get_args

import aiohttp
from PIL import Image, ImageOps

from engine.backends.openai import BACKEND
from engine.contract import Feature, JobRejected, Sampler
from engine.process.settings import BackendSettings
from engine.remote.drawing import (
    BackendModel,
    DrawProgress,
    DrawRequest,
    OnProgress,
    choose_multiple,
    name_models,
    sort_samplers,
)
from engine.remote.http_client import (
    DRAW_TIMEOUT,
    MAX_PICTURE_BYTES,
    BackendHttp,
    BackendRefusal,
    as_object,
    clean_line,
    decode_base64,
    make_headers,
    parse_json,
    parse_object,
    read_body,
)

log = logging.getLogger(__name__)

USUAL_SIZE = 1024
PARTIAL_IMAGES = 3  # the most that the API offers
IMAGE_MODELS = re.compile(r"image|dall-e|diffusion|flux|imagen", re.IGNORECASE)
SQUARE = (1024, 1024)
LANDSCAPE = (1536, 1024)
PORTRAIT = (1024, 1536)
# The sizes of OpenAI's own models; other servers' models take any.
FIXED_SIZES: Sequence[tuple[re.Pattern[str], tuple[tuple[int, int], ...]]] = (
    (re.compile(r"gpt-image|chatgpt-image"), (SQUARE, LANDSCAPE, PORTRAIT)),
    (re.compile(r"dall-e-2"), ((256, 256), (512, 512), SQUARE)),
    (re.compile(r"dall-e-3"), (SQUARE, (1792, 1024), (1024, 1792))),
)
OPTIONAL_FIELDS = ("stream", "partial_images", "output_format", "response_format")  # some servers know none of them
LACKS: tuple[Feature, ...] = ("negative", "steps", "guidance", "strength", "tile")
EVENT_KINDS = ("image_generation", "image_edit")


async def open_backend(settings: BackendSettings, wanted: Sequence[str]) -> OpenAiImages:
    """Return the client."""
    key = settings.key.get_secret_value()
    http = BackendHttp(BACKEND.title, settings.url.removesuffix("/v1"), make_headers(key))
    return OpenAiImages(http, settings.size, wanted)


class OpenAiImages:
    """`size`: the native side in pixels of models that do not say it; 0: 1024. `models`: those to offer; (): all."""

    def __init__(self, http: BackendHttp, size: int = 0, models: Sequence[str] = ()) -> None:
        self.concurrency = 4
        self._http = http
        self._size = size
        self._wanted = models
        self._refused_fields = defaultdict[str, set[str]](set)  # by title: a server's models differ
        self._darkroom_models = set[str]()

    async def close(self) -> None:
        await self._http.close()

    async def list_models(self) -> tuple[BackendModel, ...]:
        """Return the models that draw, by their names where the server lists others too."""
        data = as_object(await self._http.get_json("v1/models")).get("data")
        if not isinstance(data, list):
            raise JobRejected("The image server answers with no list of models.", "worker")
        models = {str(each["id"]): each for each in map(as_object, cast(list[object], data)) if "id" in each}
        self._darkroom_models = {title for title, each in models.items() if each.get("owned_by") == "darkroom"}
        known = {*self._wanted, *self._darkroom_models}
        drawing = [title for title in models if title in known or IMAGE_MODELS.search(title)]
        return tuple(
            describe_darkroom_model(name, models[title], self._size)
            if title in self._darkroom_models
            else self._describe_model(name, title)
            for name, title in name_models(drawing or models).items()
        )

    async def draw(self, request: DrawRequest, on_progress: OnProgress) -> bytes:
        """Ask for one picture; partial ones are its previews. If the call is cancelled, the connection closes."""
        while True:
            try:
                return await self._draw_once(request, on_progress)
            except BackendRefusal as error:
                if error.status != 400 or not self._leave_out_field(error, request):
                    raise

    def _describe_model(self, name: str, title: str) -> BackendModel:
        sizes = find_fixed_sizes(title)
        size = self._size or USUAL_SIZE
        most = max((width * height for width, height in sizes), default=2 * size * size)
        return BackendModel(
            name=name,
            title=title,
            size=size,
            multiple=choose_multiple(size),
            max_pixels=most,
            samplers=("native",),
            steps=PARTIAL_IMAGES + 1,
            guidance=1.0,
            lacks=(*LACKS, "picture", "mask") if title == "dall-e-3" else LACKS,
            version=hashlib.sha256(title.encode()).hexdigest(),
            is_priced_by_steps=False,
            edits=title != "dall-e-3",
        )

    async def _draw_once(self, request: DrawRequest, on_progress: OnProgress) -> bytes:
        fields = self._make_fields(request)
        if request.picture is None:
            call = self._http.request("POST", "v1/images/generations", json=fields, timeout=DRAW_TIMEOUT)
        else:
            form = await asyncio.to_thread(_make_form, fields, request)
            call = self._http.request("POST", "v1/images/edits", data=form, timeout=DRAW_TIMEOUT)
        async with call as response:
            if response.content_type == "text/event-stream":
                return await self._read_stream(read_events(response, MAX_PICTURE_BYTES), on_progress)
            return self._read_answer(parse_json(await read_body(response, MAX_PICTURE_BYTES), self._http.name))

    def _make_fields(self, request: DrawRequest) -> dict[str, Any]:
        """Return the fields that this server takes. DALL·E needs to be told that it sends the picture itself."""
        width, height = choose_size(request)
        fields: dict[str, Any] = {
            "model": request.model.title,
            "prompt": request.prompt,
            "n": 1,
            "size": f"{width}x{height}",
        }
        refused = self._refused_fields[request.model.title]
        if request.model.title.startswith("dall-e") or "stream" in refused:
            fields["response_format"] = "b64_json"
        else:
            fields |= {"stream": True, "partial_images": PARTIAL_IMAGES, "output_format": "png"}
        if request.model.title in self._darkroom_models:
            fields |= make_darkroom_fields(request)
        return {name: value for name, value in fields.items() if name not in refused}

    def _leave_out_field(self, error: BackendRefusal, request: DrawRequest) -> bool:
        """Note a field that the model refuses by its name. Return whether another try makes sense."""
        sent = self._make_fields(request)
        refused = {name for name in OPTIONAL_FIELDS if name in sent and is_refused(name, error, request)}
        if "partial_images" in refused or "stream" in refused:
            refused |= {"stream", "partial_images"}
        self._refused_fields[request.model.title] |= refused
        return bool(refused)

    async def _read_stream(self, events: AsyncIterator[bytes], on_progress: OnProgress) -> bytes:
        """Return the completed picture of a stream."""
        async for data in events:
            if data == b"[DONE]":
                break
            event = parse_object(data, self._http.name)
            kind = str(event.get("type", ""))
            if kind in [f"{each}.completed" for each in EVENT_KINDS]:
                return decode_base64(event.get("b64_json"), self._http.name)
            if kind in [f"{each}.partial_image" for each in EVENT_KINDS]:
                number = event.get("partial_image_index")
                share = (number + 1) / (PARTIAL_IMAGES + 1) if isinstance(number, int) and number >= 0 else 0.0
                on_progress(DrawProgress(min(1.0, share), decode_base64(event.get("b64_json"), self._http.name)))
            elif "error" in kind or "error" in event:
                raise _describe_error(event, self._http.name)
        raise JobRejected(f"{self._http.name} ended its stream without a picture.", "worker")

    def _read_answer(self, answer: object) -> bytes:
        """Return the picture of an answer in one piece. An address in place of it is not followed."""
        try:
            return decode_base64(cast(Any, answer)["data"][0]["b64_json"], self._http.name)
        except (KeyError, IndexError, TypeError) as error:
            raise JobRejected(f"{self._http.name} sent no picture in its answer.", "worker") from error


def is_refused(field: str, error: BackendRefusal, request: DrawRequest) -> bool:
    """Whether an error is about a field. A server may repeat the prompt, so a word that is in both tells nothing."""
    if error.field:
        return error.field == field
    quoted = rf"['\"`‘“]{field}['\"`’”]"
    word = rf"\b{field}\b"
    return any(
        re.search(pattern, error.message) and not re.search(pattern, request.prompt, re.IGNORECASE)
        for pattern in (quoted, word)
    )


def find_fixed_sizes(title: str) -> tuple[tuple[int, int], ...]:
    """Return the only sizes of a model; () where it takes any."""
    return next((sizes for pattern, sizes in FIXED_SIZES if pattern.search(title)), ())


def choose_size(request: DrawRequest) -> tuple[int, int]:
    """Return the size to ask for: the request's, else the one of the nearest shape, then of the nearest area."""
    sizes = find_fixed_sizes(request.model.title)
    if not sizes:
        return request.width, request.height
    shape = math.log(request.width / request.height)
    area = math.log(request.width * request.height)
    return min(
        sizes, key=lambda size: (abs(math.log(size[0] / size[1]) - shape), abs(math.log(size[0] * size[1]) - area))
    )


def _make_form(fields: dict[str, Any], request: DrawRequest) -> aiohttp.FormData:
    """Return the parts of an edit. Its mask is transparent where the picture is painted anew."""
    assert request.picture is not None
    form = aiohttp.FormData()
    for name, value in fields.items():
        form.add_field(name, json.dumps(value) if isinstance(value, bool) else str(value))
    form.add_field("image", request.picture, filename="picture.png", content_type="image/png")
    if request.mask is not None:
        mask = make_transparent(request.picture, request.mask)
        form.add_field("mask", mask, filename="mask.png", content_type="image/png")
    return form


def _describe_error(event: dict[str, Any], name: str) -> JobRejected:
    reason = str(as_object(event.get("error", event)).get("message", ""))
    return JobRejected(f"{name} refuses the picture: {clean_line(reason)}", "model")


DARKROOM_SIZE = 512
DARKROOM_STEPS = 20
DARKROOM_GUIDANCE = 7.0


def describe_darkroom_model(name: str, info: Mapping[str, Any], size: int) -> BackendModel:
    """Return a model as `GET /v1/models` of a Darkroom describes it. `size`: in place of its own; 0: its own."""
    size = size or _read_number(info.get("size"), 16, 2048, DARKROOM_SIZE)
    named = info.get("samplers")
    known: list[Sampler] = [each for each in get_args(Sampler) if isinstance(named, list) and each in cast(Any, named)]
    title = str(info["id"])
    return BackendModel(
        name=name,
        title=title,
        size=size,
        multiple=choose_multiple(size),
        max_pixels=4 * size * size,
        samplers=sort_samplers(known) or ("native",),
        steps=_read_number(info.get("steps"), 1, 1000, DARKROOM_STEPS),
        guidance=DARKROOM_GUIDANCE,
        lacks=("tile",),
        version=hashlib.sha256(title.encode()).hexdigest(),
    )


def make_darkroom_fields(request: DrawRequest) -> dict[str, Any]:
    """Return a request's further fields. The usual guidance is left out: only the other Darkroom knows its model's."""
    fields: dict[str, Any] = {"seed": request.seed, "steps": request.steps, "sampler": request.sampler}
    fields["evaluations"] = "all"  # its own default might skip some, and nothing here says so
    if request.guidance != request.model.guidance:
        fields["guidance"] = request.guidance
    if request.negative:
        fields["negative_prompt"] = request.negative
    if request.picture is not None:
        fields["strength"] = request.strength
    return fields


def _read_number(value: object, least: int, most: int, default: int) -> int:
    return value if isinstance(value, int) and least <= value <= most else default


async def read_events(response: aiohttp.ClientResponse, limit: int) -> AsyncIterator[bytes]:
    """Yield the data of each whole event. Raises `JobRejected` for an event of more than `limit` bytes."""
    buffer = bytearray()
    data = bytearray()
    async for chunk in response.content.iter_any():
        buffer += chunk
        if len(buffer) + len(data) > limit:
            raise JobRejected("The backend's answer is too long.", "worker")
        if b"\n" not in chunk:
            continue
        *lines, rest = bytes(buffer).split(b"\n")
        buffer = bytearray(rest)
        for line in lines:
            line = line.removesuffix(b"\r")
            if line.startswith(b"data:"):
                data += line.removeprefix(b"data:").removeprefix(b" ") + b"\n"
            elif not line and data:
                yield bytes(data[:-1])
                data = bytearray()


def make_transparent(picture: bytes, mask: bytes) -> bytes:
    """Return a PNG of the picture that is transparent where the mask is white. Both are PNGs of one size, our own."""
    with Image.open(BytesIO(picture)) as pixels, Image.open(BytesIO(mask)) as grey:
        masked = pixels.convert("RGB")
        masked.putalpha(ImageOps.invert(grey.convert("L")))
    buffer = BytesIO()
    masked.save(buffer, format="PNG")
    return buffer.getvalue()

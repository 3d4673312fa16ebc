"""Decodes request bodies into our structs: JSON, or a multipart form with pictures, in bounded time and size.

A form takes only the memory of the bytes that have arrived, and these must arrive at a minimum rate. So slow uploads
keep nobody from uploading.

Pictures in base64, as the JSON of other programs' APIs has them.

How a request's jobs are submitted: where they are shown, and the key that makes a repeated request the same.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
from collections.abc import AsyncGenerator, Generator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import TypeVar, cast

import msgspec
from aiohttp import BodyPartReader, MultipartReader, web
from aiohttp.http import HttpProcessingError

from bot.domain.concurrency import PerMemberLimit, run_in_thread
from bot.domain.dto import Destination
from bot.domain.errors import UserError
from bot.pictures.uploads.upload_decoder import MAX_UPLOAD_BYTES
from bot.web.middleware import member_of
from engine.contract import MAX_CONTROLS, MAX_INIT_IMAGES, MAX_REFERENCES, convert, decode_json

T = TypeVar("T", bound=msgspec.Struct)

BODY_TIMEOUT = 10.0  # seconds that a body may take
FORM_TIMEOUT = 120.0  # seconds that a form with pictures may take
MAX_WHOLE = 2.0**53  # up to which a float holds every integer
MAX_JSON_BYTES = 64 * 1024  # bytes of the JSON, as of any body
CHUNK_BYTES = 64 * 1024
PACE_SECONDS = 10.0  # in which `PACE_BYTES` of a form arrive, or its end
PACE_BYTES = 160 * 1024
MAX_FORM_MEMORY = 384 * 2**20  # bytes of all forms with pictures, from their first byte to admission
MAX_PARTS: Mapping[str, int] = MappingProxyType(
    {"request": 1, "picture": MAX_INIT_IMAGES, "mask": 1, "control": MAX_CONTROLS, "reference": MAX_REFERENCES}
)  # of each name
MAX_PICTURE_JSON_BYTES = 64 * 2**20  # bytes of a JSON body with pictures in base64
MAX_JSON_VALUES = 64 * 1024  # values of a JSON body: as many as the smaller ones can have
JSON_COPIES = 2  # of such a body in memory: its bytes, and its texts or their pictures
MAX_FOREIGN_PARTS = 64  # of a form of another program's API
MALFORMED_FORM = (ValueError, AssertionError, HttpProcessingError, web.RequestPayloadError)  # aiohttp's errors for one
MEMBER_LIMIT = web.AppKey("member_limit", PerMemberLimit)  # one form per visitor at a time; the next one waits unread


class FormMemory:
    """The memory that all forms take together."""

    def __init__(self, max_bytes: int = MAX_FORM_MEMORY) -> None:
        self._max_bytes = max_bytes
        self._used = 0

    @contextmanager
    def open_form(self) -> Generator[IncomingForm]:
        """Yield a form without bytes; at the end its memory is free again."""
        form = IncomingForm(self)
        try:
            yield form
        finally:
            self._used -= form.byte_count

    def reserve(self, size: int) -> None:
        """Reserve bytes. Raises `UserError` (429) if the forms take too much."""
        if self._used + size > self._max_bytes:
            raise UserError("Too many uploads at once: try again in a moment.", 429)
        self._used += size


class IncomingForm:
    """A form that arrives: its bytes so far, and whether it keeps the pace."""

    def __init__(self, memory: FormMemory) -> None:
        self.byte_count = 0
        self._memory = memory
        self._pace_bytes = 0
        self._deadline = asyncio.timeout(PACE_SECONDS)

    @asynccontextmanager
    async def receive(self, noun: str) -> AsyncGenerator[None]:
        """Refuse with 408 if it arrives too slowly, or takes too long in all; with 400 if it is malformed."""
        try:
            async with asyncio.timeout(FORM_TIMEOUT), self._deadline:
                yield
        except TimeoutError as error:
            raise web.HTTPRequestTimeout from error
        except MALFORMED_FORM as error:
            raise UserError(f"The {noun} can't be read.", 400) from error

    def count_chunk(self, size: int, copies: int = 1) -> None:
        """Count bytes that arrived and stay in memory so many times. Raises `UserError` (429) if all take too much."""
        self._memory.reserve(copies * size)
        self.byte_count += copies * size
        self._pace_bytes += size
        if self._pace_bytes >= PACE_BYTES:
            self._pace_bytes = 0
            self._deadline.reschedule(asyncio.get_running_loop().time() + PACE_SECONDS)


FORM_MEMORY = web.AppKey("form_memory", FormMemory)


@dataclass(frozen=True)
class FormFiles:
    """The files of a form."""

    pictures: tuple[bytes, ...] = ()
    mask: bytes | None = None
    controls: tuple[bytes, ...] = ()
    references: tuple[bytes, ...] = ()


async def read_body(request: web.Request, body_type: type[T]) -> T:
    """Return the body as `body_type`. Refuse with 400 if it is malformed, with 408 if it does not arrive in time."""
    try:
        async with asyncio.timeout(BODY_TIMEOUT):
            body = await request.read()
    except TimeoutError as error:
        raise web.HTTPRequestTimeout from error
    except web.RequestPayloadError as error:  # chunks or a compression that cannot be decoded
        raise UserError("The request can't be read.", 400) from error
    return _decode_body(body, body_type)


@asynccontextmanager
async def read_form(request: web.Request, body_type: type[T]) -> AsyncGenerator[tuple[T, FormFiles]]:
    """Yield the JSON part `request` of a form, with its files: up to five named `picture`, one `mask`, three `control`
    and four `reference`. A plain JSON body works too.

    The form is in memory while the context lasts. Refuse with 400 a form that cannot be decoded, with 408 one that
    arrives too slowly, with 413 one that is too large, with 429 too many bytes of all forms.
    """
    if not request.content_type.startswith("multipart/"):
        yield await read_body(request, body_type), FormFiles()
        return
    async with request.app[MEMBER_LIMIT].reserve(member_of(request).id):
        with request.app[FORM_MEMORY].open_form() as form:
            yield await _read_multipart(request, body_type, form)


@asynccontextmanager
async def read_picture_body(request: web.Request, body_type: type[T]) -> AsyncGenerator[T]:
    """Yield a JSON body that may hold pictures in base64, up to 64 MiB, for APIs that send them so.

    A large one is in the forms' memory while the context lasts, and is refused as a form is (`read_form`).
    """
    if _is_small(request):
        yield await read_body(request, body_type)
        return
    async with request.app[MEMBER_LIMIT].reserve(member_of(request).id):
        with request.app[FORM_MEMORY].open_form() as form:
            yield await _read_json(request, form, body_type)


def _is_small(request: web.Request) -> bool:
    """Return whether a body is as small as those without pictures. A compressed one tells nothing of its size."""
    size = request.content_length
    return size is not None and size < MAX_JSON_BYTES and "Content-Encoding" not in request.headers


async def _read_json(request: web.Request, form: IncomingForm, body_type: type[T]) -> T:
    """Return the body as `body_type`. A thread decodes it, so that megabytes keep nobody waiting."""
    return await run_in_thread(partial(_decode_body, await _read_json_bytes(request, form), body_type))


async def _read_json_bytes(request: web.Request, form: IncomingForm) -> bytearray:
    content = bytearray()
    async with form.receive("request"):
        while chunk := await request.content.readany():
            form.count_chunk(len(chunk), JSON_COPIES)
            content += chunk
            if len(content) > MAX_PICTURE_JSON_BYTES:
                raise UserError(f"The request is too large: the limit is {MAX_PICTURE_JSON_BYTES >> 20} MiB.", 413)
    return content


@asynccontextmanager
async def read_foreign_form(
    request: web.Request, max_files: Mapping[str, int]
) -> AsyncGenerator[tuple[dict[str, str], dict[str, list[bytes]]]]:
    """Yield the texts and files of a form of another program's API, by the names of its parts.

    `max_files`: how many files each name may have; any other part is a text. Refused as a form is (`read_form`).
    """
    async with request.app[MEMBER_LIMIT].reserve(member_of(request).id):
        with request.app[FORM_MEMORY].open_form() as form:
            async with form.receive("form"):
                parts = await _read_foreign_parts(await request.multipart(), form, max_files)
            yield parts


async def _read_foreign_parts(
    reader: MultipartReader, form: IncomingForm, max_files: Mapping[str, int]
) -> tuple[dict[str, str], dict[str, list[bytes]]]:
    texts = dict[str, str]()
    files = {name: list[bytes]() for name in max_files}
    for _ in range(MAX_FOREIGN_PARTS):
        if (part := await reader.next()) is None:
            return texts, files
        if not isinstance(part, BodyPartReader) or not part.name:
            raise UserError("Each part of the form needs a name.", 400)
        if part.name not in files:
            texts[part.name] = (await _read_part(part, MAX_JSON_BYTES, form)).decode()
            continue
        if len(files[part.name]) >= max_files[part.name]:
            raise UserError(f"A form has up to {max_files[part.name]} of {part.name}.", 400)
        files[part.name].append(await _read_part(part, MAX_UPLOAD_BYTES, form))
    raise UserError(f"A form has up to {MAX_FOREIGN_PARTS} parts.", 400)


async def _read_multipart(request: web.Request, body_type: type[T], form: IncomingForm) -> tuple[T, FormFiles]:
    async with form.receive("form"):
        parts = await _read_parts(await request.multipart(), form)
    if not parts["request"]:
        raise UserError("A form has one part `request`, and at most one `mask`.", 400)
    files = FormFiles(
        tuple(parts["picture"]), next(iter(parts["mask"]), None), tuple(parts["control"]), tuple(parts["reference"])
    )
    return _decode_body(parts["request"][0], body_type), files


async def _read_parts(reader: MultipartReader, form: IncomingForm) -> dict[str, list[bytes]]:
    """Return the contents of a form's parts, by their names."""
    parts: dict[str, list[bytes]] = {name: [] for name in MAX_PARTS}
    while (part := await reader.next()) is not None:
        if not isinstance(part, BodyPartReader) or part.name not in parts:
            raise UserError(
                "A form has the parts `request`, `picture`, `mask`, `control` and `reference`, and no other.", 400
            )
        if len(parts[part.name]) >= MAX_PARTS[part.name]:
            raise UserError(
                f"A form has one `request`, one `mask`, and up to {MAX_INIT_IMAGES} pictures (`picture`), "
                f"{MAX_CONTROLS} `control` and {MAX_REFERENCES} `reference`.",
                400,
            )
        max_bytes = MAX_JSON_BYTES if part.name == "request" else MAX_UPLOAD_BYTES
        parts[part.name].append(await _read_part(part, max_bytes, form))
    return parts


async def _read_part(part: BodyPartReader, max_bytes: int, form: IncomingForm) -> bytes:
    content = bytearray()
    while chunk := await part.read_chunk(CHUNK_BYTES):
        form.count_chunk(len(chunk))
        content += chunk
        if len(content) > max_bytes:
            kind = "picture" if max_bytes == MAX_UPLOAD_BYTES else "text"
            raise UserError(f"The {kind} is too large: the limit is {max_bytes // 1024} KiB.", 413)
    return bytes(content)


def _decode_body(body: bytes | bytearray, body_type: type[T]) -> T:
    _check_value_count(body)
    try:
        try:
            return decode_json(body, body_type)  # builds nothing for unknown fields
        except msgspec.ValidationError:
            return convert(_mend_integers(msgspec.json.decode(body)), body_type)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise UserError(f"The request can't be read: {error}.", 400) from error


def _check_value_count(body: bytes | bytearray) -> None:
    """Raise `UserError` (413) for too many values: an object takes far more memory than its two brackets.

    Each value but the first follows one of these characters, or a name that does. Base64 has none of them.
    """
    if sum(map(body.count, (b",", b"[", b"{"))) > MAX_JSON_VALUES:
        raise UserError(f"The request is too large: it has more than {MAX_JSON_VALUES} values.", 413)


def _mend_integers(value: object) -> object:
    """Return the value of a JSON text with 100 for each 100.0: JSON Schema knows no difference, msgspec does."""
    if isinstance(value, dict):
        return {name: _mend_integers(item) for name, item in cast(dict[str, object], value).items()}
    if isinstance(value, list):
        return [_mend_integers(item) for item in cast(list[object], value)]
    if isinstance(value, float) and value.is_integer() and abs(value) <= MAX_WHOLE:
        return int(value)
    return value


MAX_TEXT = MAX_UPLOAD_BYTES * 4 // 3 + 1024  # characters of a picture in base64
DATA_URL = "data:"


def decode_picture(text: str, label: str = "picture") -> bytes:
    """Return the bytes of a picture in base64, perhaps as a data URL. Raises `UserError`; decodes no pixel.

    Line breaks within are allowed. It takes some milliseconds for a megabyte.
    """
    if text.startswith(("http://", "https://")):
        raise UserError(f"The {label} must be sent in base64: Darkroom fetches no addresses for programs.")
    header, _, content = text.partition(",") if text.startswith(DATA_URL) else ("", "", text)
    if header and not header.endswith(";base64"):
        raise UserError("A data URL has its picture in base64, as in data:image/png;base64,…")
    if len(content) > MAX_TEXT:
        raise UserError(f"The {label} is too large: up to {MAX_UPLOAD_BYTES >> 20} MiB are read.", 413)
    try:
        return base64.b64decode("".join(content.split()), validate=True)
    except (binascii.Error, ValueError) as error:  # ValueError: characters outside ASCII
        raise UserError(f"The {label} is no picture in base64.") from error


def encode_base64(content: bytes) -> str:
    return base64.b64encode(content).decode()


def destination_of(request: web.Request) -> Destination:
    return Destination("terminal" if request.headers.get("X-Darkroom") == "terminal" else "web")


def idempotency_key_of(request: web.Request) -> str | None:
    """Return the job service's key for an Idempotency-Key: the same visitor, address and key mean the same request."""
    header = request.headers.get("Idempotency-Key")
    if header is None:
        return None
    if not (1 <= len(header) <= 200 and header.isprintable()):
        raise UserError("An Idempotency-Key has 1 to 200 printable characters.", 400)
    text = "\n".join([member_of(request).id, request.method, request.path, header])
    return "web:" + hashlib.sha256(text.encode()).hexdigest()[:40]

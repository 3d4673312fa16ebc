"""The upload decoder: turns an uploaded file into a plain PNG, in a sandboxed subprocess.

Limits are checked before a pixel is decoded, and the subprocess's output is validated. Each fault has one sentence. A
Python with Pillow takes 0.2 s to start, a fork of it 2 ms: so the process (`bot.pictures.uploads.sandbox_worker`)
stays and forks for each upload. The memory for uploads of all members together is limited, from their arrival until
their job exists.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from bot.domain.errors import HttpStatus, UserError
from bot.pictures.image_codec import GREY, RGB, InvalidPng, UnreadableImage, validate_png
from bot.pictures.image_codec import MAX_PIXELS as MAX_WORKER_PIXELS
from bot.pictures.uploads import image_decoding, sandbox_worker
from bot.pictures.uploads.image_decoding import MAX_PIXELS, MAX_SIDE, OUTPUT_SIDE, UploadKind

log = logging.getLogger(__name__)

MAX_UPLOAD_BYTES = 16 * 2**20
DECODE_TIMEOUT = 10.0  # wall clock, per upload
MEMORY_LIMIT = 2**30  # of address space: 7/8 of it suffice for `MAX_PIXELS` of every kind (test_upload_decoder.py)
DECODER_COUNT = 2  # uploads decoded at once
MAX_WAITING = 32  # uploads that wait: each is held in memory
WORKER_TIMEOUT = 60.0  # wall clock for a worker's pictures: on a busy machine a good one must not count as bad
MAX_WORKER_BYTES = 96 * 2**20  # as `bot.jobs.ingest.MAX_BYTES` allows, and more
ASPECT_TOLERANCE = 0.02  # relative difference of two aspect ratios that count as equal

_NAMES = [name.replace("WEBP", "WebP") for name in image_decoding.FORMATS]
_FORMAT_NAMES = f"{', '.join(_NAMES[:-1])} and {_NAMES[-1]}"
_MILLION = f"{MAX_PIXELS // 1_000_000} million"
ERRORS: dict[bytes, tuple[str, HttpStatus]] = {
    image_decoding.UNKNOWN_FORMAT: (f"The {{}} has a format that is not supported here: {_FORMAT_NAMES} are.", 422),
    image_decoding.BROKEN: ("The {} is damaged and cannot be read: save it anew and try again.", 422),
    image_decoding.TOO_MANY_PIXELS: (f"The {{}} has too many pixels: up to {_MILLION} are read.", 413),
    image_decoding.SIDE_TOO_LONG: (f"The {{}} is too long: up to {MAX_SIDE} pixels a side are read.", 413),
    image_decoding.OUT_OF_MEMORY: ("The {} takes too much memory to be read: save it smaller.", 413),
    image_decoding.EMPTY_MASK: ("Nothing is painted: what is white in the {} is drawn anew.", 422),
}
TOO_SLOW = "The {} takes too long to be read: save it anew, or smaller."
DECODER_FAILED = "Reading the {} broke off: try again, or save it anew."
BUSY = "Too many pictures are being read just now: try again soon."


@dataclass(frozen=True)
class DecodedImage:
    """A decoded upload: a PNG without metadata, RGB or (for a mask) grey. `notes` tell the member about changes."""

    png: bytes
    width: int
    height: int
    sha256: str
    notes: tuple[str, ...] = ()


class UploadDecoder:
    """One per bot. The subprocesses start with the first upload and stay until `close`."""

    def __init__(
        self, *, timeout: float = DECODE_TIMEOUT, memory: int = MEMORY_LIMIT, max_waiting: int = MAX_WAITING
    ) -> None:
        self._timeout = timeout
        self._memory = memory
        self._max_waiting = max_waiting
        self._slots = asyncio.Semaphore(DECODER_COUNT)
        self._waiting = 0
        self._idle_decoders: list[DecoderProcess] = []
        self._decoders: set[DecoderProcess] = set()
        self._closed = False

    async def decode_picture(self, content: bytes, *, label: str = "picture") -> DecodedImage:
        """Decode a picture of any supported format to RGB. Raises `UserError` with a sentence about the `label`."""
        header, png = await self._request_decode(image_decoding.PICTURE, content, label)
        return await asyncio.to_thread(_build_image, header, png, RGB, label)

    async def decode_mask(
        self, content: bytes, *, shape: tuple[int, int] | None = None, is_transparency: bool = False
    ) -> DecodedImage:
        """Decode a mask to grey: white is repainted. Raises `UserError`, also if nothing is white.

        `is_transparency`: what is transparent in the file is repainted, where anything is; else what is white.

        `shape`: width and height of its picture. The mask may be smaller or larger, since both are scaled later. With
        another aspect ratio both would be cropped differently, and the mask would be misplaced.
        """
        kind = image_decoding.TRANSPARENCY_MASK if is_transparency else image_decoding.MASK
        header, png = await self._request_decode(kind, content, "mask")
        width, height = header[2:]
        if shape is not None and not _has_same_aspect((width, height), shape):
            picture = f"its picture {shape[0]} × {shape[1]}"
            raise UserError(f"The mask has {width} × {height} pixels, and {picture}: both must be of one shape.")
        return await asyncio.to_thread(_build_image, header, png, GREY, "mask")

    async def read_recipe_text(self, content: bytes) -> str:
        """Return the recipe that a picture carries, as AUTOMATIC1111's web UI stores it; empty if it has none.

        Raises `UserError` for anything but a picture.
        """
        _, text = await self._request_decode(image_decoding.RECIPE_TEXT, content, "picture")
        return text[: 4 * image_decoding.MAX_RECIPE_LENGTH].decode("utf-8", "replace")

    async def check_pictures(self, pictures: Sequence[bytes], max_pixels: int = MAX_WORKER_PIXELS) -> None:
        """Decode a worker's pictures (PNG, JPEG or WebP) and keep nothing. Raises `UnreadableImage` for bad ones.

        `max_pixels`: of each. Raises OSError if no process can decode now: then try again later. One child decodes
        them one after the other: a fork takes longer than a small picture.
        """
        for batch in _split_by_size(pictures, MAX_WORKER_BYTES // 2):
            await self._check_batch(batch, max_pixels)

    async def _check_batch(self, pictures: Sequence[bytes], max_pixels: int) -> None:
        parts = [part for picture in pictures for part in (image_decoding.LENGTH.pack(len(picture)), picture)]
        content = b"".join((image_decoding.LENGTH.pack(max_pixels), *parts))
        try:
            await self._request_decode(image_decoding.WORKER_PICTURES, content, "picture", MAX_WORKER_BYTES)
        except UserError as error:
            if error.status == 429:
                raise OSError(error.sentence) from error
            raise UnreadableImage(error.sentence) from error

    async def select_readable(self, pictures: Mapping[int, bytes], max_pixels: int) -> dict[int, bytes]:
        """Return those of a worker's pictures that can be decoded; none if no process can decode now."""
        try:
            await self.check_pictures(list(pictures.values()), max_pixels)
        except OSError:
            return {}
        except UnreadableImage:
            if len(pictures) == 1:
                return {}
            single = [await self.select_readable({index: picture}, max_pixels) for index, picture in pictures.items()]
            return {index: picture for one in single for index, picture in one.items()}
        return dict(pictures)

    async def close(self) -> None:
        """End every subprocess; uploads in progress fail."""
        self._closed = True
        await asyncio.gather(*(decoder.kill() for decoder in list(self._decoders)))
        self._decoders.clear()

    async def _request_decode(
        self, kind: UploadKind, content: bytes, label: str, max_bytes: int = MAX_UPLOAD_BYTES
    ) -> tuple[tuple[bytes, int, int, int], bytes]:
        if not content:
            raise UserError(f"The {label} is empty.")
        if len(content) > max_bytes:
            raise UserError(f"The {label} is too large: up to {max_bytes // 2**20} MiB are read.", 413)
        is_upload = kind != image_decoding.WORKER_PICTURES  # callers bound the workers' pictures that wait
        if self._closed or (is_upload and self._waiting >= self._max_waiting):
            raise UserError(BUSY, 429)
        self._waiting += is_upload
        try:
            async with self._slots:
                exit_kind, output = await self._decode_once(kind, content, label)
        finally:
            self._waiting -= is_upload
        if exit_kind == sandbox_worker.TIMED_OUT:
            raise UserError(TOO_SLOW.format(label))
        if exit_kind != sandbox_worker.OUTPUT or len(output) < image_decoding.HEADER.size:
            log.warning("upload decoder: an upload of %d bytes ended its decoder (%d)", len(content), exit_kind)
            raise UserError(DECODER_FAILED.format(label))
        header = image_decoding.HEADER.unpack_from(output)
        if header[0] != image_decoding.DECODED:
            sentence, status = ERRORS.get(header[0], (DECODER_FAILED, 422))
            raise UserError(sentence.format(label), status)
        return header, output[image_decoding.HEADER.size :]

    async def _decode_once(self, kind: UploadKind, content: bytes, label: str) -> tuple[int, bytes]:
        try:
            decoder = await self._acquire_decoder()
        except (DecoderGone, OSError) as error:
            log.error("upload decoder: no process: %s", error)
            raise UserError("Pictures cannot be read just now: try again soon.", 429) from error
        try:
            return await decoder.decode(kind, content)
        except DecoderGone as error:
            log.warning("upload decoder: a process is gone: %s", error)
            raise UserError(DECODER_FAILED.format(label)) from error
        finally:
            if decoder.is_ready and not self._closed:
                self._idle_decoders.append(decoder)
            else:
                await self._end_decoder(decoder)

    async def _acquire_decoder(self) -> DecoderProcess:
        """Return a process that is idle and alive, else start one."""
        while self._idle_decoders:
            if (decoder := self._idle_decoders.pop()).is_ready:
                return decoder
            await self._end_decoder(decoder)
        decoder = await DecoderProcess.start(self._timeout, self._memory)
        self._decoders.add(decoder)
        if self._closed:
            await self._end_decoder(decoder)
            raise DecoderGone("closed")
        return decoder

    async def _end_decoder(self, decoder: DecoderProcess) -> None:
        await decoder.kill()
        self._decoders.discard(decoder)


def _has_same_aspect(size: tuple[int, int], shape: tuple[int, int]) -> bool:
    """Return whether two shapes are alike; a side may have been rounded when one picture was scaled down."""
    return abs(size[0] * shape[1] / (size[1] * shape[0]) - 1) <= max(ASPECT_TOLERANCE, 1 / min(*size, *shape))


def _split_by_size(pictures: Sequence[bytes], max_bytes: int) -> Iterator[list[bytes]]:
    """Split pictures, in their order, into lists of at most `max_bytes`; a larger one is alone."""
    batch: list[bytes] = []
    size = 0
    for picture in pictures:
        if batch and size + len(picture) > max_bytes:
            yield batch
            batch = []
            size = 0
        batch.append(picture)
        size += len(picture)
    if batch:
        yield batch


def _build_image(header: tuple[bytes, int, int, int], png: bytes, colour: int, label: str) -> DecodedImage:
    """Return the decoded upload. Raises `UserError` for an invalid PNG, since the subprocess is untrusted."""
    _, change_flags, *original_size = header
    try:
        width, height = validate_png(png, OUTPUT_SIDE, colour)
    except InvalidPng as error:
        log.warning("upload decoder: a decoded upload is no plain PNG: %s", error)
        raise UserError(DECODER_FAILED.format(label)) from error
    notes = {
        image_decoding.ANIMATED: "It is animated: its first picture is taken.",
        image_decoding.TRANSPARENT: "What is transparent in it was made white.",
        image_decoding.REDUCED: (
            f"It was made smaller, from {original_size[0]} × {original_size[1]} to {width} × {height}."
        ),
    }
    if colour == GREY:
        notes.pop(image_decoding.TRANSPARENT)
    applied_notes = tuple(note for flag, note in notes.items() if change_flags & flag)
    return DecodedImage(png, width, height, hashlib.sha256(png).hexdigest(), applied_notes)


ROOT = Path(__file__).parents[3]
START_TIMEOUT = 30.0  # seconds until it is ready, on a busy machine
GRACE_SECONDS = 5.0  # seconds beyond an upload's limit after which we consider the process hung
START_CODE = (
    "import sys; sys.path.insert(0, {!r}); from bot.pictures.uploads.sandbox_worker import main; main({!r}, {!r})"
)
# some Pythons find their own library by these; they hold no secret
PASSED_VARIABLES = ("LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH")


class DecoderGone(Exception):
    """The process ended, hangs, or sent an invalid answer."""


class DecoderProcess:
    """Unusable after `DecoderGone` or a cancellation; its owner calls `kill`."""

    def __init__(self, process: Process, timeout: float) -> None:
        self._process = process
        self._timeout = timeout
        self._busy = False

    @classmethod
    async def start(cls, timeout: float, memory: int) -> DecoderProcess:
        """Start a process and wait until it is ready. Raises `DecoderGone` or OSError.

        It gets no environment, so it knows no secret. Errors of its start go to our standard error; a child with an
        upload has no standard error.
        """
        code = START_CODE.format(str(ROOT), float(timeout), int(memory))
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-I",
            "-c",
            code,
            stdin=PIPE,
            stdout=PIPE,
            env={name: os.environ[name] for name in PASSED_VARIABLES if name in os.environ},
            start_new_session=True,  # Ctrl-C is for the bot; and `kill` ends the group, children included
        )
        decoder = cls(process, timeout)
        try:
            async with asyncio.timeout(START_TIMEOUT):
                if await decoder._stdout.readexactly(1) != sandbox_worker.READY:
                    raise DecoderGone("not ready")
        except (EOFError, TimeoutError) as error:
            await decoder.kill()
            raise DecoderGone("did not start") from error
        except BaseException:
            await decoder.kill()
            raise
        return decoder

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def is_ready(self) -> bool:
        """Whether it can take a request."""
        return self._process.returncode is None and not self._busy

    @property
    def _stdout(self) -> asyncio.StreamReader:
        assert self._process.stdout is not None
        return self._process.stdout

    async def decode(self, kind: UploadKind, content: bytes) -> tuple[int, bytes]:
        """Decode a file. Return how the child ended (`sandbox_worker.OUTPUT` and so on), and its output. Raises
        `DecoderGone`.
        """
        stdin = self._process.stdin
        self._busy = True
        assert stdin is not None
        try:
            async with asyncio.timeout(self._timeout + GRACE_SECONDS):
                stdin.write(sandbox_worker.REQUEST_HEADER.pack(kind, len(content)))
                stdin.write(content)
                await stdin.drain()
                exit_kind, length = sandbox_worker.ANSWER_HEADER.unpack(
                    await self._stdout.readexactly(sandbox_worker.ANSWER_HEADER.size)
                )
                if length > sandbox_worker.MAX_OUTPUT_BYTES:
                    raise DecoderGone("an answer out of bounds")
                output = await self._stdout.readexactly(length)
        except (OSError, EOFError, TimeoutError) as error:
            raise DecoderGone("no answer") from error
        self._busy = False
        return exit_kind, output

    async def kill(self) -> None:
        """Kill the process with its child and wait for it, even while the caller is being cancelled."""
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        assert self._process.stdin is not None
        self._process.stdin.close()
        await asyncio.shield(self._process.wait())


MAX_BYTES = 384 * 2**20
MAX_WAITING_FOR_MEMORY = 64  # requests that wait for memory
MEMORY_BUSY = "Too many pictures are being uploaded just now: try again soon."


class MemoryLimiter:
    """One per bot. A waiting request has downloaded nothing yet; requests are served in order."""

    def __init__(self, max_bytes: int = MAX_BYTES, max_waiting: int = MAX_WAITING_FOR_MEMORY) -> None:
        self._max_bytes = max_bytes
        self._max_waiting = max_waiting
        self._lock = asyncio.Lock()
        self._released = asyncio.Event()
        self._reserved = self._waiting = 0

    @property
    def reserved_bytes(self) -> int:
        """Bytes that are reserved now."""
        return self._reserved

    @asynccontextmanager
    async def reserve(self, size: int) -> AsyncGenerator[None]:
        """Reserve `size` bytes while the body runs; if that exceeds the limit, wait for all of the memory. Raises
        `UserError`.
        """
        size = min(size, self._max_bytes)
        if self._waiting >= self._max_waiting:
            raise UserError(MEMORY_BUSY, 429)
        self._waiting += 1
        try:
            async with self._lock:
                while self._reserved + size > self._max_bytes:
                    self._released.clear()
                    await self._released.wait()
                self._reserved += size
        finally:
            self._waiting -= 1
        try:
            yield
        finally:
            self._reserved -= size
            self._released.set()

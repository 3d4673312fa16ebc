"""Films as files: frames that are drawn on demand, with durations, written as WebP, AVIF, GIF or MP4.

The encoder reduces the frames until they fit a size limit. The same frames give the same bytes. MP4 needs PyAV, from
the extra `mp4`. CPU-bound: async callers use a thread.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from fractions import Fraction
from importlib.util import find_spec
from itertools import pairwise
from types import MappingProxyType
from typing import Any, Literal, cast, get_args

from PIL import Image, features

from bot.domain.errors import UserError
from bot.pictures.image_codec import BACKGROUND

FRAME_MS = 90
HOLD_MS = 2500
TURN_MS = 700  # where a film begins with a finished picture or reverses
MAX_FILM_BYTES = 10 * 1024 * 1024  # Discord's upload limit in a server without boosts
MAX_SIDE = 1032  # pixels of a frame's longer side: two cells of 512 with the gap, and 150 MB for 48 frames

Size = tuple[int, int]

IS_ABANDONED: ContextVar[Callable[[], bool]] = ContextVar("is_abandoned", default=lambda: False)  # nobody waits for it


class RenderingAbandoned(Exception):
    """Nobody waits for this film any more."""


# Attempts, in order, until a film fits: every n-th frame, size as a share, quality level (0 is the best).
_ATTEMPTS = (
    (1, 1.0, 0), (2, 1.0, 0), (3, 1.0, 0), (3, 0.75, 0), (3, 0.5, 0), (3, 0.5, 1), (3, 0.5, 2), (4, 0.25, 2),
    (6, 0.125, 2),
)  # fmt: skip


@dataclass(frozen=True)
class Animation:
    """`count` frames; `draw(index, size)` draws one, counted from 0, of exactly this size in pixels.

    `pauses`: frames that are never left out, and how many milliseconds longer each is shown. The last frame always
    stays and is shown for `HOLD_MS`.
    """

    count: int
    size: Size
    draw: Callable[[int, Size], Image.Image]
    pauses: Mapping[int, int] = field(default_factory=dict[int, int])


def encode_to_fit(animation: Animation, film_format: FilmFormat = "webp", limit: int = MAX_FILM_BYTES) -> bytes:
    """Encode the frames in at most `limit` bytes: with fewer frames, then smaller, then at lower quality.

    The film lasts as long with fewer frames. The same frames give the same bytes. Raises `UserError`: 422 if this
    machine cannot encode the format, 413 if even the smallest film does not fit.
    """
    check_film_format(film_format)
    for stride, scale, level in _attempts(film_format):
        indices = select_frames(animation, stride)
        size = _scale_size(animation.size, scale)
        frames = list[Image.Image]()
        for index in indices:
            if IS_ABANDONED.get()():
                raise RenderingAbandoned
            frames.append(animation.draw(index, size))
        content = encode_frames(frames, frame_durations(animation, indices), film_format, level)
        if len(content) <= limit:
            return content
    raise UserError("This film is too large to be shown here, even at its smallest.", 413)


def _attempts(film_format: FilmFormat) -> Sequence[tuple[int, float, int]]:
    """Return the attempts. A GIF without dithering is nearly as good and up to half as large: so try that early."""
    if film_format != "gif":
        return _ATTEMPTS
    return _ATTEMPTS[0], *((stride, scale, max(1, level)) for stride, scale, level in ((1, 1.0, 1), *_ATTEMPTS[1:]))


def select_frames(animation: Animation, stride: int) -> list[int]:
    """Return every n-th frame, counted from the end, so that the last is always there; and the pauses."""
    last = animation.count - 1
    return [index for index in range(animation.count) if (last - index) % stride == 0 or index in animation.pauses]


def frame_durations(animation: Animation, indices: list[int]) -> list[int]:
    """Return each frame's milliseconds: until the next one. The first also covers the frames left out before it."""
    starts = [0, *indices[1:]]
    spans = [(next_index - index) * FRAME_MS for index, next_index in pairwise(starts)]
    return [ms + animation.pauses.get(index, 0) for index, ms in zip(indices, spans, strict=False)] + [HOLD_MS]


def join_animations(first: Animation, second: Animation, pause: int = TURN_MS) -> Animation:
    """Join two animations at the second one's size; the first one's end is shown `pause` milliseconds longer."""

    def draw(index: int, size: Size) -> Image.Image:
        return first.draw(index, size) if index < first.count else second.draw(index - first.count, size)

    shifted_pauses = {first.count + index: ms for index, ms in second.pauses.items()}
    pauses = {**first.pauses, first.count - 1: pause, **shifted_pauses}
    return Animation(first.count + second.count, second.size, draw, pauses)


def bound_size(size: Size, max_side: int = MAX_SIDE) -> Size:
    """Return a size of the same shape whose longer side is at most `max_side`."""
    return _scale_size(size, min(1.0, max_side / max(size)))


def _scale_size(size: Size, scale: float) -> Size:
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


FilmFormat = Literal["webp", "avif", "gif", "mp4"]
FILM_FORMATS: tuple[FilmFormat, ...] = get_args(FilmFormat)
MEDIA_TYPES: Mapping[FilmFormat, str] = MappingProxyType(
    {"webp": "image/webp", "avif": "image/avif", "gif": "image/gif", "mp4": "video/mp4"}
)
TICK_MS = 90  # an MP4 has one frame rate; a longer frame is repeated

_X264 = MappingProxyType({"preset": "medium", "threads": "1"})
_WEBP = (80, 60, 40)
_AVIF = (65, 50, 35)
_CRF = (20, 26, 32)
_COLOURS = 255  # one of the 256 is left for pixels that do not change between frames
# Dithering keeps a GIF of noise or soft colours closer to its frames: half the error after a blur of one pixel. Without
# it, a film of a grid has little more than half of the bytes.
_GIF = ((_COLOURS, True), (_COLOURS, False), (64, False))  # colours, and whether to dither (Floyd-Steinberg)
_SAMPLE_SIDE = 64  # pixels a side that each frame contributes to the palette
_MAX_SAMPLES = 48  # most frames that contribute to the palette


def parse_film_format(text: str) -> FilmFormat:
    """Return the film format of that name. Raises `UserError` (422)."""
    for film_format in FILM_FORMATS:
        if film_format == text.strip().lower().removeprefix("."):
            return film_format
    raise UserError("A film is made as webp, avif, gif or mp4.")


def available_formats() -> tuple[FilmFormat, ...]:
    """Return the formats that this machine can encode: GIF and WebP always."""
    return tuple(film_format for film_format in FILM_FORMATS if not _missing_reason(film_format))


def check_film_format(film_format: FilmFormat) -> None:
    """Raise `UserError` (422), with a remedy, for a format that this machine cannot encode."""
    if reason := _missing_reason(film_format):
        raise UserError(reason)


def _missing_reason(film_format: FilmFormat) -> str:
    if film_format == "avif" and not features.check("avif"):
        return "AVIF films cannot be made here: this machine's Pillow comes without AVIF. WebP and GIF can."
    if film_format == "mp4" and find_spec("av") is None:
        return "MP4 films cannot be made here without an extra: pip install 'darkroom-bot[mp4]'. WebP and GIF can."
    return ""


def encode_frames(
    frames: Sequence[Image.Image], durations: Sequence[int], film_format: FilmFormat, level: int = 0
) -> bytes:
    """Encode RGB frames of one size, each shown for its milliseconds, as a looping file.

    `level`: 0 to 2, lower quality each. Whether an MP4 loops is up to its player. Raises `ValueError` for no frames, or
    for frames of several sizes.
    """
    if not frames or len({frame.size for frame in frames}) > 1 or len(frames) != len(durations):
        raise ValueError("a film has frames of one size, and a duration for each")
    if film_format == "mp4":
        return _encode_mp4(frames, durations, _CRF[level])
    options: dict[FilmFormat, dict[str, Any]] = {
        "webp": {"loop": 0, "quality": _WEBP[level], "method": 2},
        "avif": {"quality": _AVIF[level], "speed": 8, "max_threads": 1},
        "gif": {"loop": 0, "optimize": False, "disposal": 1},
    }
    first, *others = _to_palette(frames, *_GIF[level]) if film_format == "gif" else frames
    buffer = io.BytesIO()
    frame_options = {"save_all": True, "append_images": others, "duration": list(durations)}
    first.save(buffer, film_format.upper(), **frame_options, **options[film_format])
    return _strip_timestamps(buffer.getvalue()) if film_format == "avif" else buffer.getvalue()


def _to_palette(frames: Sequence[Image.Image], colours: int, use_dither: bool) -> list[Image.Image]:
    """Convert the frames to one shared palette: a palette per frame would flicker."""
    stride = -(-len(frames) // _MAX_SAMPLES)
    samples = frames[::-1][::stride]  # the last frame always contributes
    sample_strip = Image.new("RGB", (_SAMPLE_SIDE, _SAMPLE_SIDE * len(samples)))
    for index, frame in enumerate(samples):
        sample = frame.resize((_SAMPLE_SIDE, _SAMPLE_SIDE), Image.Resampling.NEAREST)
        sample_strip.paste(sample, (0, index * _SAMPLE_SIDE))
    palette = sample_strip.quantize(colours, Image.Quantize.MEDIANCUT)
    dither = Image.Dither.FLOYDSTEINBERG if use_dither else Image.Dither.NONE
    return [frame.quantize(palette=palette, dither=dither) for frame in frames]


def _encode_mp4(frames: Sequence[Image.Image], durations: Sequence[int], crf: int) -> bytes:
    """Encode H.264 for every player: 4:2:0, so with even sides. One thread: several slice a picture differently."""
    import av
    from av.codec.codec import UnknownCodecError

    width, height = (side + side % 2 for side in frames[0].size)
    ticks = [max(1, round(duration / TICK_MS)) for duration in durations]
    buffer = io.BytesIO()
    index_bytes = 2048 + 32 * sum(ticks)  # reserved at the start: at the end, players would need the whole film
    options = {"moov_size": str(index_bytes), "fflags": "+bitexact"}
    with av.open(buffer, "w", format="mp4", options=options) as container:
        try:
            stream = container.add_stream("libx264", rate=Fraction(1000, TICK_MS), options={"crf": str(crf), **_X264})
        except UnknownCodecError as error:
            raise UserError("MP4 films cannot be made here: this machine's PyAV comes without H.264.") from error
        stream.width = width
        stream.height = height
        stream.pix_fmt = "yuv420p"
        for frame, count in zip(frames, ticks, strict=True):
            canvas = Image.new("RGB", (width, height), BACKGROUND)
            canvas.paste(frame)
            for _ in range(count):
                container.mux(stream.encode(cast(Any, av.VideoFrame).from_image(canvas)))
        container.mux(stream.encode())
    return buffer.getvalue()


def _strip_timestamps(file: bytes) -> bytes:
    """Return the AVIF without its creation time, which libavif writes (ISO/IEC 14496-12, 8.2.2, 8.3.2 and 8.4.2)."""
    content = bytearray(file)
    pending = [(0, len(file))]
    while pending:
        offset, end = pending.pop()
        while offset + 8 <= end:
            size = int.from_bytes(file[offset : offset + 4], "big")
            name = file[offset + 4 : offset + 8]
            if size < 8:  # up to the end of the file, or over 4 GB: the media data
                break
            if name in (b"moov", b"trak", b"mdia"):
                pending.append((offset + 8, offset + size))
            elif name in (b"mvhd", b"tkhd", b"mdhd"):
                time_bytes = 16 if file[offset + 8] else 8  # creation and modification time, of 64 or 32 bits
                content[offset + 12 : offset + 12 + time_bytes] = bytes(time_bytes)
            offset += size
    return bytes(content)

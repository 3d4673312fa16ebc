"""Encoders for animations: WebP, AVIF, GIF or MP4. The same frames give the same bytes.

MP4 needs PyAV, from the extra `mp4`. CPU-bound: async callers use a thread.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from fractions import Fraction
from importlib.util import find_spec
from types import MappingProxyType
from typing import Literal, get_args

from PIL import Image, features

from bot.images.pixels import PAPER
from bot.refused import Refused

Kind = Literal["webp", "avif", "gif", "mp4"]
KINDS: tuple[Kind, ...] = get_args(Kind)
TYPES: Mapping[Kind, str] = MappingProxyType(
    {"webp": "image/webp", "avif": "image/avif", "gif": "image/gif", "mp4": "video/mp4"}
)
TICK_MS = 90  # an MP4 has one frame rate; a longer frame is repeated

_X264 = MappingProxyType({"preset": "medium", "threads": "1"})
_WEBP, _AVIF, _CRF = (80, 60, 40), (65, 50, 35), (20, 26, 32)
_COLOURS = 255  # one of the 256 is left for pixels that do not change between frames
# Dithering keeps a GIF of noise or soft colours closer to its frames: half the error after a blur of one pixel. Without
# it, a film of a grid has little more than half of the bytes.
_GIF = ((_COLOURS, True), (_COLOURS, False), (64, False))  # colours, and whether to dither (Floyd-Steinberg)
_SAMPLE = 64  # pixels a side that each frame contributes to the palette
_SEVERAL = 48  # most frames that contribute to the palette


def kind_of(text: str) -> Kind:
    """Return the film format of that name. Raises `Refused` (422)."""
    for kind in KINDS:
        if kind == text.strip().lower().removeprefix("."):
            return kind
    raise Refused("A film is made as webp, avif, gif or mp4.")


def available() -> tuple[Kind, ...]:
    """Return the formats that can be made here: GIF and WebP always."""
    return tuple(kind for kind in KINDS if not _missing(kind))


def check_kind(kind: Kind) -> None:
    """Raise `Refused` (422), with a remedy, for a format that cannot be made here."""
    if why := _missing(kind):
        raise Refused(why)


def _missing(kind: Kind) -> str:
    if kind == "avif" and not features.check("avif"):
        return "AVIF films cannot be made here: this machine's Pillow comes without AVIF. WebP and GIF can."
    if kind == "mp4" and find_spec("av") is None:
        return "MP4 films cannot be made here without an extra: pip install 'darkroom-bot[mp4]'. WebP and GIF can."
    return ""


def encoded(frames: Sequence[Image.Image], durations: Sequence[int], kind: Kind, level: int = 0) -> bytes:
    """Encode RGB frames of one size, each shown for its milliseconds, as a looping file.

    `level`: 0 to 2, lower quality each. Whether an MP4 loops is up to its player. Raises `ValueError` for no frames, or
    frames of several sizes.
    """
    if not frames or len({frame.size for frame in frames}) > 1 or len(frames) != len(durations):
        raise ValueError("a film has frames of one size, and a duration for each")
    if kind == "mp4":
        return _mp4(frames, durations, _CRF[level])
    out, first, rest = io.BytesIO(), frames[0], list(frames[1:])
    if kind == "webp":
        first.save(
            out, "WEBP", save_all=True, append_images=rest, duration=list(durations), loop=0, quality=_WEBP[level],
            method=2,
        )  # fmt: skip
    elif kind == "avif":
        first.save(
            out, "AVIF", save_all=True, append_images=rest, duration=list(durations), quality=_AVIF[level], speed=8,
            max_threads=1,
        )  # fmt: skip
    else:
        first, *rest = _indexed(frames, *_GIF[level])
        first.save(
            out, "GIF", save_all=True, append_images=rest, duration=list(durations), loop=0, optimize=False, disposal=1
        )
    return _undated(out.getvalue()) if kind == "avif" else out.getvalue()


def _indexed(frames: Sequence[Image.Image], colours: int, spread: bool) -> list[Image.Image]:
    """Convert the frames to one shared palette: a palette per frame would flicker."""
    every = -(-len(frames) // _SEVERAL)
    taken = frames[::-1][::every]  # the last frame always contributes
    strip = Image.new("RGB", (_SAMPLE, _SAMPLE * len(taken)))
    for place, frame in enumerate(taken):
        strip.paste(frame.resize((_SAMPLE, _SAMPLE), Image.Resampling.NEAREST), (0, place * _SAMPLE))
    palette = strip.quantize(colours, Image.Quantize.MEDIANCUT)
    dither = Image.Dither.FLOYDSTEINBERG if spread else Image.Dither.NONE
    return [frame.quantize(palette=palette, dither=dither) for frame in frames]


def _mp4(frames: Sequence[Image.Image], durations: Sequence[int], crf: int) -> bytes:
    """Encode H.264 for every player: 4:2:0, so with even sides. One thread: several slice a picture differently."""
    import av
    from av.codec.codec import UnknownCodecError

    width, height = (side + side % 2 for side in frames[0].size)
    ticks = [max(1, round(duration / TICK_MS)) for duration in durations]
    out, options = io.BytesIO(), {"moov_size": str(_index(sum(ticks))), "fflags": "+bitexact"}
    with av.open(out, "w", format="mp4", options=options) as container:
        try:
            stream = container.add_stream("libx264", rate=Fraction(1000, TICK_MS), options={"crf": str(crf), **_X264})
        except UnknownCodecError as error:
            raise Refused("MP4 films cannot be made here: this machine's PyAV comes without H.264.") from error
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for frame, count in zip(frames, ticks, strict=True):
            paper = Image.new("RGB", (width, height), PAPER)
            paper.paste(frame)
            for _ in range(count):
                container.mux(stream.encode(av.VideoFrame.from_image(paper)))
        container.mux(stream.encode())
    return out.getvalue()


def _index(frames: int) -> int:
    """Return the bytes to reserve at the start for an MP4's index: at the end, players would need the whole film."""
    return 2048 + 32 * frames


def _undated(file: bytes) -> bytes:
    """Return the AVIF without its creation time, which libavif writes (ISO/IEC 14496-12, 8.2.2, 8.3.2 and 8.4.2)."""
    made, waiting = bytearray(file), [(0, len(file))]
    while waiting:
        at, end = waiting.pop()
        while at + 8 <= end:
            size, name = int.from_bytes(file[at : at + 4], "big"), file[at + 4 : at + 8]
            if size < 8:  # up to the end of the file, or over 4 GB: the media data
                break
            if name in (b"moov", b"trak", b"mdia"):
                waiting.append((at + 8, at + size))
            elif name in (b"mvhd", b"tkhd", b"mdhd"):
                both = 16 if file[at + 8] else 8  # creation and modification time, of 64 or 32 bits
                made[at + 12 : at + 12 + both] = bytes(both)
            at += size
    return bytes(made)

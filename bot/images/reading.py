"""Decoding of an uploaded picture: upright, sRGB, opaque, of bounded size, without metadata.

Runs in the sandboxed child (`bot.images.confined`). Imports nothing of the bot, so that the process starts quickly. The
header is checked before any pixel is decoded. An outcome is a letter and numbers, never text: the bot repeats nothing
that this process says.
"""

from __future__ import annotations

import io
import struct
import warnings
from typing import Literal

from PIL import ExifTags, Image, ImageCms, features

MOST_PIXELS = 40_000_000
MOST_SIDE = 16_384  # pixels
KEPT_SIDE = 2048  # pixels: no model here draws more
MOST_PROFILE = 4 * 2**20  # bytes of a colour profile; the largest for printers have 3 MiB
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", *(("AVIF",) if features.check("avif") else ()))
ANIMATIONS = ("PNG", "WEBP", "GIF", "AVIF")  # a JPEG with more than one picture is a photograph with its preview
HEAD = struct.Struct(">cBII")  # outcome, what was changed, original width and height upright; then the PNG
ANIMATED, TRANSPARENT, REDUCED = 1, 2, 4  # what was changed
READ, NO_KIND, BROKEN, PIXELS, SIDE, MEMORY, EMPTY = b"+", b"k", b"b", b"p", b"s", b"m", b"e"
Kind = Literal[b"p", b"m"]  # a picture, a mask
PICTURE: Kind = b"p"
MASK: Kind = b"m"
PAINTED = 128  # grey level from which a mask is painted
_BEHIND = {PICTURE: (255, 255, 255), MASK: (0, 0, 0)}  # what is transparent in a mask is not painted
_TURNED = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # EXIF 2.32, tag Orientation
_SIDEWAYS = tuple(_TURNED[orientation] for orientation in (5, 6, 7, 8))
_MAGIC = (b"\x89PNG", b"\xff\xd8\xff", b"GIF8", b"RIFF")


class _Bad(ValueError):
    """The file is refused, with one of the outcomes."""

    def __init__(self, outcome: bytes) -> None:
        super().__init__(outcome)
        self.outcome = outcome


def answered(kind: Kind, content: bytes) -> bytes:
    """Return `HEAD` and a PNG of 8 bits, RGB or (of a mask) grey; for a refused file `HEAD` alone. Never raises."""
    try:
        return _read(kind, content)
    except _Bad as error:
        outcome = error.outcome
    except MemoryError:
        outcome = MEMORY
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        outcome = PIXELS
    except Image.UnidentifiedImageError:
        outcome = BROKEN if content.startswith(_MAGIC) else NO_KIND
    except Exception as error:  # decoders raise dozens of types for damaged bytes
        outcome = MEMORY if "memory" in str(error).lower() else BROKEN
    return HEAD.pack(outcome, 0, 0, 0)


def prepare() -> None:
    """Set Pillow's limits, and load every part of it that it would otherwise load from files later."""
    warnings.simplefilter("ignore")
    warnings.simplefilter("error", Image.DecompressionBombWarning)
    Image.MAX_IMAGE_PIXELS = MOST_PIXELS
    if "AVIF" in FORMATS:
        from PIL import AvifImagePlugin

        AvifImagePlugin.DEFAULT_MAX_THREADS = 1  # the child may start no threads
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    for form in FORMATS:
        buffer = io.BytesIO()
        Image.new("P" if form == "GIF" else "RGB", (8, 8)).save(buffer, form, icc_profile=profile, exif=exif)
        assert answered(PICTURE, buffer.getvalue()).startswith(READ), form
    answered(PICTURE, b"no picture")


def _read(kind: Kind, content: bytes) -> bytes:
    with Image.open(io.BytesIO(content), formats=FORMATS) as opened:
        _check(*opened.size)
        done = ANIMATED if opened.format in ANIMATIONS and getattr(opened, "is_animated", False) else 0
        own, fitting = opened.size, _fitting(opened.size)
        if opened.format in ("JPEG", "MPO"):
            opened.draft(None, fitting)  # decode at a smaller scale that still suffices: faster, with less memory
        opened.load()
        _check(*opened.size)
        turn, profile = _turn(opened), opened.info.get("icc_profile")
        pixels = _plain(opened)
    if pixels.size != fitting:
        pixels = pixels.resize(fitting, Image.Resampling.LANCZOS, reducing_gap=3.0)
    done |= REDUCED if own != fitting else 0
    if turn is not None:
        pixels = pixels.transpose(turn)
        own = own[::-1] if turn in _SIDEWAYS else own
    flat, transparent = _flat(pixels, profile if kind == PICTURE else None, _BEHIND[kind])
    if kind == MASK:
        flat = flat.convert("L")
        if int(flat.getextrema()[1]) < PAINTED:  # pyright: ignore[reportArgumentType] - one band has two numbers
            raise _Bad(EMPTY)
    return HEAD.pack(READ, done | (TRANSPARENT if transparent else 0), *own) + _png(flat)


def _check(width: int, height: int) -> None:
    if min(width, height) < 1:
        raise _Bad(BROKEN)
    if width * height > MOST_PIXELS:
        raise _Bad(PIXELS)
    if max(width, height) > MOST_SIDE:
        raise _Bad(SIDE)


def _fitting(size: tuple[int, int]) -> tuple[int, int]:
    """Return a size of the same shape, at most `KEPT_SIDE` on the longer side."""
    factor = min(1.0, KEPT_SIDE / max(size))
    return max(1, round(size[0] * factor)), max(1, round(size[1] * factor))


def _turn(opened: Image.Image) -> Image.Transpose | None:
    """Return the EXIF transpose that makes it upright; None for none, or for damaged EXIF."""
    try:
        said = opened.getexif().get(ExifTags.Base.Orientation)
        return _TURNED.get(said) if isinstance(said, int) else None
    except MemoryError:
        raise
    except Exception:  # any error of its parser; the pixels are decoded already
        return None


def _plain(opened: Image.Image) -> Image.Image:
    """Convert to L, RGB, RGBA or CMYK, in 8 bits."""
    if opened.mode.startswith(("I", "F")):  # 16-bit grey, the only deep mode that Pillow keeps of these formats
        return opened.convert("I").point(lambda level: level * (1 / 257)).convert("L")
    if opened.has_transparency_data:
        return opened.convert("RGBA")
    if opened.mode in ("L", "RGB", "CMYK"):
        return opened.copy()
    return opened.convert("L" if opened.mode == "1" else "RGB")


def _flat(pixels: Image.Image, profile: object, behind: tuple[int, int, int]) -> tuple[Image.Image, bool]:
    """Convert to sRGB on one background colour. Return also whether anything was transparent."""
    if pixels.mode != "RGBA":
        return _in_srgb(pixels, profile), False
    alpha = pixels.getchannel("A")
    below = Image.new("RGB", pixels.size, behind)
    below.paste(_in_srgb(pixels.convert("RGB"), profile), mask=alpha)
    return below, bool(sum(alpha.histogram()[:255]))


def _in_srgb(pixels: Image.Image, profile: object) -> Image.Image:
    """Convert to sRGB; without a usable profile, keep the numbers."""
    if isinstance(profile, bytes) and 0 < len(profile) <= MOST_PROFILE:
        try:
            source, wanted = ImageCms.ImageCmsProfile(io.BytesIO(profile)), ImageCms.createProfile("sRGB")
            made = ImageCms.profileToProfile(pixels, source, wanted, outputMode="RGB")
        except (ImageCms.PyCMSError, OSError, TypeError, ValueError):
            made = None
        if made is not None:
            return made
    return pixels.convert("RGB")


def _png(flat: Image.Image) -> bytes:
    """Encode the pixels alone, the same bytes for the same pixels: no text, no profile, no location."""
    flat.info.clear()
    buffer = io.BytesIO()
    flat.save(buffer, "PNG", compress_level=2)  # as `bot.images.pixels.saved`
    return buffer.getvalue()

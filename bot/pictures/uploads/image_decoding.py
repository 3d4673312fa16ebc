"""Decoding of an uploaded picture: upright, sRGB, opaque, of bounded size, without metadata. A worker's pictures are
decoded too, only to see whether that succeeds.

Runs in the sandboxed child (`bot.pictures.uploads.sandbox_worker`). Imports nothing of the bot, so that the process
starts quickly. The header is checked before any pixel is decoded. An outcome is a letter and numbers, never text: the
bot repeats no text from this process, but for a picture's recipe to those who sent the picture.
"""

from __future__ import annotations

import io
import struct
import warnings
from typing import Any, Literal, cast

from PIL import ExifTags, Image, ImageCms, features

MAX_PIXELS = 40_000_000
MAX_SIDE = 16_384  # pixels
OUTPUT_SIDE = 2048  # pixels: no model here draws more
MAX_PROFILE_BYTES = 4 * 2**20  # bytes of a colour profile; the largest for printers have 3 MiB
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", *(("AVIF",) if features.check("avif") else ()))
ANIMATIONS = ("PNG", "WEBP", "GIF", "AVIF")  # a JPEG with more than one picture is a photograph with its preview
HEADER = struct.Struct(">cBII")  # outcome, changes, upright width and height of the original; then the PNG
# changes
ANIMATED = 1
TRANSPARENT = 2
REDUCED = 4
DECODED = b"+"
UNKNOWN_FORMAT = b"k"
BROKEN = b"b"
TOO_MANY_PIXELS = b"p"
SIDE_TOO_LONG = b"s"
OUT_OF_MEMORY = b"m"
EMPTY_MASK = b"e"
# a picture, a mask, a mask by transparency, pictures of a worker, a picture's recipe
UploadKind = Literal[b"p", b"m", b"t", b"w", b"r"]
PICTURE: UploadKind = b"p"
MASK: UploadKind = b"m"
TRANSPARENCY_MASK: UploadKind = b"t"  # painted where it is transparent; without transparency as any mask
WORKER_PICTURES: UploadKind = b"w"  # the most pixels of each, then each after its length; none is returned
RECIPE_TEXT: UploadKind = b"r"  # as UTF-8, in place of the PNG; empty if the picture has none
MAX_RECIPE_LENGTH = 32_768  # characters
LENGTH = struct.Struct(">I")  # of pictures of a worker
WORKER_FORMATS = ("PNG", "JPEG", "WEBP")
MASK_THRESHOLD = 128  # grey level from which a mask is painted
_BACKGROUNDS = {PICTURE: (255, 255, 255), MASK: (0, 0, 0), TRANSPARENCY_MASK: (0, 0, 0)}  # transparent: not painted
_EXIF_TRANSPOSES = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # EXIF 2.32, tag Orientation
_SIDE_SWAPS = tuple(_EXIF_TRANSPOSES[orientation] for orientation in (5, 6, 7, 8))
_MAGIC = (b"\x89PNG", b"\xff\xd8\xff", b"GIF8", b"RIFF")


class _UploadRejected(ValueError):
    """The file is refused, with one of the outcomes."""

    def __init__(self, outcome: bytes) -> None:
        super().__init__(outcome)
        self.outcome = outcome


def decode_upload(kind: UploadKind, content: bytes) -> bytes:
    """Return `HEADER` and a PNG of 8 bits, RGB or (of a mask) grey; for a refused file `HEADER` alone. Never raises."""
    try:
        if kind == RECIPE_TEXT:
            return HEADER.pack(DECODED, 0, 0, 0) + _read_recipe_text(content).encode("utf-8", "replace")
        return _decode_worker_pictures(content) if kind == WORKER_PICTURES else _decode(kind, content)
    except _UploadRejected as error:
        outcome = error.outcome
    except MemoryError:
        outcome = OUT_OF_MEMORY
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        outcome = TOO_MANY_PIXELS
    except Image.UnidentifiedImageError:
        outcome = BROKEN if content.startswith(_MAGIC) else UNKNOWN_FORMAT
    except Exception as error:  # decoders raise dozens of types for damaged bytes
        outcome = OUT_OF_MEMORY if "memory" in str(error).lower() else BROKEN
    return HEADER.pack(outcome, 0, 0, 0)


def prepare_pillow() -> None:
    """Set Pillow's limits, and load every part of it that it would otherwise load from files later."""
    warnings.simplefilter("ignore")
    warnings.simplefilter("error", Image.DecompressionBombWarning)
    Image.MAX_IMAGE_PIXELS = MAX_PIXELS
    if "AVIF" in FORMATS:
        from PIL import AvifImagePlugin

        AvifImagePlugin.DEFAULT_MAX_THREADS = 1  # the child may start no threads
    profile = _srgb_profile().tobytes()
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.UserComment] = b"UNICODE\0\0a"  # loads its codec, too
    for format_name in FORMATS:
        buffer = io.BytesIO()
        Image.new("P" if format_name == "GIF" else "RGB", (8, 8)).save(
            buffer, format_name, icc_profile=profile, exif=exif
        )
        for kind in (PICTURE, RECIPE_TEXT):
            assert decode_upload(kind, buffer.getvalue()).startswith(DECODED), format_name
    decode_upload(PICTURE, b"no picture")


def _decode(kind: UploadKind, content: bytes) -> bytes:
    with Image.open(io.BytesIO(content), formats=FORMATS) as image:
        _check_size(*image.size)
        changes = ANIMATED if image.format in ANIMATIONS and getattr(image, "is_animated", False) else 0
        original_size = image.size
        output_size = _output_size(image.size)
        if image.format in ("JPEG", "MPO"):
            image.draft(None, output_size)  # decode at a smaller scale that still suffices: faster, with less memory
        image.load()
        _check_size(*image.size)
        transpose = _exif_transpose(image)
        profile = image.info.get("icc_profile")
        pixels = _to_eight_bits(image)
    if pixels.size != output_size:
        pixels = pixels.resize(output_size, Image.Resampling.LANCZOS, reducing_gap=3.0)
    changes |= REDUCED if original_size != output_size else 0
    if transpose is not None:
        pixels = pixels.transpose(transpose)
        original_size = original_size[::-1] if transpose in _SIDE_SWAPS else original_size
    if kind == TRANSPARENCY_MASK and pixels.mode == "RGBA":
        pixels = pixels.getchannel("A").point(lambda level: 255 - level)
    flattened, transparent = _flatten(pixels, profile if kind == PICTURE else None, _BACKGROUNDS[kind])
    if kind in (MASK, TRANSPARENCY_MASK):
        flattened = flattened.convert("L")
        if int(flattened.getextrema()[1]) < MASK_THRESHOLD:  # pyright: ignore[reportArgumentType] - one band has two numbers
            raise _UploadRejected(EMPTY_MASK)
    return HEADER.pack(DECODED, changes | (TRANSPARENT if transparent else 0), *original_size) + _encode_png(flattened)


def _decode_worker_pictures(content: bytes) -> bytes:
    """Decode each picture entirely, and return only that this succeeded."""
    (max_pixels,), start = LENGTH.unpack_from(content), LENGTH.size
    while start < len(content):
        (length,) = LENGTH.unpack_from(content, start)
        start += LENGTH.size + length
        with Image.open(io.BytesIO(content[start - length : start]), formats=WORKER_FORMATS) as image:
            if image.width * image.height > max_pixels:
                raise _UploadRejected(TOO_MANY_PIXELS)
            image.load()
    return HEADER.pack(DECODED, 0, 0, 0)


def _read_recipe_text(content: bytes) -> str:
    """Return the text that AUTOMATIC1111's web UI and Darkroom store with a picture: how it was made."""
    with Image.open(io.BytesIO(content), formats=FORMATS) as image:
        _check_size(*image.size)
        text = image.info.get("parameters")
        comment = image.getexif().get_ifd(ExifTags.IFD.Exif).get(ExifTags.Base.UserComment, b"")
    if text is None and isinstance(comment, bytes) and comment.startswith(b"UNICODE\0"):
        text = comment[8:].decode("utf-16-be", "replace")
    return str(text or "")[:MAX_RECIPE_LENGTH]


def _check_size(width: int, height: int) -> None:
    if min(width, height) < 1:
        raise _UploadRejected(BROKEN)
    if width * height > MAX_PIXELS:
        raise _UploadRejected(TOO_MANY_PIXELS)
    if max(width, height) > MAX_SIDE:
        raise _UploadRejected(SIDE_TOO_LONG)


def _output_size(size: tuple[int, int]) -> tuple[int, int]:
    factor = min(1.0, OUTPUT_SIDE / max(size))
    return max(1, round(size[0] * factor)), max(1, round(size[1] * factor))


def _exif_transpose(image: Image.Image) -> Image.Transpose | None:
    """Return the EXIF transpose that makes it upright; None for none, or for damaged EXIF."""
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation)
        return _EXIF_TRANSPOSES.get(orientation) if isinstance(orientation, int) else None
    except MemoryError:
        raise
    except Exception:  # any error of its parser; the pixels are decoded already
        return None


def _to_eight_bits(image: Image.Image) -> Image.Image:
    if image.mode.startswith(("I", "F")):  # 16-bit grey, the only deep mode that Pillow keeps of these formats
        return image.convert("I").point(lambda level: level * (1 / 257)).convert("L")
    if image.has_transparency_data:
        return image.convert("RGBA")
    if image.mode in ("L", "RGB", "CMYK"):
        return image.copy()
    return image.convert("L" if image.mode == "1" else "RGB")


def _flatten(pixels: Image.Image, profile: object, background: tuple[int, int, int]) -> tuple[Image.Image, bool]:
    """Convert to sRGB on one background colour. Return also whether anything was transparent."""
    if pixels.mode != "RGBA":
        return _to_srgb(pixels, profile), False
    alpha = pixels.getchannel("A")
    canvas = Image.new("RGB", pixels.size, background)
    canvas.paste(_to_srgb(pixels.convert("RGB"), profile), mask=alpha)
    return canvas, bool(sum(alpha.histogram()[:255]))


def _srgb_profile() -> ImageCms.ImageCmsProfile:
    return ImageCms.ImageCmsProfile(cast(Any, ImageCms).createProfile("sRGB"))


def _to_srgb(pixels: Image.Image, profile: object) -> Image.Image:
    """Convert to sRGB; without a usable profile, keep the numbers."""
    if isinstance(profile, bytes) and 0 < len(profile) <= MAX_PROFILE_BYTES:
        try:
            source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            converted = ImageCms.profileToProfile(pixels, source, _srgb_profile(), outputMode="RGB")
        except (ImageCms.PyCMSError, OSError, TypeError, ValueError):
            converted = None
        if converted is not None:
            return converted
    return pixels.convert("RGB")


def _encode_png(pixels: Image.Image) -> bytes:
    """Encode the pixels alone, the same bytes for the same pixels: no text, no profile, no location."""
    pixels.info.clear()
    buffer = io.BytesIO()
    pixels.save(buffer, "PNG", compress_level=2)  # as `bot.pictures.image_codec.encode_image`
    return buffer.getvalue()

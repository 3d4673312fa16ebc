"""Pictures as bytes and back: PNG, JPEG and WebP, thumbnails, and the blur over what members have not asked to see.

Format and size of foreign pictures are checked before decoding; bytes that Pillow cannot open raise `UnreadableImage`.
PNGs from an untrusted process are validated chunk by chunk (PNG specification, ISO/IEC 15948): pixels and nothing else.
CPU-bound: async callers use a thread.
"""

from __future__ import annotations

import io
import struct
import zlib
from typing import Literal

from PIL import ExifTags, Image, ImageFilter, ImageOps
from PIL.PngImagePlugin import PngInfo

ImageFormat = Literal["PNG", "JPEG", "WEBP"]
IMAGE_FORMATS: tuple[ImageFormat, ...] = ("PNG", "JPEG", "WEBP")
MAX_PIXELS = 4096 * 4096
# key of a PNG's text chunk, and characters in it
RECIPE_KEY = "parameters"
MAX_TEXT_LENGTH = 32_768
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
BACKGROUND = (18, 18, 20)  # background of transparent or missing pictures
_DECODING_ERRORS = (
    OSError,
    ValueError,
    SyntaxError,
    struct.error,
    zlib.error,
    EOFError,
    OverflowError,
    Image.DecompressionBombError,
    Image.DecompressionBombWarning,
)


class UnreadableImage(ValueError):
    """Bytes that are no picture, or one of an unsupported format or size."""


def decode_image(payload: bytes, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Decode the first frame of `payload` to RGB. Raises `UnreadableImage`; decodes nothing over `max_pixels`."""
    try:
        with Image.open(io.BytesIO(payload), formats=IMAGE_FORMATS) as picture:
            width, height = picture.size
            if width * height > max_pixels:
                raise UnreadableImage(f"a picture of {width}×{height} is larger than the {max_pixels} pixels taken")
            return _flatten(picture)
    except UnreadableImage:
        raise
    except _DECODING_ERRORS as error:
        raise UnreadableImage(f"not a readable {', '.join(IMAGE_FORMATS)} picture, or too large") from error


def _flatten(picture: Image.Image) -> Image.Image:
    if not picture.has_transparency_data:
        return picture.convert("RGB")
    layer = picture.convert("RGBA")
    background = Image.new("RGBA", layer.size, (*BACKGROUND, 255))
    return Image.alpha_composite(background, layer).convert("RGB")


def resize_image(picture: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Resize by Lanczos; return the picture itself if it has that size."""
    return picture if picture.size == size else picture.resize(size, Image.Resampling.LANCZOS)


def encode_image(picture: Image.Image, image_format: ImageFormat, quality: int = 90, text: str = "") -> bytes:
    """Encode the picture: the same pixels and text give the same bytes. `quality` 100 is lossless for WebP.

    `text` is its recipe, stored as AUTOMATIC1111's web UI does, which every gallery reads: in a PNG under `parameters`,
    in a WebP as the EXIF user comment, in a JPEG not at all. No other metadata is written. PNG compression is low,
    since a member waits: a quarter of the time for a fifth more bytes.
    """
    buffer = io.BytesIO()
    if image_format == "PNG":
        chunks = PngInfo()
        if text:
            chunks.add_text(RECIPE_KEY, text)
        picture.save(buffer, "PNG", compress_level=2, pnginfo=chunks)
    elif image_format == "JPEG":
        picture.save(buffer, "JPEG", quality=quality, subsampling=0)
    else:
        picture.save(buffer, "WEBP", quality=quality, lossless=quality >= 100, method=4, exif=_exif_comment(text))
    return buffer.getvalue()


def read_recipe_text(payload: bytes) -> str:
    """Return the recipe in a PNG; empty if it has none, or a longer one than Darkroom writes."""
    try:
        with Image.open(io.BytesIO(payload), formats=("PNG",)) as picture:
            text = str(picture.info.get(RECIPE_KEY) or "")
    except _DECODING_ERRORS:
        return ""
    return text if len(text) <= MAX_TEXT_LENGTH else ""


def _exif_comment(text: str) -> bytes:
    if not text:
        return b""
    exif = Image.Exif()
    exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.UserComment] = b"UNICODE\0" + text.encode("utf-16-be")
    return exif.tobytes()


def png_size(png: bytes) -> tuple[int, int] | None:
    """Return width and height from a PNG's header (PNG specification, 11.2.2 IHDR); None if it is no PNG."""
    if len(png) < 33 or not png.startswith(PNG_SIGNATURE) or png[12:16] != b"IHDR":
        return None
    width, height = struct.unpack(">II", png[16:24])
    return int(width), int(height)


BLUR_SIDE = 6  # pixels of the longer side before smoothing: too few to show any shape
MAX_SIDE = 512  # pixels of the longer side of the result: more would only add bytes
MAX_FRAME_PIXELS = 1024 * 1024  # pixels of a preview frame, blurred or not


def blur_picture(payload: bytes, image_format: ImageFormat = "PNG", *, max_pixels: int = MAX_PIXELS) -> bytes:
    """Return the picture as a few colours, at most `MAX_SIDE` pixels on its longer side. Raises `UnreadableImage`.

    It averages the picture to a few pixels before it smooths: a sharpening filter can undo a mere blur.
    """
    pixels = decode_image(payload, max_pixels)
    smoothed = pixels.resize(_scale_down(pixels, BLUR_SIDE), Image.Resampling.BOX).filter(ImageFilter.GaussianBlur(1.0))
    return encode_image(resize_image(smoothed, _scale_down(pixels, MAX_SIDE)), image_format, 80)


def _scale_down(pixels: Image.Image, longer: int) -> tuple[int, int]:
    factor = min(1.0, longer / max(pixels.size))
    return max(1, round(pixels.width * factor)), max(1, round(pixels.height * factor))


THUMBNAIL_SIDE = 256  # pixels: even a PNG of pure noise is then below the limit of a request


def crop_square(png: bytes, side: int) -> bytes:
    """Return the middle of a picture as a PNG, `side` pixels wide and high, at most `MAX_SIDE`."""
    bounded_side = min(side, THUMBNAIL_SIDE)
    return encode_image(ImageOps.fit(decode_image(png), (bounded_side, bounded_side), Image.Resampling.LANCZOS), "PNG")


# colour types (11.2.2)
GREY = 0
RGB = 2
CHANNELS = {GREY: 1, RGB: 3}


class InvalidPng(ValueError):
    """Other chunks than IHDR, IDAT and IEND, or data that contradicts the header."""


def validate_png(png: bytes, max_side: int, colour_type: int) -> tuple[int, int]:
    """Return width and height of a valid PNG: 8 bits, not interlaced, that colour type, at most `max_side` pixels a
    side.

    Every checksum must be right, and the data must inflate to exactly its rows, each with a known filter. Raises
    `InvalidPng`.
    """
    (_, header), *data, (_, trailer) = _read_chunks(png)
    if len(header) != 13 or trailer:
        raise InvalidPng("a header has 13 bytes, an end none")
    width, height, *kind = struct.unpack(">IIBBBBB", header)
    if kind != [8, colour_type, 0, 0, 0] or not (1 <= width <= max_side and 1 <= height <= max_side):
        raise InvalidPng("another kind or size")
    stride = 1 + width * CHANNELS[colour_type]
    rows = _inflate(b"".join(body for _, body in data), stride * height)
    if max(rows[::stride]) > 4:
        raise InvalidPng("a row with an unknown filter")
    return width, height


def _read_chunks(png: bytes) -> list[tuple[bytes, bytes]]:
    if not png.startswith(PNG_SIGNATURE):
        raise InvalidPng("no PNG")
    chunks = list[tuple[bytes, bytes]]()
    offset = len(PNG_SIGNATURE)
    while offset + 12 <= len(png):
        length, kind = struct.unpack_from(">I4s", png, offset)
        body = png[offset + 8 : offset + 8 + length]
        (checksum,) = (
            struct.unpack_from(">I", png, offset + 8 + length) if offset + 12 + length <= len(png) else (None,)
        )
        if checksum != zlib.crc32(body, zlib.crc32(kind)):
            raise InvalidPng("a chunk that is cut or damaged")
        chunks.append((kind, body))
        offset += 12 + length
    kinds = [kind for kind, _ in chunks]
    if offset != len(png) or len(kinds) < 3 or kinds != [b"IHDR", *[b"IDAT"] * (len(kinds) - 2), b"IEND"]:
        raise InvalidPng("other chunks than a header, data and an end")
    return chunks


def _inflate(data: bytes, length: int) -> bytes:
    stream = zlib.decompressobj()
    try:
        rows = stream.decompress(data, length + 1)
    except zlib.error as error:
        raise InvalidPng("damaged data") from error
    if len(rows) != length or not stream.eof or stream.unused_data:
        raise InvalidPng("not as much data as it has rows")
    return rows

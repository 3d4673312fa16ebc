"""Small valid pictures of every supported kind, to be damaged: flat and deep, still and moving, with metadata.

The same bytes each time, but for the time that AVIF stores. Knows Pillow; knows nothing of the decoder.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Any

from PIL import ExifTags, Image, ImageCms
from PIL.PngImagePlugin import PngInfo

from bot.pictures.uploads.image_decoding import FORMATS


@dataclass(frozen=True)
class Seed:
    """`name` begins with its format."""

    name: str
    content: bytes


def make_seeds() -> list[Seed]:
    """All seed pictures."""
    rgb = Image.merge("RGB", [Image.linear_gradient("L").resize((40, 28)).rotate(90 * n) for n in range(3)])
    animation_options = {"save_all": True, "append_images": [rgb.rotate(90), rgb.rotate(180)]}
    text = PngInfo()
    text.add_text("parameters", "words", zip=True)
    text.add_itxt("XML:com.adobe.xmp", "<x:xmpmeta/>")
    metadata = {
        "exif": _build_exif(),
        "icc_profile": ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes(),
    }
    deep_picture = (
        Image.linear_gradient("L").resize((40, 28)).convert("I").point(lambda level: level * 257).convert("I;16")
    )
    pictures = [
        Seed("PNG", _encode(rgb, "PNG", pnginfo=text, **metadata)),
        Seed("PNG deep", _encode(deep_picture, "PNG")),
        Seed("PNG palette", _encode(rgb.quantize(16), "PNG", transparency=3)),
        Seed("PNG clear", _encode(_add_alpha(rgb), "PNG")),
        Seed("PNG bits", _encode(rgb.convert("1"), "PNG")),
        Seed("PNG moving", _encode(rgb, "PNG", **animation_options)),
        Seed("JPEG", _encode(rgb, "JPEG", comment=b"words", **metadata)),
        Seed("JPEG progressive", _encode(rgb, "JPEG", progressive=True, subsampling=0)),
        Seed("JPEG for print", _encode(rgb.convert("CMYK"), "JPEG")),
        Seed("GIF", _encode(rgb.quantize(16), "GIF", transparency=2)),
        Seed("GIF moving", _encode(rgb, "GIF", **animation_options)),
        Seed("WEBP", _encode(rgb, "WEBP", **metadata)),
        Seed("WEBP exact", _encode(_add_alpha(rgb), "WEBP", lossless=True)),
        Seed("WEBP moving", _encode(rgb, "WEBP", **animation_options)),
    ]
    if "AVIF" in FORMATS:
        pictures += [Seed("AVIF", _encode(_add_alpha(rgb), "AVIF", speed=10, **metadata))]
        pictures += [Seed("AVIF moving", _encode(rgb, "AVIF", speed=10, **animation_options))]
    return pictures


def _add_alpha(rgb: Image.Image) -> Image.Image:
    rgba = rgb.convert("RGBA")
    rgba.putalpha(Image.linear_gradient("L").resize(rgb.size))
    return rgba


def _build_exif() -> bytes:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    exif[ExifTags.Base.Make] = "A camera"
    exif.get_ifd(ExifTags.IFD.GPSInfo)[ExifTags.GPS.GPSLatitude] = (48.0, 8.0, 14.0)
    return exif.tobytes()


def _encode(picture: Image.Image, form: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, form, **options)
    return buffer.getvalue()

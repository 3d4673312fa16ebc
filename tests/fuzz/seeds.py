"""Small valid pictures of every kind that is read, to be damaged: flat and deep, still and moving, with all they tell.

The same bytes each time, but for the clock that AVIF keeps. Knows Pillow; knows nothing of the intake.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Any

from PIL import ExifTags, Image, ImageCms
from PIL.PngImagePlugin import PngInfo

from bot.images.reading import FORMATS


@dataclass(frozen=True)
class Seed:
    """`name` begins with its format."""

    name: str
    content: bytes


def seeds() -> list[Seed]:
    """All of them."""
    rgb = Image.merge("RGB", [Image.linear_gradient("L").resize((40, 28)).rotate(90 * n) for n in range(3)])
    moving = {"save_all": True, "append_images": [rgb.rotate(90), rgb.rotate(180)]}
    text = PngInfo()
    text.add_text("parameters", "words", zip=True)
    text.add_itxt("XML:com.adobe.xmp", "<x:xmpmeta/>")
    told = {"exif": _exif(), "icc_profile": ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()}
    deep = Image.linear_gradient("L").resize((40, 28)).convert("I").point(lambda level: level * 257).convert("I;16")
    found = [
        Seed("PNG", _saved(rgb, "PNG", pnginfo=text, **told)),
        Seed("PNG deep", _saved(deep, "PNG")),
        Seed("PNG palette", _saved(rgb.quantize(16), "PNG", transparency=3)),
        Seed("PNG clear", _saved(_clear(rgb), "PNG")),
        Seed("PNG bits", _saved(rgb.convert("1"), "PNG")),
        Seed("PNG moving", _saved(rgb, "PNG", **moving)),
        Seed("JPEG", _saved(rgb, "JPEG", comment=b"words", **told)),
        Seed("JPEG progressive", _saved(rgb, "JPEG", progressive=True, subsampling=0)),
        Seed("JPEG for print", _saved(rgb.convert("CMYK"), "JPEG")),
        Seed("GIF", _saved(rgb.quantize(16), "GIF", transparency=2)),
        Seed("GIF moving", _saved(rgb, "GIF", **moving)),
        Seed("WEBP", _saved(rgb, "WEBP", **told)),
        Seed("WEBP exact", _saved(_clear(rgb), "WEBP", lossless=True)),
        Seed("WEBP moving", _saved(rgb, "WEBP", **moving)),
    ]
    if "AVIF" in FORMATS:
        found += [Seed("AVIF", _saved(_clear(rgb), "AVIF", speed=10, **told))]
        found += [Seed("AVIF moving", _saved(rgb, "AVIF", speed=10, **moving))]
    return found


def _clear(rgb: Image.Image) -> Image.Image:
    made = rgb.convert("RGBA")
    made.putalpha(Image.linear_gradient("L").resize(rgb.size))
    return made


def _exif() -> bytes:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    exif[ExifTags.Base.Make] = "A camera"
    exif.get_ifd(ExifTags.IFD.GPSInfo)[ExifTags.GPS.GPSLatitude] = (48.0, 8.0, 14.0)
    return exif.tobytes()


def _saved(picture: Image.Image, form: str, **options: Any) -> bytes:
    out = io.BytesIO()
    picture.save(out, form, **options)
    return out.getvalue()

"""Pictures as bytes: decoding within bounds, PNG with its recipe as text, enlarging by Lanczos. No torch."""

from __future__ import annotations

import json
import re
import struct
import zlib
from io import BytesIO

import msgspec
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from engine.contract import (
    FULL_INTERVAL,
    SAMPLER_TITLES,
    Blame,
    Branch,
    ImageToImage,
    JobRejected,
    Recipe,
    has_skipped_steps,
    make_part_fields,
    noise_seed,
    recipe_for_image,
    settle_amendments,
)

THUMBNAIL_SIDE = 128  # pixels of a keyframe's longest side


def encode_png(picture: Image.Image, text: str) -> bytes:
    """Return a PNG with `text` under the key `parameters`, as A1111 and gallery software expect."""
    chunks = PngInfo()
    chunks.add_text("parameters", text)
    return _save(picture, format="PNG", pnginfo=chunks, compress_level=6)


def encode_jpeg(picture: Image.Image) -> bytes:
    return _save(picture.convert("RGB"), format="JPEG", quality=88)


def encode_thumbnail(picture: Image.Image) -> bytes:
    """Return a JPEG of at most `THUMBNAIL_SIDE` pixels a side: a ladder has dozens, and WebP is six times slower."""
    small = picture.convert("RGB")
    small.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE))
    return _save(small, format="JPEG", quality=85, subsampling=0)


def read_png_size(png: bytes) -> tuple[int, int]:
    """Return width and height from the header (PNG specification, 11.2.2 IHDR)."""
    width, height = struct.unpack(">II", png[16:24])
    return int(width), int(height)


def _save(picture: Image.Image, **options: object) -> bytes:
    buffer = BytesIO()
    picture.save(buffer, **options)  # pyright: ignore[reportArgumentType]
    return buffer.getvalue()


MAX_PIXELS = 4096 * 4096
FORMATS = ("PNG", "JPEG", "WEBP")


def open_image(content: bytes, subject: str = "init image", blame: Blame = "us") -> Image.Image:
    """Return an RGB picture of at most `MAX_PIXELS`. Raises `JobRejected`."""
    try:
        with Image.open(BytesIO(content), formats=FORMATS) as picture:
            if picture.width * picture.height > MAX_PIXELS:
                raise JobRejected(f"The {subject} is too large.", blame)
            return picture.convert("RGB")
    except (OSError, SyntaxError, ValueError, EOFError, OverflowError, struct.error, zlib.error) as error:
        raise JobRejected(f"The {subject} cannot be read.", blame) from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise JobRejected(f"The {subject} is too large.", blame) from error


LANCZOS = "Lanczos"
MAX_SIDE = 4096  # pixels of the output


def upscale_by_lanczos(source: bytes, factor: int) -> bytes:
    """Return the PNG `factor` times as wide and high; with its recipe and a note. Raises `JobRejected`."""
    picture, text = open_source(source, factor)
    size = (picture.width * factor, picture.height * factor)
    return encode_upscaled(picture.resize(size, Image.Resampling.LANCZOS), text, factor, LANCZOS)


def open_source(source: bytes, factor: int) -> tuple[Image.Image, str]:
    """Return the pixels as RGB, and the recipe text. Raises `JobRejected` where the result would be too large."""
    try:
        with Image.open(BytesIO(source), formats=FORMATS) as picture:
            width = picture.width * factor
            height = picture.height * factor
            if max(width, height) > MAX_SIDE:
                raise JobRejected(f"{width}×{height} is more than {MAX_SIDE} pixels a side.", "member")
            return picture.convert("RGB"), str(picture.info.get("parameters", ""))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise JobRejected("The picture to upscale cannot be read.", "us") from error


def encode_upscaled(picture: Image.Image, text: str, factor: int, upscaler: str) -> bytes:
    """Return a PNG with the recipe text and a note of the upscale, as A1111's extras write it."""
    upscale_note = f"Postprocess upscale by: {factor}, Postprocess upscaler: {upscaler}"
    return encode_png(picture, f"{text}, {upscale_note}" if text else upscale_note)


def format_parameters(
    recipe: Recipe, image: int, revision: str, factor: int = 1, upscaler: str = "", *, is_by_backend: bool = False
) -> str:
    """Return the recipe of one image in A1111's format. With that seed diffusers draws the same picture.

    `Size` is the size for diffusers. A later upscale is in A1111's own fields for it. The words and settings of a
    steered picture are those of its last step, which draw another one: its whole recipe is in a field of its own.
    """
    steered = recipe
    recipe = recipe_for_image(settle_amendments(recipe, image), image)
    loras = (f"<lora:{each.name}:{each.weight:g}>" for each in recipe.loras)
    lines = [_escape_marker(" ".join((*(_format_concept(each.text, each.weight) for each in recipe.concepts), *loras)))]
    if recipe.negative:
        lines.append(f"Negative prompt: {_escape_marker(recipe.negative)}")
    fields = {
        "Steps": recipe.steps,
        "Sampler": SAMPLER_TITLES[recipe.sampler],
        "CFG scale": f"{recipe.guidance:g}",
        "Seed": noise_seed(recipe, image),
        "Size": f"{recipe.width}x{recipe.height}",
        "Model hash": revision,
        "Model": recipe.model,
    }
    if not is_by_backend:  # which nobody knows of another server
        fields["Precision"] = recipe.dtype
    if recipe.sampler == "ddim":
        fields["Eta"] = f"{recipe.eta:g}"
    if recipe.guidance_interval != FULL_INTERVAL:
        fields["Guidance interval"] = f"{recipe.guidance_start:g}-{recipe.guidance_stop:g}"
    fields |= {"Evaluations": recipe.evaluations} if has_skipped_steps(recipe) else {}
    if factor > 1:
        fields |= {"Hires upscale": factor, "Hires upscaler": upscaler}
    if recipe.lineage:
        fields["Variation of"] = " ".join(f"{each.seed + each.index}@{each.strength:g}" for each in recipe.lineage)
    fields |= make_part_fields(recipe) | _start_fields(recipe) | _steering_fields(steered)
    if recipe.candidate_count:
        fields["Best of"] = recipe.candidate_count
    if recipe.bucket is not None:
        fields["Batch shape"] = recipe.bucket
    lines.append(", ".join(f"{name}: {value}" for name, value in (fields | {"Version": "Darkroom"}).items()))
    return "\n".join(lines)


def _start_fields(recipe: Recipe) -> dict[str, str]:
    """Return the fields for the start and the end, A1111's if it has them. Images are named by their SHA-256."""
    fields: dict[str, str] = {}
    if isinstance(recipe.start, ImageToImage):
        fields["Denoising strength"] = f"{recipe.start.strength:g}"
        fields["Begun with"] = " ".join(
            f"{init_image.sha256[:10]}@{init_image.weight:g}" for init_image in recipe.start.pictures
        )
        fields |= {"Mask": recipe.start.mask[:10]} if recipe.start.mask else {}
    if isinstance(recipe.start, Branch):
        fields["Branched from"] = f"{recipe.start.ladder[:10]} at {recipe.start.keyframe_step}"
    if recipe.stop_at < 1:
        fields["Stopped after"] = f"{recipe.end_step}"
    fields |= {"Tiling": "True"} if recipe.tile else {}
    return fields | ({"Mixed": "True"} if recipe.mixed else {})


def _steering_fields(recipe: Recipe) -> dict[str, str]:
    """Return how often a picture was steered, and its whole recipe: JSON, quoted as A1111 quotes values with commas."""
    if not recipe.amendments:
        return {}
    count = len(recipe.amendments)
    text = re.sub(r"(negative prompt):", r"\1\\u003a", msgspec.json.encode(recipe).decode(), flags=re.IGNORECASE)
    return {"Steered": f"{count} change" if count == 1 else f"{count} changes", "Darkroom recipe": json.dumps(text)}


def _escape_marker(text: str) -> str:
    """Break this marker inside the text: readers split at it anywhere."""
    return re.sub(r"(negative prompt):", r"\1 :", text, flags=re.IGNORECASE)


def _format_concept(text: str, weight: float) -> str:
    return text if weight == 1.0 else f"{text}::{weight:g}"

"""Images as bytes: PNG with its recipe, JPEG previews and thumbnails. Deterministic."""

from __future__ import annotations

import re
from io import BytesIO

import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from engine.contract import (
    FULL_INTERVAL,
    MAX_ESTIMATE_BYTES,
    SAMPLER_TITLES,
    Branch,
    ImageToImage,
    Keyframe,
    Recipe,
    make_part_fields,
    noise_seed,
    recipe_for_image,
)
from engine.core.trajectory import LatentKeyframe

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


def format_parameters(recipe: Recipe, image: int, revision: str, factor: int = 1, upscaler: str = "") -> str:
    """Return the recipe of one image in A1111's format. With that seed diffusers draws the same picture.

    `Size` is the size for diffusers. A later upscale is in A1111's own fields for it.
    """
    recipe = recipe_for_image(recipe, image)
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
        "Precision": recipe.dtype,
    }
    if recipe.sampler == "ddim":
        fields["Eta"] = f"{recipe.eta:g}"
    if recipe.guidance_interval != FULL_INTERVAL:
        fields["Guidance interval"] = f"{recipe.guidance_start:g}-{recipe.guidance_stop:g}"
    if factor > 1:
        fields |= {"Hires upscale": factor, "Hires upscaler": upscaler}
    if recipe.lineage:
        fields["Variation of"] = " ".join(f"{each.seed + each.index}@{each.strength:g}" for each in recipe.lineage)
    fields |= make_part_fields(recipe) | _start_fields(recipe)
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


def encode_latents(latents: torch.Tensor | None) -> bytes | None:
    """Return the latents as float32, C-order."""
    return None if latents is None else latents.to("cpu", torch.float32).contiguous().numpy().tobytes()


def encode_latents_half(latents: torch.Tensor) -> bytes | None:
    """Return the latents as float16, C-order; None if they are larger than a keyframe may carry."""
    if 2 * latents.numel() > MAX_ESTIMATE_BYTES:
        return None
    return latents.to("cpu", torch.float16).contiguous().numpy().tobytes()


def encode_keyframe(keyframe: LatentKeyframe, thumbnail_jpeg: bytes, is_mapped: bool) -> Keyframe:
    """Return the wire form. `is_mapped`: a linear map made the thumbnail, so keep x0 to decode it on request."""
    history = None if keyframe.latents is None else encode_latents(keyframe.x0)
    estimate = encode_latents_half(keyframe.x0) if is_mapped else None
    return Keyframe(
        keyframe.step, thumbnail_jpeg, encode_latents(keyframe.latents), history, keyframe.draw_count, estimate
    )


def _escape_marker(text: str) -> str:
    """Break this marker inside the text: readers split at it anywhere."""
    return re.sub(r"(negative prompt):", r"\1 :", text, flags=re.IGNORECASE)


def _format_concept(text: str, weight: float) -> str:
    return text if weight == 1.0 else f"{text}::{weight:g}"


def _save(picture: Image.Image, **options: object) -> bytes:
    buffer = BytesIO()
    picture.save(buffer, **options)  # pyright: ignore[reportArgumentType]
    return buffer.getvalue()

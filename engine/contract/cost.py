"""What a recipe costs on a calibrated model, in device-seconds."""

from __future__ import annotations

from engine.contract.guidance import count_guided_steps, count_rows, is_guided, pinned_bucket
from engine.contract.presence import ModelProfile
from engine.contract.recipe import ImageToImage, Recipe
from engine.contract.samplers import SECOND_ORDER_SAMPLERS


def count_row_steps(recipe: Recipe) -> int:
    """Return the rows of all evaluations of the network that are paid for.

    A pinned batch shape is paid in full, padding included. Samplers of second order evaluate the network twice at each
    step but the last.
    """
    guided_steps, all_steps = count_guided_steps(recipe), max(0, recipe.end_step - recipe.first_step)
    rows = guided_steps * _padded_rows(recipe, True) + (all_steps - guided_steps) * _padded_rows(recipe, False)
    if recipe.sampler not in SECOND_ORDER_SAMPLERS or all_steps == 0:
        return rows
    return 2 * rows - _padded_rows(recipe, is_guided(recipe, recipe.end_step - 1))


def _padded_rows(recipe: Recipe, is_guidance_on: bool) -> int:
    row_count, bucket = count_rows(recipe, is_guidance_on), pinned_bucket(recipe, is_guidance_on)
    return row_count + (-row_count % bucket if bucket else 0)


def estimate_cost(recipe: Recipe, model: ModelProfile) -> float:
    """Return calibrated device-seconds: rows of all evaluations × time a row at this size + encode + decode.

    Encoding an init image takes about as long as decoding one.
    """
    area = recipe.width * recipe.height / (model.size * model.size)
    step_ms = count_row_steps(recipe) * model.row_ms * area
    text_ms = (
        len(recipe.concepts) + 1 + bool(recipe.interpolation and recipe.interpolation.end_prompt)
    ) * model.encode_ms
    init_image_count = len(recipe.start.pictures) if isinstance(recipe.start, ImageToImage) else 0
    return (step_ms + text_ms + (recipe.drawn_count + init_image_count) * model.decode_ms * area) / 1000.0


def estimate_decode_ms(model: ModelProfile, width: int, height: int, count: int) -> float:
    """Return calibrated milliseconds of `count` decodes at this size; the calibrated time includes upscaling."""
    return count * model.decode_ms * width * height / (model.size * model.size)

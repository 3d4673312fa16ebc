"""What a recipe costs on a calibrated model, in device-seconds."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache

from engine.contract.evaluations import (
    count_between,
    count_image_rows,
    find_guided_steps,
    is_guided,
    list_evaluated_steps,
    pinned_bucket,
)
from engine.contract.presence import ControlModel, ModelProfile, is_edit
from engine.contract.recipe import ImageToImage, Recipe
from engine.contract.samplers import SECOND_ORDER_SAMPLERS
from engine.contract.steering import count_ending_images, iterate_segments

# Where a worker does not say, of a row's time. A ControlNet is a copy of the network's encoder, about a third of
# its forward (Zhang et al. 2023); an IP-Adapter adds one attention to a picture's few tokens in each block.
CONTROL_SHARE = 1 / 3
REFERENCE_SHARE = 0.1


@lru_cache(maxsize=256)  # each change of a running job asks for the price before it, too
def count_row_steps(recipe: Recipe) -> int:
    """Return the rows of all evaluations of the network that are paid for.

    A pinned batch shape is paid in full, padding included. Samplers of second order evaluate the network twice at each
    step but the last.
    """
    rows = 0
    last_rows = 0
    evaluated_steps = list_evaluated_steps(recipe)
    for segment in iterate_segments(recipe):
        state = segment.recipe
        first_guided_step, end_of_guidance = find_guided_steps(state, segment.first_step, segment.end_step)
        count = count_between(evaluated_steps, segment.first_step, segment.end_step)
        guided_count = count_between(evaluated_steps, first_guided_step, end_of_guidance)
        guided, unguided = (_padded_rows(state, segment.image_count, is_on) for is_on in (True, False))
        rows += guided_count * guided + (count - guided_count) * unguided
        last_rows = guided if is_guided(state, segment.end_step - 1) else unguided
    return 2 * rows - last_rows if recipe.sampler in SECOND_ORDER_SAMPLERS and rows else rows


def _padded_rows(recipe: Recipe, image_count: int, is_guidance_on: bool) -> int:
    row_count = image_count * count_image_rows(recipe, is_guidance_on)
    bucket = pinned_bucket(recipe, is_guidance_on)
    return row_count + (-row_count % bucket if bucket else 0)


def estimate_cost(recipe: Recipe, model: ModelProfile) -> float:
    """Return calibrated device-seconds: rows of all evaluations × time a row at this size + encode + decode.

    Control networks and reference adapters add their share of a row. Encoding an init image takes about as long as
    decoding one, and encoding a reference picture as long as a text. Words are encoded once for each style.
    """
    area = recipe.width * recipe.height / (model.size * model.size)
    step_ms = count_row_steps(recipe) * model.row_ms * area * (1 + _added_share(recipe, model))
    text_ms = (
        (len(recipe.concepts) + len(recipe.amendments)) * max(1, len({*recipe.styles}))
        + 1
        + bool(recipe.interpolation and recipe.interpolation.end_prompt)
        + len(recipe.references)
    ) * model.encode_ms
    init_image_count = len(recipe.start.pictures) if isinstance(recipe.start, ImageToImage) else 0
    picture_count = count_ending_images(recipe)
    return (step_ms + text_ms + (picture_count + init_image_count) * model.decode_ms * area) / 1000.0


def _added_share(recipe: Recipe, model: ModelProfile) -> float:
    """Return what edited pictures, control networks and reference adapters add to a row, over all its steps."""
    controls, references = (_row_shares(parts) for parts in (model.controls, model.references))
    control_share = sum(
        controls.get(each.name, CONTROL_SHARE) * max(0.0, each.stop - each.start) for each in recipe.controls
    )
    return (
        _edit_share(recipe, model)
        + control_share
        + sum(references.get(each.name, REFERENCE_SHARE) for each in recipe.references)
    )


def _edit_share(recipe: Recipe, model: ModelProfile) -> int:
    """A picture that is edited has as many tokens as the new one. Models that only edit are measured with one."""
    if not isinstance(recipe.start, ImageToImage) or not is_edit(recipe, model):
        return 0
    return len(recipe.start.pictures) - (model.required == "picture")


def _row_shares(parts: Iterable[ControlModel]) -> dict[str, float]:
    """Return the announced shares, by name."""
    return {part.name: part.row_share for part in parts if part.row_share is not None}


def estimate_decode_ms(model: ModelProfile, width: int, height: int, count: int) -> float:
    """Return calibrated milliseconds of `count` decodes at this size; the calibrated time includes upscaling."""
    return count * model.decode_ms * width * height / (model.size * model.size)

"""What a recipe costs on a calibrated model, in device-seconds."""

from __future__ import annotations

from collections.abc import Iterable

from engine.contract.edits import is_edit
from engine.contract.guidance import count_guided_steps, count_image_rows, count_rows, is_guided, pinned_bucket
from engine.contract.presence import ControlModel, ModelProfile
from engine.contract.recipe import ImageToImage, Recipe
from engine.contract.samplers import SECOND_ORDER_SAMPLERS
from engine.contract.steering import iterate_states, list_final_images, list_lives

# Where a worker does not say, of a row's time. A ControlNet is a copy of the network's encoder, about a third of
# its forward (Zhang et al. 2023); an IP-Adapter adds one attention to a picture's few tokens in each block.
CONTROL_SHARE, REFERENCE_SHARE = 1 / 3, 0.1


def count_row_steps(recipe: Recipe) -> int:
    """Return the rows of all evaluations of the network that are paid for.

    A pinned batch shape is paid in full, padding included. Samplers of second order evaluate the network twice at each
    step but the last.
    """
    if recipe.amendments:
        return _count_amended_row_steps(recipe)
    guided_steps, all_steps = count_guided_steps(recipe), max(0, recipe.end_step - recipe.first_step)
    rows = guided_steps * _padded_rows(recipe, True) + (all_steps - guided_steps) * _padded_rows(recipe, False)
    if recipe.sampler not in SECOND_ORDER_SAMPLERS or all_steps == 0:
        return rows
    return 2 * rows - _padded_rows(recipe, is_guided(recipe, recipe.end_step - 1))


def _count_amended_row_steps(recipe: Recipe) -> int:
    """Count step by step: only samplers that evaluate the network once a step can be steered."""
    lives, rows = list_lives(recipe), 0
    for step, state in iterate_states(recipe, recipe.first_step, recipe.end_step):
        images, is_guidance_on = sum(life.is_alive(step) for life in lives), is_guided(state, step)
        rows += _pad_rows(state, images * count_image_rows(state, is_guidance_on), is_guidance_on)
    return rows


def _padded_rows(recipe: Recipe, is_guidance_on: bool) -> int:
    return _pad_rows(recipe, count_rows(recipe, is_guidance_on), is_guidance_on)


def _pad_rows(recipe: Recipe, row_count: int, is_guidance_on: bool) -> int:
    bucket = pinned_bucket(recipe, is_guidance_on)
    return row_count + (-row_count % bucket if bucket else 0)


def estimate_cost(recipe: Recipe, model: ModelProfile) -> float:
    """Return calibrated device-seconds: rows of all evaluations × time a row at this size + encode + decode.

    Control networks and reference adapters add their share of a row. Encoding an init image takes about as long as
    decoding one, and encoding a reference picture as long as a text.
    """
    area = recipe.width * recipe.height / (model.size * model.size)
    step_ms = count_row_steps(recipe) * model.row_ms * area * (1 + _added_share(recipe, model))
    text_ms = (
        len(recipe.concepts)
        + len(recipe.amendments)
        + 1
        + bool(recipe.interpolation and recipe.interpolation.end_prompt)
        + len(recipe.references)
    ) * model.encode_ms
    init_image_count = len(recipe.start.pictures) if isinstance(recipe.start, ImageToImage) else 0
    picture_count = recipe.drawn_count if recipe.needs_choice else len(list_final_images(recipe))
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

"""What an image gives to a step: its texts and pictures for the network, and its noise for the sampler."""

from __future__ import annotations

import functools
from collections.abc import Hashable, Sequence
from functools import partial
from typing import NamedTuple, cast

import torch

from engine.contract import (
    ImageToImage,
    Recipe,
    Timeline,
    has_negative_weight,
    is_guided,
    needs_unconditional_row,
    noise_seed,
    pinned_bucket,
    recipe_for_image,
)
from engine.models.families.picture_editing import EditedPictures, EditsPictures
from engine.models.family import Conditioning, Family
from engine.models.picture_conditions import PictureCondition, PictureConditions, PictureSlot
from engine.sampling import Plan

MAX_KEPT_INPUTS = 8  # of one image, for different texts or guidance


class PictureInput(NamedTuple):
    """One picture of an image at one step: its tensors, each `[rows, …]`, and its scale."""

    slot: PictureSlot
    tensors: tuple[torch.Tensor, ...]
    scale: float
    network: object


class ModelInputs(NamedTuple):
    """An image's inputs to the network at one step: a base row and one row for each further text.

    out = base + Σ coefficient·(row - base). Images of equal `key` may share a forward; `bucket` is the pinned batch
    shape. Pictures are no part of the key: rows with and without them share a forward. `guidance` is the sum of the
    coefficients where the base is the empty text, else 1.
    """

    conditioning: Conditioning  # each [rows, …]
    coefficients: tuple[float, ...]
    key: Hashable
    bucket: int | None
    pictures: tuple[PictureInput, ...] = ()
    guidance: float = 1.0


class StepInputs:
    """One image's inputs at each step, made when a step asks for them. `recipe`: its job's, with all amendments.

    While nothing changes they are the same value, so that a batch can tell. `shape`: of the latents. `edited`:
    pictures that are edited by the recipe's texts.
    """

    def __init__(
        self,
        recipe: Recipe,
        image: int,
        family: Family,
        shape: tuple[int, ...],
        pictures: PictureConditions = (),
        edited: EditedPictures = (),
    ) -> None:
        self._recipe = recipe
        self._image = image
        self._family = family
        self._shape = shape
        self._pictures = pictures
        self._edited = edited
        self._timeline = Timeline(recipe)
        self._last_step = 0
        self._last_state = recipe
        self._image_recipe = recipe_for_image(recipe, image)  # of the last state
        self._last_inputs: tuple[int, ModelInputs] | None = None
        self._texts: dict[Hashable, ModelInputs] = {}
        self._distinct: dict[Hashable, ModelInputs] = {}

    def with_recipe(self, recipe: Recipe) -> StepInputs:
        """Return the inputs by a recipe that has been amended."""
        return StepInputs(recipe, self._image, self._family, self._shape, self._pictures, self._edited)

    def recipe_at(self, k: int) -> Recipe:
        """Return the image's recipe at step `k`, without amendments."""
        k = min(k, self._recipe.steps - 1)
        if k < self._last_step:  # it was restored, or another image of its job is further
            self._timeline = Timeline(self._recipe)
        state = self._timeline.advance(k)
        self._last_step = k
        if state is not self._last_state:
            self._last_state, self._image_recipe = state, recipe_for_image(state, self._image)
        return self._image_recipe

    def inputs_at(self, k: int) -> ModelInputs:
        """Return the inputs of step `k`."""
        k = min(k, self._recipe.steps - 1)
        if self._last_inputs is None or self._last_inputs[0] != k:
            self._last_inputs = k, self._find_inputs(k)
        return self._last_inputs[1]

    def _find_inputs(self, k: int) -> ModelInputs:
        recipe = self.recipe_at(k)
        is_guidance_on = is_guided(recipe, k)
        active = tuple(_is_active(each, recipe, k) for each in self._pictures)
        texts_key = *_list_text_fields(recipe), is_guidance_on
        if texts_key not in self._texts:
            self._make_room()
            self._texts[texts_key] = _build_text_inputs(recipe, self._family, self._shape, is_guidance_on, self._edited)
        if (texts_key, active) not in self._distinct:
            texts = self._texts[texts_key]
            chosen = [picture for picture, is_active in zip(self._pictures, active, strict=True) if is_active]
            self._distinct[texts_key, active] = (
                _add_pictures(texts, chosen, needs_unconditional_row(recipe, is_guidance_on)) if chosen else texts
            )
        return self._distinct[texts_key, active]

    def _make_room(self) -> None:
        """Forget the steps of a fade: each has other weights."""
        if len(self._texts) >= MAX_KEPT_INPUTS:
            self._texts.clear()
            self._distinct.clear()


def _list_text_fields(recipe: Recipe) -> tuple[Hashable, ...]:
    """Return what amendments can change of an image's texts."""
    interval = recipe.guidance_interval
    return recipe.concepts, recipe.mixed, recipe.negative, recipe.guidance, interval


def _is_active(picture: PictureCondition, recipe: Recipe, k: int) -> bool:
    """Return whether a picture holds at step `k`. From an init image on, steps are counted as diffusers does."""
    first_step = recipe.first_step if isinstance(recipe.start, ImageToImage) else 0
    return picture.is_active(max(0, k - first_step), recipe.steps - first_step)


def _build_text_inputs(
    recipe: Recipe, family: Family, shape: tuple[int, ...], is_guidance_on: bool, edited: EditedPictures
) -> ModelInputs:
    conditioning, coefficients = build_conditioning(recipe, family, is_guidance_on, edited)
    bucket = pinned_bucket(recipe, is_guidance_on)
    shapes = tuple(part.shape[1:] for part in conditioning)
    key = family.name, recipe.dtype, recipe.loras, shape, shapes, bucket
    guidance = sum(coefficients) if needs_unconditional_row(recipe, is_guidance_on) else 1.0
    return ModelInputs(conditioning, coefficients, key, bucket, guidance=guidance)


def _add_pictures(
    inputs: ModelInputs, pictures: Sequence[PictureCondition], has_unconditional_row: bool
) -> ModelInputs:
    rows = len(inputs.conditioning[0])
    return inputs._replace(
        pictures=tuple(
            PictureInput(each.slot, _expand_to_rows(each, rows, has_unconditional_row), each.scale, each.network)
            for each in pictures
        )
    )


def _expand_to_rows(picture: PictureCondition, rows: int, has_unconditional_row: bool) -> tuple[torch.Tensor, ...]:
    """Return the picture's tensors for each row, as views where all rows are equal."""
    if not has_unconditional_row or picture.unconditional_tensors is None:
        return tuple(tensor.expand(rows, *tensor.shape) for tensor in picture.tensors)
    pairs = zip(picture.unconditional_tensors, picture.tensors, strict=True)
    return tuple(torch.stack([base, *[tensor] * (rows - 1)]) for base, tensor in pairs)


def build_conditioning(
    recipe: Recipe, family: Family, is_guidance_on: bool = True, edited: EditedPictures = ()
) -> tuple[Conditioning, tuple[float, ...]]:
    """Return the conditions, each `[rows, …]`, and the coefficient of each row after the first.

    out = u + guidance·Σ wᵢ(cᵢ - u) (Liu et al. 2022, equation 11). Where guidance·Σ wᵢ = 1 the empty text u cancels
    out, and the first concept of positive weight is the base. That also holds where guidance is off, or is an input of
    the network: the weights are then scaled to sum to 1, unless one of them is not positive. `edited`: pictures that
    are edited by these texts.
    """
    encode = family.encode_conditioning
    if edited and isinstance(family, EditsPictures):
        encode = partial(family.encode_edit, pictures=edited)
    concepts = sorted(recipe.concepts, key=lambda concept: concept.weight <= 0)
    conditionings = [encode(concept.text, recipe) for concept in concepts]
    weights = [concept.weight for concept in concepts]
    if recipe.mixed:
        conditionings = [_mix_conditionings(conditionings, weights)]
        weights = [1.0]
    unguided_scale = 1.0 if has_negative_weight(recipe) else 1.0 / sum(weights)
    scale = recipe.guidance if is_guidance_on and recipe.guidance_kind == "rows" else unguided_scale
    coefficients = [scale * weight for weight in weights]
    if needs_unconditional_row(recipe, is_guidance_on):
        conditionings = [encode(recipe.negative, recipe, negative=True), *conditionings]
        coefficients = [0.0, *coefficients]
    return tuple(torch.stack(part) for part in zip(*conditionings, strict=True)), tuple(coefficients[1:])


def _mix_conditionings(conditionings: Sequence[Conditioning], weights: Sequence[float]) -> Conditioning:
    """Return one conditioning between several texts: the weighted mean of their conditionings."""
    return tuple(_mix_part(part, weights) for part in zip(*conditionings, strict=True))


def _mix_part(part: Sequence[torch.Tensor], weights: Sequence[float]) -> torch.Tensor:
    """Return the weighted mean. Whole numbers are lengths or masks: the largest holds, so that no text is cut off."""
    if not part[0].is_floating_point():
        return torch.stack([each for each, weight in zip(part, weights, strict=True) if weight]).amax(dim=0)
    total_weight = sum(weights)
    return torch.stack([each * (weight / total_weight) for each, weight in zip(part, weights, strict=True)]).sum(dim=0)


class Noise:
    """Standard normal draws of shape `shape` for image `image` of `recipe`; draw 0 is the initial noise.

    They are a function of the recipe and the position in the stream alone: float32 on the CPU, from one sequential
    generator per image. So diffusers with `generator=[torch.Generator().manual_seed(seed + i)]` gives the same picture,
    on any device. A variation's lineage interpolates every draw, not only the first, so it also works with samplers
    that draw at each step. A restored image redraws up to its position, so no generator state is stored.
    """

    def __init__(self, recipe: Recipe, image: int, shape: tuple[int, ...]) -> None:
        ancestors = [_SeedStream(ancestor.seed + ancestor.index, shape) for ancestor in recipe.lineage]
        self._lineage_strengths = [ancestor.strength for ancestor in recipe.lineage]
        self._streams = [*ancestors, _SeedStream(noise_seed(recipe, image), shape)]

    def initial_noise(self) -> torch.Tensor:
        """Return draw 0 of the shape `shape`, float32 on the CPU."""
        return self._draw_blended(0)

    def row_noise(self, k: int, plan: Plan) -> torch.Tensor:
        """Return the noise that the plan's row at step `k` adds; call it only if `plan.has_noise_draw(k)`.

        A row of several steps adds the draws of all of them, each with its share; that is a standard normal draw, too.
        """
        positions, weights = plan.draws_at(k)
        if not weights:
            return self._draw_blended(positions[0])
        draws = (weight * self._draw_blended(position) for position, weight in zip(positions, weights, strict=True))
        return functools.reduce(torch.add, draws)

    def _draw_blended(self, position: int) -> torch.Tensor:
        """Interpolate along the generations; each strength says how far the next one moves from its predecessor."""
        noise = self._streams[0].draw(position)
        for strength, stream in zip(self._lineage_strengths, self._streams[1:], strict=True):
            noise = slerp(noise, stream.draw(position), strength)
        return noise


class _SeedStream:
    """One seed's draws in order; going back restarts the generator."""

    def __init__(self, seed: int, shape: tuple[int, ...]) -> None:
        self._seed = seed
        self._shape = shape
        self._next_position = 0
        self._generator = torch.Generator().manual_seed(seed)

    def draw(self, position: int) -> torch.Tensor:
        if position < self._next_position:
            self._next_position, self._generator = 0, torch.Generator().manual_seed(self._seed)
        while True:
            noise = torch.randn(self._shape, generator=self._generator)
            self._next_position += 1
            if self._next_position > position:
                return noise


def slerp(a: torch.Tensor, b: torch.Tensor, strength: float) -> torch.Tensor:
    """Return the spherical interpolation from `a` (strength 0) to `b` (1), which keeps the noise's norm (Shoemake
    1985). Both have one shape `[…]`, which is the result's.
    """
    x = a.double().flatten()
    y = b.double().flatten()
    cos_angle = torch.dot(x, y) / cast(torch.Tensor, x.norm() * y.norm())
    angle = torch.arccos(cos_angle.clamp(-1.0, 1.0))
    if angle < 1e-4:  # equal streams: the sines vanish
        return a
    blended = (torch.sin((1 - strength) * angle) * x + torch.sin(strength * angle) * y) / torch.sin(angle)
    return blended.float().view(a.shape)

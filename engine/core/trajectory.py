"""Trajectory: one image on its way from noise to latents. Mutable: step `k`, latents `x`, history `h`, keyframes.

Only the engine advances it. It knows nothing of other images.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
import torch

from engine.contract import Branch, Dtype, Job, Recipe, Snapshot, recipe_for_image
from engine.core import keyframe_steps
from engine.core.init_latents import InitLatents
from engine.core.model_inputs import ModelInputs, build_model_inputs
from engine.core.noise import Noise
from engine.models.family import Family
from engine.models.pictures.picture_conditions import PictureConditions
from engine.plan import Plan

# 2³² times the inverse of the plastic number, and that of its square: the sequence fills the plane evenly
# (Roberts 2018, "The unreasonable effectiveness of quasirandom sequences").
_ROLL_STRIDES = (3_242_174_889, 2_447_445_414)


@dataclass(frozen=True)
class LatentKeyframe:
    """A keyframe before decoding: x0 after `step` steps; at every fourth also the latents to continue from.

    `draw_count`: how many noise draws came before the next step.
    """

    step: int
    x0: torch.Tensor
    latents: torch.Tensor | None = None
    draw_count: int | None = None


class MaskedSource(NamedTuple):
    """The masked source: what an image keeps outside its mask, at the noise level of the rest (Lugmayr et al. 2022)."""

    latents: torch.Tensor
    mask: torch.Tensor  # 1 where it is painted anew
    noise: torch.Tensor


class Trajectory:
    """Image `image` of `job`. In steps without guidance it may take fewer rows. `pictures`: its recipe's, prepared.

    `row_ms` (milliseconds a row-step at its size) and `forward_times` (of a forward, by rows): see
    `engine.scheduler.share_tree`.
    """

    row_ms = 1.0
    forward_times: Mapping[int, float] = MappingProxyType({})

    def __init__(
        self, job: Job, recipe: Recipe, image: int, plan: Plan, family: Family, init_latents: InitLatents | None = None,
        pictures: PictureConditions = (),
    ) -> None:  # fmt: skip
        recipe = recipe_for_image(recipe, image)
        shape = family.latent_shape(recipe.width, recipe.height)
        self.job, self.image, self.billing_key, self.plan = job.id, image, job.billing_key, plan
        self.recipe, self.model, self.loras = recipe, family.name, recipe.loras
        self.dtype: Dtype = recipe.dtype
        self.noise = Noise(recipe, image, shape)
        self._inputs_by_step = build_model_inputs(
            recipe, family, shape, pictures, None if init_latents is None else init_latents.edited
        )
        self.k, self.end_step = recipe.first_step, recipe.end_step
        is_inpainted = any(picture.slot.kind == "inpaint" for picture in pictures)  # the network itself sees the mask
        self.masked_source = None if is_inpainted else _build_masked_source(init_latents, self.noise)
        self.x = _first_latents(recipe, plan, self.noise, init_latents).to(family.device)
        self.h: torch.Tensor | None = _initial_history(plan, init_latents, self.x)
        self.likely_end: torch.Tensor | None = None  # for previews alone
        self.keyframes: list[LatentKeyframe] = []
        steps = keyframe_steps.keyframe_steps(plan, self.k, self.end_step) if job.ladder else ()
        self._keyframe_numbers = {step: number for number, step in enumerate(steps)}

    @property
    def is_done(self) -> bool:
        return self.k >= self.end_step

    @property
    def shift(self) -> tuple[int, int] | None:
        """A tile's roll of the latents before the next step; it varies, so that no seam stays in place.

        This is "noise rolling" (Vecchio et al. 2023, ControlMat). None if the image is no tile.
        """
        if not self.recipe.tile:
            return None
        height, width = self.x.shape[-2:]
        down, right = ((self.recipe.seed + self.k * stride) % 2**32 for stride in _ROLL_STRIDES)
        return down * height >> 32, right * width >> 32

    @property
    def model_inputs(self) -> ModelInputs:
        """The inputs of the next step."""
        return self._inputs_by_step[min(self.k, len(self._inputs_by_step) - 1)]

    @property
    def rows(self) -> int:
        return len(self.model_inputs.conditioning[0])

    @property
    def key(self) -> Hashable:
        return self.model_inputs.key

    @property
    def bucket(self) -> int | None:
        return self.model_inputs.bucket

    def advance(self, x: torch.Tensor, x0: torch.Tensor) -> None:
        """Advance one step. The tensors are stored without a copy, so never write to them again.

        An image that is stopped early ends with x0, and keeps its latents to continue to its end.
        """
        self.k += 1
        is_stopped = self.k == self.end_step < self.plan.steps
        self.x = x0 if is_stopped else x
        if self.h is not None:
            self.h = x0
        if self.k not in self._keyframe_numbers:
            return
        has_latents = is_stopped or keyframe_steps.has_latents(self._keyframe_numbers[self.k])
        self.keyframes.append(
            LatentKeyframe(self.k, x0.clone(), x.clone() if has_latents else None, self.plan.draw_counts[self.k])
        )

    def snapshot(self, epoch: int) -> Snapshot:
        """Return the state as bytes. Waits for the device."""
        keyframes = tuple(
            (keyframe.step, b"".join(map(_encode_tensor, (keyframe.x0, keyframe.latents))))
            for keyframe in self.keyframes
        )
        return Snapshot(
            job=self.job, image=self.image, epoch=epoch, next_step=self.k, shape=tuple(self.x.shape),
            x=_encode_tensor(self.x), history=_encode_tensor(self.h), keyframes=keyframes,
        )  # fmt: skip

    def restore(self, snapshot: Snapshot) -> None:
        """Continue from a snapshot. Raises ValueError, and changes nothing, if it belongs to another image."""
        if (snapshot.job, snapshot.image, snapshot.shape) != (self.job, self.image, tuple(self.x.shape)):
            raise ValueError("the snapshot is of another image")
        is_foreign = any(step not in self._keyframe_numbers for step, _ in snapshot.keyframes)
        if is_foreign or not self.recipe.first_step <= snapshot.next_step <= self.end_step:
            raise ValueError("the snapshot is of another plan")
        x, keyframes = (
            self._decode_tensors(snapshot.x),
            [self._decode_keyframe(step, content) for step, content in snapshot.keyframes],
        )
        h = self._decode_tensors(snapshot.history)
        if len(x) != 1 or len(h) != (self.h is not None):
            raise ValueError("the snapshot's latents have the wrong size")
        self.k, self.x, self.h, self.keyframes = snapshot.next_step, x[0], h[0] if h else None, keyframes

    def _decode_keyframe(self, step: int, content: bytes) -> LatentKeyframe:
        tensors = self._decode_tensors(content)
        if not 1 <= len(tensors) <= 3:
            raise ValueError("a keyframe of the snapshot has the wrong size")
        x = tensors[1] if len(tensors) > 1 else None  # before version 5 x0 was there twice
        return LatentKeyframe(step, tensors[0], x, self.plan.draw_counts[step])

    def _decode_tensors(self, content: bytes) -> list[torch.Tensor]:
        """Split a concatenation of latents, each of this image's shape."""
        if len(content) % (4 * self.x.numel()):
            raise ValueError("the snapshot's latents have the wrong size")
        stacked = torch.from_numpy(np.frombuffer(bytearray(content), dtype=np.float32).reshape(-1, *self.x.shape))
        if not torch.isfinite(stacked).all():
            raise ValueError("the snapshot holds numbers that are not finite")
        return list(stacked.to(self.x.device))


def _build_masked_source(init_latents: InitLatents | None, noise: Noise) -> MaskedSource | None:
    if init_latents is None or init_latents.mask is None:
        return None
    latents = init_latents.latents
    return MaskedSource(latents, init_latents.mask, noise.initial_noise().to(latents.device))


def _first_latents(recipe: Recipe, plan: Plan, noise: Noise, init_latents: InitLatents | None) -> torch.Tensor:
    """Return the first latents: noise, an init image with noise (x = alpha·z + sigma·noise), or a keyframe's latents.

    At full strength nothing of a masked image is kept, as in diffusers' inpainting.
    """
    first_step, start = recipe.first_step, recipe.start
    is_repainted = init_latents is not None and init_latents.mask is not None and first_step == 0
    if init_latents is None or init_latents.edited is not None or is_repainted:
        return noise.initial_noise() * plan.init_sigma
    clean, (alpha, sigma) = init_latents.latents, plan.noise_level(first_step)
    if isinstance(start, Branch):
        if not start.has_new_noise or init_latents.x0 is None:
            return init_latents.at_noise_level((alpha, sigma))
        clean = init_latents.x0
    return alpha * clean + sigma * noise.initial_noise().to(clean.device)


def _initial_history(plan: Plan, init_latents: InitLatents | None, x: torch.Tensor) -> torch.Tensor | None:
    if not plan.has_history:
        return None
    x0 = None if init_latents is None else init_latents.x0
    return torch.zeros_like(x) if x0 is None else x0


def _encode_tensor(tensor: torch.Tensor | None) -> bytes:
    return b"" if tensor is None else tensor.to("cpu", torch.float32).contiguous().numpy().tobytes()

"""Trajectory: one image on its way from noise to latents. Mutable: step `k`, latents `x`, history `h`, keyframes.

Only the engine advances it. It knows nothing of other images.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
import torch

from engine import ladder
from engine.beginning import Beginning
from engine.families.family import Conditions, Family
from engine.job import Branch, Dtype, Job, Recipe, Snapshot, guided, of_image, pinned, steers_away, unconditional
from engine.noise import Noise
from engine.plan import Plan

# 2³² times the inverse of the plastic number, and that of its square: the sequence fills the plane evenly
# (Roberts 2018, "The unreasonable effectiveness of quasirandom sequences").
_STRIDES = (3_242_174_889, 2_447_445_414)


@dataclass(frozen=True)
class LatentRung:
    """A keyframe before decoding: x0 after `step` steps; at every fourth also the latents to continue from.

    `drawn`: how many noise draws came before the next step.
    """

    step: int
    x0: torch.Tensor
    x: torch.Tensor | None = None
    drawn: int | None = None


class Asked(NamedTuple):
    """An image's inputs to the network at one step: a base row and one row for each further text.

    out = base + Σ steer·(row - base). Images of equal `key` may share a forward; `bucket` is the pinned batch shape.
    """

    texts: Conditions  # each [rows, …]
    steer: tuple[float, ...]
    key: Hashable
    bucket: int | None


class Ground(NamedTuple):
    """The masked source: what an image keeps outside its mask, at the noise level of the rest (Lugmayr et al. 2022)."""

    latents: torch.Tensor
    mask: torch.Tensor  # 1 where it is painted anew
    noise: torch.Tensor


class Trajectory:
    """Image `image` of `job`. In steps without guidance it may take fewer rows.

    `price` (milliseconds a row-step at its size) and `times` (of a forward, by rows): see `engine.scheduler.shares`.
    """

    price = 1.0
    times: Mapping[int, float] = MappingProxyType({})

    def __init__(
        self, job: Job, recipe: Recipe, image: int, plan: Plan, family: Family, beginning: Beginning | None = None
    ) -> None:
        recipe = of_image(recipe, image)
        shape = family.latent_shape(recipe.width, recipe.height)
        self.job, self.image, self.share, self.plan = job.id, image, job.share, plan
        self.recipe, self.model, self.loras = recipe, family.name, recipe.loras
        self.dtype: Dtype = recipe.dtype
        self.noise = Noise(recipe, image, shape)
        self._guided = tuple(guided(recipe, k) for k in range(recipe.steps))
        self._asked = {held: _asked(recipe, family, shape, held) for held in {*self._guided}}
        self.k, self.last = recipe.first, recipe.last
        self.ground = _ground(beginning, self.noise)
        self.x = _start(recipe, plan, self.noise, beginning).to(family.device)
        self.h = _history(plan, beginning, self.x)
        self.rungs: list[LatentRung] = []
        steps = ladder.rungs(plan, self.k, self.last) if job.ladder else ()
        self._rung_at = {step: number for number, step in enumerate(steps)}

    @property
    def done(self) -> bool:
        return self.k >= self.last

    @property
    def shift(self) -> tuple[int, int] | None:
        """A tile's roll of the latents before the next step; it varies, so that no seam stays in place.

        This is "noise rolling" (Vecchio et al. 2023, ControlMat). None if the image is no tile.
        """
        if not self.recipe.tile:
            return None
        height, width = self.x.shape[-2:]
        down, right = ((self.recipe.seed + self.k * stride) % 2**32 for stride in _STRIDES)
        return down * height >> 32, right * width >> 32

    @property
    def asked(self) -> Asked:
        """The inputs of the next step."""
        return self._asked[self._guided[min(self.k, len(self._guided) - 1)]]

    @property
    def rows(self) -> int:
        return len(self.asked.texts[0])

    @property
    def key(self) -> Hashable:
        return self.asked.key

    @property
    def bucket(self) -> int | None:
        return self.asked.bucket

    def move(self, x: torch.Tensor, x0: torch.Tensor) -> None:
        """Advance one step. The tensors are stored without a copy, so never write to them again.

        An image that is stopped early ends with x0, and keeps its latents to continue to its end.
        """
        self.k += 1
        stopped = self.k == self.last < self.plan.steps
        self.x = x0 if stopped else x
        if self.h is not None:
            self.h = x0
        if self.k not in self._rung_at:
            return
        whole = stopped or ladder.keeps_latent(self._rung_at[self.k])
        self.rungs.append(LatentRung(self.k, x0.clone(), x.clone() if whole else None, self.plan.draws[self.k]))

    def snapshot(self, epoch: int) -> Snapshot:
        """Return the state as bytes. Waits for the device."""
        rungs = tuple((rung.step, b"".join(map(_bytes, (rung.x0, rung.x)))) for rung in self.rungs)
        return Snapshot(
            job=self.job, image=self.image, epoch=epoch, k=self.k, shape=tuple(self.x.shape),
            x=_bytes(self.x), h=_bytes(self.h), rungs=rungs,
        )  # fmt: skip

    def restore(self, snapshot: Snapshot) -> None:
        """Continue from a snapshot. Raises ValueError, and changes nothing, if it belongs to another image."""
        if (snapshot.job, snapshot.image, snapshot.shape) != (self.job, self.image, tuple(self.x.shape)):
            raise ValueError("the snapshot is of another image")
        strange = any(step not in self._rung_at for step, _ in snapshot.rungs)
        if strange or not self.recipe.first <= snapshot.k <= self.last:
            raise ValueError("the snapshot is of another plan")
        x, rungs = self._tensors(snapshot.x), [self._rung(step, state) for step, state in snapshot.rungs]
        h = self._tensors(snapshot.h)
        if len(x) != 1 or len(h) != (self.h is not None):
            raise ValueError("the snapshot's latents have the wrong size")
        self.k, self.x, self.h, self.rungs = snapshot.k, x[0], h[0] if h else None, rungs

    def _rung(self, step: int, state: bytes) -> LatentRung:
        parts = self._tensors(state)
        if not 1 <= len(parts) <= 3:
            raise ValueError("a rung of the snapshot has the wrong size")
        x = parts[1] if len(parts) > 1 else None  # before version 5 x0 was there twice
        return LatentRung(step, parts[0], x, self.plan.draws[step])

    def _tensors(self, state: bytes) -> list[torch.Tensor]:
        """Split a concatenation of latents, each of this image's shape."""
        if len(state) % (4 * self.x.numel()):
            raise ValueError("the snapshot's latents have the wrong size")
        flat = torch.from_numpy(np.frombuffer(bytearray(state), dtype=np.float32).reshape(-1, *self.x.shape))
        if not torch.isfinite(flat).all():
            raise ValueError("the snapshot holds numbers that are not finite")
        return list(flat.to(self.x.device))


def conditioning(recipe: Recipe, family: Family, held: bool = True) -> tuple[Conditions, tuple[float, ...]]:
    """Return the conditions, each `[rows, …]`, and the coefficient of each row after the first.

    out = u + guidance·Σ wᵢ(cᵢ - u) (Liu et al. 2022, equation 11). Where guidance·Σ wᵢ = 1 the empty text u cancels
    out, and the first concept of positive weight is the base. That also holds where guidance is not `held`, or is an
    input of the network: the weights are then scaled to sum to 1, unless one of them is not positive.
    """
    concepts = sorted(recipe.concepts, key=lambda concept: concept.weight <= 0)
    texts = [family.condition(concept.text, recipe) for concept in concepts]
    weights = [concept.weight for concept in concepts]
    if recipe.mixed:
        texts, weights = [_between(texts, weights)], [1.0]
    plain = 1.0 if steers_away(recipe) else 1.0 / sum(weights)
    scale = recipe.guidance if held and recipe.guides == "rows" else plain
    steer = [scale * weight for weight in weights]
    if unconditional(recipe, held):
        texts, steer = [family.condition(recipe.negative, recipe, negative=True), *texts], [0.0, *steer]
    return tuple(torch.stack(part) for part in zip(*texts, strict=True)), tuple(steer[1:])


def _between(texts: Sequence[Conditions], weights: Sequence[float]) -> Conditions:
    """Return one conditioning between several texts: the weighted mean of their conditionings."""
    whole = sum(weights)
    parts = (zip(part, weights, strict=True) for part in zip(*texts, strict=True))
    return tuple(torch.stack([one * (weight / whole) for one, weight in part]).sum(dim=0) for part in parts)


def _ground(beginning: Beginning | None, noise: Noise) -> Ground | None:
    if beginning is None or beginning.mask is None:
        return None
    latents = beginning.latents
    return Ground(latents, beginning.mask, noise.initial().to(latents.device))


def _start(recipe: Recipe, plan: Plan, noise: Noise, beginning: Beginning | None) -> torch.Tensor:
    """Return the first latents: noise, an init image with noise (x = alpha·z + sigma·noise), or a keyframe's latents.

    At full strength nothing of a masked image is kept, as in diffusers' inpainting.
    """
    first, start = recipe.first, recipe.start
    if beginning is None or (beginning.mask is not None and first == 0):
        return noise.initial() * plan.init_sigma
    clean, (alpha, sigma) = beginning.latents, plan.level(first)
    if isinstance(start, Branch):
        if not start.fresh or beginning.estimate is None:
            return beginning.at((alpha, sigma))
        clean = beginning.estimate
    return alpha * clean + sigma * noise.initial().to(clean.device)


def _history(plan: Plan, beginning: Beginning | None, x: torch.Tensor) -> torch.Tensor | None:
    if not plan.keeps_history:
        return None
    known = None if beginning is None else beginning.estimate
    return torch.zeros_like(x) if known is None else known


def _asked(recipe: Recipe, family: Family, shape: tuple[int, ...], held: bool) -> Asked:
    texts, steer = conditioning(recipe, family, held)
    bucket = pinned(recipe, held)
    shapes = tuple(part.shape[1:] for part in texts)
    return Asked(texts, steer, (family.name, recipe.dtype, recipe.loras, shape, shapes, bucket), bucket)


def _bytes(tensor: torch.Tensor | None) -> bytes:
    return b"" if tensor is None else tensor.to("cpu", torch.float32).contiguous().numpy().tobytes()

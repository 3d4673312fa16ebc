"""`Trajectory`: one image on its way through the steps of its plan, and the events of an engine step."""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
import torch

from engine.batching.input_pictures import InitLatents
from engine.batching.model_inputs import ModelInputs, Noise, StepInputs
from engine.contract import (
    MAX_KEYFRAMES,
    Blame,
    Branch,
    Dtype,
    ImageLife,
    Job,
    Recipe,
    Snapshot,
    is_snapshot_of_recipe,
    list_followed_changes,
    list_lives,
    list_needed_lives,
)
from engine.models.family import Family
from engine.models.picture_conditions import PictureConditions
from engine.sampling import COLUMNS, Plan

# 2³² times the inverse of the plastic number, and that of its square: the sequence fills the plane evenly
# (Roberts 2018, "The unreasonable effectiveness of quasirandom sequences").
_ROLL_STRIDES = (3_242_174_889, 2_447_445_414)

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class LatentKeyframe:
    """A keyframe before decoding: x0 after `step` steps; at every fourth also the latents to continue from.

    `draw_count`: how many noise draws came before the next step. An image of a whole pipeline has neither.
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
    """One life of an image of `job`. In steps without guidance it may take fewer rows. `pictures`: its recipe's.

    `row_ms` (milliseconds a row-step at its size) and `forward_times` (of a forward, by rows): see
    `engine.batching.group`.
    """

    row_ms = 1.0
    forward_times: Mapping[int, float] = MappingProxyType({})

    def __init__(
        self,
        job: Job,
        recipe: Recipe,
        life: ImageLife,
        plan: Plan,
        family: Family,
        init_latents: InitLatents | None = None,
        pictures: PictureConditions = (),
    ) -> None:
        shape = family.latent_shape(recipe.width, recipe.height)
        self.job = job.id
        self.image = life.image
        self.billing_key = job.billing_key
        self.plan = plan
        self.life = life
        self.model = family.name
        self.loras = recipe.loras
        self._sources = job, family, init_latents, pictures
        self.job_recipe = recipe  # with all amendments
        self._splits = _list_splits(recipe, life)
        self.dtype: Dtype = recipe.dtype
        self._inputs = StepInputs(
            life.give_noise(recipe),
            life.image,
            family,
            shape,
            pictures,
            () if init_latents is None else init_latents.edited,
        )
        self.k = life.first_step
        self.end_step = recipe.end_step
        self.noise = Noise(self.recipe, life.image, shape)
        is_inpainted = any(picture.slot.kind == "inpaint" for picture in pictures)  # the network itself sees the mask
        self.masked_source = None if is_inpainted else _build_masked_source(init_latents, self.noise)
        self.x = _first_latents(self.recipe, plan, self.noise, init_latents).to(family.device)
        self.h: torch.Tensor | None = _initial_history(plan, init_latents, self.x)
        self.likely_end: torch.Tensor | None = None  # for previews alone
        self.keyframes: list[LatentKeyframe] = []
        steps = keyframe_steps(plan, recipe.first_step, self.end_step) if job.ladder else ()
        self._keyframe_numbers = {step: number for number, step in enumerate(steps)}

    def split(self, life: ImageLife, x0: torch.Tensor | None = None) -> Trajectory:
        """Return a new image that leaves this one at its present step, with fresh noise: x = alpha·x0 + sigma·noise.

        `x0`: this image's x0 by the step before. None: the new image is to be restored.
        """
        job, family, init_latents, pictures = self._sources
        plan = self.plan.with_draw_count(life.first_step, 1)
        if plan.is_composed:  # its latents are not where earlier steps led
            plan = plan.without_history(life.first_step)
        image = Trajectory(job, self.job_recipe, life, plan, family, init_latents, pictures)
        image.row_ms = self.row_ms
        image.forward_times = self.forward_times
        if x0 is not None:
            alpha, sigma = plan.noise_level(life.first_step)
            image.x = alpha * x0 + sigma * image.noise.initial_noise().to(x0.device)
            image.h = None if self.h is None else x0
            image.keyframes = [keyframe for keyframe in self.keyframes if keyframe.step < life.first_step]
            image._add_keyframe(x0, image.x)
        return image

    @property
    def recipe(self) -> Recipe:
        """The image's own recipe at the next step, without amendments."""
        return self._inputs.recipe_at(self.k)

    @property
    def is_dropped(self) -> bool:
        """Whether somebody has dropped it, so that no further step runs."""
        return self.life.drop_step is not None and self.k >= self.life.drop_step

    def find_split_lives(self) -> list[ImageLife]:
        """Return the images that leave this one at its present step."""
        return [life for life in self._splits if life.first_step == self.k]

    def prepare_amendment(self, recipe: Recipe) -> StepInputs:
        """Return its inputs by the job's amended recipe, with those of the change's step and of the next one made."""
        inputs = self._inputs.with_recipe(self.life.give_noise(recipe))
        for step in (recipe.amendments[-1].step, self.k):  # others of its job may be further
            inputs.inputs_at(step)
        return inputs

    def amend(self, recipe: Recipe, inputs: StepInputs) -> None:
        """Follow the job's amended recipe from the next step on. `inputs`: by `prepare_amendment`."""
        self.job_recipe = recipe
        self._inputs = inputs
        self.likely_end = None
        self.life = next(life for life in list_lives(recipe) if life.key == self.life.key)
        self._splits = _list_splits(recipe, self.life)

    @property
    def _is_stopped(self) -> bool:
        """Whether it has ended before the last step of its plan."""
        return self.k == self.end_step < self.plan.steps

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
        return self._inputs.inputs_at(self.k)

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
        """Advance by one row of the plan. The tensors are stored without a copy, so never write to them again.

        An image that is stopped early ends with x0, and keeps its latents to continue to its end.
        """
        self.k = self.plan.next_step(self.k)
        self.x = x0 if self._is_stopped else x
        if self.h is not None:
            self.h = x0
        self._add_keyframe(x0, x)

    def _add_keyframe(self, x0: torch.Tensor, x: torch.Tensor) -> None:
        """Keep x0, and the latents at some keyframes and at an early end, if this is the step of a keyframe."""
        if self.k not in self._keyframe_numbers:
            return
        keeps_latents = self._is_stopped or has_latents(self._keyframe_numbers[self.k])
        self.keyframes.append(
            LatentKeyframe(self.k, x0.clone(), x.clone() if keeps_latents else None, self.plan.draw_count_at(self.k))
        )

    def snapshot(self, epoch: int) -> Snapshot:
        """Return the state as bytes. Waits for the device."""
        keyframes = tuple(
            (keyframe.step, b"".join(map(_encode_tensor, (keyframe.x0, keyframe.latents))))
            for keyframe in self.keyframes
        )
        return Snapshot(
            job=self.job,
            image=self.image,
            epoch=epoch,
            next_step=self.k,
            shape=tuple(self.x.shape),
            x=_encode_tensor(self.x),
            history=_encode_tensor(self.h),
            keyframes=keyframes,
            split_step=self._split_step,
            followed_changes=list_followed_changes(self.job_recipe, self.k),
        )

    @property
    def _split_step(self) -> int | None:
        return None if self.life.parent is None else self.life.first_step - 1

    def is_snapshot_of(self, snapshot: Snapshot) -> bool:
        """Whether a snapshot of the job is of this image, not of an earlier one in its place, and of its recipe."""
        is_of_place = (snapshot.image, snapshot.split_step) == (self.image, self._split_step)
        return is_of_place and is_snapshot_of_recipe(snapshot, self.job_recipe)

    def restore(self, snapshot: Snapshot) -> None:
        """Continue from a snapshot. Raises ValueError, and changes nothing, if it is of another image or recipe."""
        if (snapshot.job, snapshot.shape) != (self.job, tuple(self.x.shape)) or not self.is_snapshot_of(snapshot):
            raise ValueError("the snapshot is of another image or recipe")
        is_foreign = any(step not in self._keyframe_numbers for step, _ in snapshot.keyframes)
        is_foreign = is_foreign or not self.plan.begins_row(snapshot.next_step)
        if is_foreign or not self.life.first_step <= snapshot.next_step <= self.end_step:
            raise ValueError("the snapshot is of another plan")
        x = self._decode_tensors(snapshot.x)
        keyframes = [self._decode_keyframe(step, content) for step, content in snapshot.keyframes]
        h = self._decode_tensors(snapshot.history)
        if len(x) != 1 or len(h) != (self.h is not None):
            raise ValueError("the snapshot's latents have the wrong size")
        self.k = snapshot.next_step
        self.x = x[0]
        self.h = h[0] if h else None
        self.keyframes = keyframes

    def _decode_keyframe(self, step: int, content: bytes) -> LatentKeyframe:
        tensors = self._decode_tensors(content)
        if not 1 <= len(tensors) <= 2:
            raise ValueError("a keyframe of the snapshot has the wrong size")
        x = tensors[1] if len(tensors) > 1 else None
        return LatentKeyframe(step, tensors[0], x, self.plan.draw_count_at(step))

    def _decode_tensors(self, content: bytes) -> list[torch.Tensor]:
        """Split a concatenation of latents, each of this image's shape."""
        if len(content) % (4 * self.x.numel()):
            raise ValueError("the snapshot's latents have the wrong size")
        stacked = torch.from_numpy(np.frombuffer(bytearray(content), dtype=np.float32).reshape(-1, *self.x.shape))
        if not torch.isfinite(stacked).all():
            raise ValueError("the snapshot holds numbers that are not finite")
        return list(stacked.to(self.x.device))


def _list_splits(recipe: Recipe, parent: ImageLife) -> list[ImageLife]:
    """Return the needed images that leave one, at whatever step. Found once, since every step asks."""
    return [life for life in list_needed_lives(recipe) if life.parent is not None and life.parent.key == parent.key]


def _build_masked_source(init_latents: InitLatents | None, noise: Noise) -> MaskedSource | None:
    if init_latents is None or init_latents.mask is None:
        return None
    latents = init_latents.latents
    return MaskedSource(latents, init_latents.mask, noise.initial_noise().to(latents.device))


def _first_latents(recipe: Recipe, plan: Plan, noise: Noise, init_latents: InitLatents | None) -> torch.Tensor:
    """Return the first latents: noise, an init image with noise (x = alpha·z + sigma·noise), or a keyframe's latents.

    At full strength nothing of a masked image is kept, as in diffusers' inpainting.
    """
    first_step = recipe.first_step
    start = recipe.start
    is_repainted = init_latents is not None and init_latents.mask is not None and first_step == 0
    if init_latents is None or init_latents.edited or is_repainted:
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


LATENTS_EVERY = 4  # every fourth keyframe keeps its latents, to branch or replay from
_MAX_LOG_SNR = 8.0  # beyond |log-SNR| 8 nothing visible changes; it is infinite at zero terminal SNR


def keyframe_steps(plan: Plan, first_step: int = 0, end_step: int | None = None) -> tuple[int, ...]:
    """Return the keyframes as numbers of steps done, each at the end of a row, the last at `end_step`.

    They are at most `MAX_KEYFRAMES`, evenly spaced in log-SNR, and include the last step.
    """
    first_row = plan.row_at(first_step)
    end_row = len(plan.table) if end_step is None else plan.row_at(end_step)
    noise_levels = plan.table[first_row:end_row, [COLUMNS.index("alpha"), COLUMNS.index("sigma")]]
    return tuple(plan.row_steps[first_row + rows] for rows in _choose_rows(noise_levels.tobytes()))


@lru_cache(maxsize=256)
def _choose_rows(noise_levels: bytes) -> tuple[int, ...]:
    alpha, sigma = np.frombuffer(noise_levels, dtype=np.float64).reshape(-1, 2).T
    if len(alpha) <= MAX_KEYFRAMES:
        return tuple(range(1, len(alpha) + 1))
    with np.errstate(divide="ignore"):
        log_snr = np.clip(2 * (np.log(alpha) - np.log(sigma)), -_MAX_LOG_SNR, _MAX_LOG_SNR)
    targets = log_snr[0] + (log_snr[-1] - log_snr[0]) * np.arange(MAX_KEYFRAMES) / (MAX_KEYFRAMES - 1)
    nearest = np.abs(log_snr[None, :] - targets[:, None]).argmin(axis=1)
    return tuple(sorted({int(step) + 1 for step in nearest} | {len(alpha)}))[-MAX_KEYFRAMES:]


def has_latents(number: int) -> bool:
    """Return whether keyframe `number` (from 0) stores latents and history besides its thumbnail."""
    return number % LATENTS_EVERY == LATENTS_EVERY - 1


def restore_images(
    images: Sequence[Trajectory], snapshots: Sequence[Snapshot], rebuild: Callable[[], Sequence[Trajectory]]
) -> Sequence[Trajectory]:
    """Return the images as far as snapshots say, with those that splits have made; nobody needs the dropped ones.

    An image whose snapshot is bad starts over. In a job with splits all images do, by `rebuild`, since a new image
    begins only when the one that it leaves passes the split. They come out the same.
    """
    splits = [life for life in list_needed_lives(images[0].job_recipe) if life.parent is not None]
    if splits:
        try:
            images = [*images, *_restore_with_splits(images, splits, snapshots)]
        except ValueError as error:
            log.warning("job %s starts over: %s", images[0].job, error)
            return rebuild()
    else:
        for image in images:
            _restore_image(image, snapshots)
    return [image for image in images if not image.is_dropped]


def _restore_image(image: Trajectory, snapshots: Sequence[Snapshot]) -> None:
    if snapshot := _find_snapshot(image, snapshots):
        try:
            image.restore(snapshot)
        except ValueError as error:
            log.warning("job %s image %d starts over: %s", image.job, image.image, error)


def _restore_with_splits(
    images: Sequence[Trajectory], splits: Sequence[ImageLife], snapshots: Sequence[Snapshot]
) -> list[Trajectory]:
    """Restore images, and return those that splits have made. Raises ValueError if a snapshot is bad or missing."""
    present = {image.life.key: image for image in images}
    for image in images:
        if snapshot := _find_snapshot(image, snapshots):
            image.restore(snapshot)
    for life in splits:
        parent = None if life.parent is None else present.get(life.parent.key)
        if parent is None:  # it is made later, too
            continue
        image = parent.split(life)
        if snapshot := _find_snapshot(image, snapshots):
            image.restore(snapshot)
            present[life.key] = image
        elif parent.k >= life.first_step:
            raise ValueError("a split image has no snapshot")
    return [image for image in present.values() if image not in images]


def _find_snapshot(image: Trajectory, snapshots: Sequence[Snapshot]) -> Snapshot | None:
    return next((snapshot for snapshot in snapshots if image.is_snapshot_of(snapshot)), None)


@dataclass(frozen=True)
class StepDone:
    """Image `image` has done `step` of `total_steps` steps. `x0` is set if the job is watched."""

    job: str
    image: int
    step: int
    total_steps: int
    x0: torch.Tensor | None = None


@dataclass(frozen=True)
class LatentsDone:
    """The image's latents are finished and need to be decoded."""

    job: str
    image: int
    latents: torch.Tensor
    keyframes: tuple[LatentKeyframe, ...]


@dataclass(frozen=True)
class JobFailure:
    """The job failed and left the engine with all of its images."""

    job: str
    reason: str
    blame: Blame


Event = StepDone | LatentsDone | JobFailure


@dataclass(frozen=True)
class BatchRun:
    """The batch of a step: `forward_count` forwards of `rows` rows each. `is_synchronised`: the device is done.

    `has_additions`: LoRAs or pictures take time beside the network.
    """

    model: str
    dtype: Dtype
    rows: int
    forward_count: int
    shape: tuple[int, ...]
    has_additions: bool
    is_synchronised: bool

    @property
    def timing_key(self) -> tuple[object, ...]:
        """A key that is equal for batches whose forwards take equally long."""
        return self.model, self.dtype, self.rows, self.shape, self.has_additions

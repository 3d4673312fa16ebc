"""Previews of the likely end: what the model's turbo LoRA makes of an image's latents while the noise is high.

In the first third of many steps the network's own x0 is a blur. A consistency model maps the same latents to their end
in one forward (Song et al. 2023). The estimate is only shown: latents, noise and keyframes stay what they are.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

import msgspec
import torch

from engine.batching.batch import Coefficients, roll_tiles
from engine.batching.model_inputs import build_conditioning
from engine.batching.trajectory import Trajectory
from engine.contract import TURBO_LORA, TURBO_SAMPLER, JobRejected, Lora, has_negative_weight
from engine.models.family import SMALL_MODEL_SIZE, Family, TakesLoras

log = logging.getLogger(__name__)

# each costs about two evaluations
EVALUATIONS_PER_ESTIMATE = 50
MAX_ESTIMATES = 3
SHOWN_SHARE = 1 / 3  # of an image's steps
FIRST_EVALUATIONS = 2  # the first one sets a job's pace, by which its remaining time is told


class EndEstimator:
    """Only for small models on a processor: elsewhere the LoRA would take memory, and a forward with it is slow."""

    def __init__(self, families: Mapping[str, Family]) -> None:
        self._families = families
        self._failed_models = set[str]()

    def estimate(self, batch: Sequence[Trajectory]) -> bool:
        """Estimate the ends of those images of a batch that are due. Return whether there are any."""
        images = [image for image in batch if _is_due(image)]
        family = self._families[batch[0].model]
        if not images or family.name in self._failed_models or not _can_estimate(family):
            return False
        try:
            for image, end in zip(images, _predict_ends(images, family), strict=True):
                image.likely_end = end
        except JobRejected:  # the model has no turbo LoRA
            return False
        except Exception:  # no picture depends on it
            log.exception("%s: no previews of the likely end", family.name)
            self._failed_models.add(family.name)
        return True


def choose_preview(image: Trajectory, x0: torch.Tensor) -> torch.Tensor:
    """Return the latents that a preview shows: the likely end while the noise is high, then x0."""
    is_early = image.k - image.recipe.first_step <= _count_early_steps(image)
    return x0 if image.likely_end is None or not is_early else image.likely_end


def _count_early_steps(image: Trajectory) -> int:
    return int((image.end_step - image.recipe.first_step) * SHOWN_SHARE)


def _is_due(image: Trajectory) -> bool:
    """Return whether an estimate is due after this step, for an image of one row that begins with noise alone."""
    recipe = image.recipe
    is_one_row = (recipe.mixed or len(recipe.concepts) == 1) and not has_negative_weight(recipe)
    has_pictures = recipe.start is not None or bool(recipe.controls or recipe.references)
    if not recipe.shows_image(image.image) or has_pictures or recipe.loras or not is_one_row:
        return False
    plan = image.plan
    row = image.plan.row_at(image.k)
    estimate_count = min(MAX_ESTIMATES, plan.row_at(image.end_step) // EVALUATIONS_PER_ESTIMATE)
    first_step = plan.row_steps[min(FIRST_EVALUATIONS, len(plan.table))]
    steps = (first_step + n * _count_early_steps(image) // estimate_count for n in range(estimate_count))
    return any(plan.row_steps[row - 1] < step <= image.k for step in steps)


def _can_estimate(family: Family) -> bool:
    return family.size <= SMALL_MODEL_SIZE and family.device.type == "cpu" and TURBO_SAMPLER in family.samplers


def _predict_ends(images: Sequence[Trajectory], family: Family) -> torch.Tensor:
    """Return x0 = P·x + Q·out of each image, by the network with the LoRA and without guidance.

    Raises `JobRejected` if there is no such LoRA.
    """
    if not isinstance(family, TakesLoras):
        raise JobRejected(f"{family.name} takes no LoRAs.", "model")
    turbo_recipe = family.with_loras(msgspec.structs.replace(images[0].recipe, loras=(Lora(TURBO_LORA),)))
    coefficients = Coefficients.build(images)
    x = torch.stack([image.x for image in images])
    conditionings = [build_conditioning(image.recipe, family, is_guidance_on=False)[0] for image in images]
    conditioning = tuple(torch.cat(parts) for parts in zip(*conditionings, strict=True))
    rolled = roll_tiles(coefficients["c"] * x, images)
    t = coefficients["t"].flatten()
    out = family.denoise(rolled, t, conditioning, images[0].dtype, turbo_recipe.loras)
    return coefficients["P"] * x + coefficients["Q"] * roll_tiles(out, images, -1)

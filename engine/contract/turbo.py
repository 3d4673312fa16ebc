"""Turbo: a model's own LoRA, trained for a few steps of LCM without guidance (Luo et al. 2023, "LCM-LoRA")."""

from __future__ import annotations

from engine.contract.presence import ModelProfile
from engine.contract.recipe import Lora, Recipe
from engine.contract.samplers import Sampler

TURBO_LORA = "turbo"
TURBO_STEPS = 4
TURBO_GUIDANCE = 1.0
TURBO_SAMPLER: Sampler = "lcm"


def find_turbo(model: ModelProfile) -> Lora | None:
    """Return the model's turbo LoRA; None if it has none, or if its schedule does not suit the sampler."""
    loras = (lora for lora in model.loras if lora.name == TURBO_LORA)
    return next(loras, None) if TURBO_SAMPLER in model.samplers else None


def is_turbo(recipe: Recipe) -> bool:
    """Return whether its images are drawn by the turbo LoRA with its sampler."""
    return recipe.sampler == TURBO_SAMPLER and any(lora.name == TURBO_LORA for lora in recipe.loras)

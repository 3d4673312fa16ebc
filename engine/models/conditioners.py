"""Conditioners of a family: which pictures beside the prompt its network takes."""

from __future__ import annotations

from engine.contract import PIPELINE_SAMPLERS
from engine.models.families.diffusers_family import DiffusersFamily
from engine.models.inpainting_conditioner import InpaintingConditioner, needs_mask
from engine.models.reference.reference_conditioner import ReferenceConditioner


def add_conditioners(family: DiffusersFamily) -> None:
    """Let a U-Net take reference pictures; and one of nine channels a picture with a mask, which it needs.

    A whole pipeline takes neither, so such a model loses the samplers that need one.
    """
    if family.network_name != "unet":
        return
    family.conditioners = (*family.conditioners, ReferenceConditioner(family))
    if needs_mask(family.pipeline):
        family.conditioners = (*family.conditioners, InpaintingConditioner(family))
        family.required = "mask"
        family.samplers = tuple(sampler for sampler in family.samplers if sampler not in PIPELINE_SAMPLERS)

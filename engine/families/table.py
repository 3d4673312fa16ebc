"""Which family runs a pipeline, by the name of the pipeline's class. Nothing else in the engine knows these names."""

from __future__ import annotations

from engine.families.flux import Flux
from engine.families.pipelined import Pipelined
from engine.families.sana import Sana
from engine.families.sd3 import StableDiffusion3
from engine.families.sdxl import StableDiffusionXL
from engine.families.zimage import ZImage

# Opened by themselves: a small one also takes a super-resolver.
STABLE_DIFFUSION = ("StableDiffusionPipeline", "LatentConsistencyModelPipeline")
BY_PIPELINE: dict[str, type[Pipelined]] = {
    "StableDiffusionXLPipeline": StableDiffusionXL,
    "StableDiffusion3Pipeline": StableDiffusion3,
    "FluxPipeline": Flux,
    "ZImagePipeline": ZImage,
    "SanaPipeline": Sana,
}


def has_family(pipeline: str) -> bool:
    """Whether a family of ours runs the pipelines of this class."""
    return pipeline in (*STABLE_DIFFUSION, *BY_PIPELINE)

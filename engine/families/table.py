"""Which family runs a pipeline, by the name of the pipeline's class. Nothing else in the engine knows these names."""

from __future__ import annotations

from engine.families.flux import Flux
from engine.families.pipelined import Pipelined
from engine.families.sana import Sana
from engine.families.sd3 import StableDiffusion3
from engine.families.sdxl import StableDiffusionXL
from engine.families.zimage import ZImage

# Stable Diffusion 1.x and 2.x are opened by themselves: a small one also takes a super-resolver.
BY_PIPELINE: dict[str, type[Pipelined]] = {
    "StableDiffusionXLPipeline": StableDiffusionXL,
    "StableDiffusion3Pipeline": StableDiffusion3,
    "FluxPipeline": Flux,
    "ZImagePipeline": ZImage,
    "SanaPipeline": Sana,
}

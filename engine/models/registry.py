"""Registry of families by pipeline class. In `engine/`, only `engine.models` chooses a family by these class names."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from engine.models.families.chroma import Chroma
from engine.models.families.diffusers_family import DiffusersFamily
from engine.models.families.flux import Flux, FluxKontext
from engine.models.families.flux2 import Flux2
from engine.models.families.hidream import HiDream
from engine.models.families.lumina2 import Lumina2
from engine.models.families.pixart import PixArt
from engine.models.families.qwen_image import QwenImage, QwenImageEdit, QwenImageEditPlus
from engine.models.families.sana import Sana
from engine.models.families.sd3 import StableDiffusion3
from engine.models.families.sdxl import StableDiffusionXL, as_stable_diffusion_xl
from engine.models.families.stable_diffusion import as_stable_diffusion
from engine.models.families.zimage import ZImage

# `_make_family` builds these itself: StableDiffusionPipeline may take a super-resolver.
STABLE_DIFFUSION = "StableDiffusionPipeline"
LATENT_CONSISTENCY = "LatentConsistencyModelPipeline"
# Inpainting pipelines, each with the function that reads it as the text-to-image pipeline of the same parts.
INPAINTING_PIPELINES: dict[str, Callable[[Any], Any]] = {
    "StableDiffusionInpaintPipeline": as_stable_diffusion,
    "StableDiffusionXLInpaintPipeline": as_stable_diffusion_xl,
}
FAMILY_BY_PIPELINE: dict[str, type[DiffusersFamily]] = {
    "StableDiffusionXLPipeline": StableDiffusionXL,
    "StableDiffusion3Pipeline": StableDiffusion3,
    "FluxPipeline": Flux,
    "FluxKontextPipeline": FluxKontext,
    "Flux2Pipeline": Flux2,
    "Flux2KleinPipeline": Flux2,
    "ChromaPipeline": Chroma,
    "QwenImagePipeline": QwenImage,
    "QwenImageEditPipeline": QwenImageEdit,
    "QwenImageEditPlusPipeline": QwenImageEditPlus,
    "ZImagePipeline": ZImage,
    "SanaPipeline": Sana,
    "Lumina2Pipeline": Lumina2,
    "PixArtAlphaPipeline": PixArt,
    "PixArtSigmaPipeline": PixArt,
    "HiDreamImagePipeline": HiDream,
}


def has_family(class_name: str) -> bool:
    """Whether a family of ours runs pipelines of this class."""
    return class_name in (STABLE_DIFFUSION, LATENT_CONSISTENCY, *INPAINTING_PIPELINES, *FAMILY_BY_PIPELINE)

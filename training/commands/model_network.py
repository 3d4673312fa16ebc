"""Finds, checks and loads the diffusion network of a model, whose errors `train decoder` learns to mend."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from safetensors import SafetensorError

from engine.process.model_words import WEIGHTS_FOLDER
from training.commands import builtin_artwork
from training.core import memory_estimate
from training.diffusion.denoised_latents import Denoiser
from training.diffusion.latent_cache import load_caption_encoder
from training.diffusion.models import find_model_folder, hash_contents

TEXT_WIDTH = 384  # of MiniLM's token states


@dataclass(frozen=True)
class NetworkSource:
    """A diffusion network on disk: what the user called it, its folder, and the folder with its `scheduler`."""

    name: str
    folder: Path
    schedule_parent: Path

    @property
    def fingerprint(self) -> str:
        """Return hex digits that change with the network or its noise schedule."""
        return f"{hash_contents(self.folder)}/{hash_contents(self.schedule_parent / 'scheduler')}"


def find_network(model: str) -> NetworkSource:
    """Find the network of a model, and its noise schedule: the embedded one if it has none. Raises ValueError."""
    folder = find_model_folder(model)
    if not (folder / "unet").is_dir():
        raise ValueError(f"{model} has no diffusion network: --from takes a model with unet and vae.")
    return NetworkSource(model, folder / "unet", folder if (folder / "scheduler").is_dir() else WEIGHTS_FOLDER)


def check_network(source: NetworkSource, autoencoder: AutoencoderKL) -> None:
    """Raise ValueError if the network cannot draw the artwork by its captions, or not this autoencoder's latents."""
    config = memory_estimate.read_config(source.folder)
    schedule = builtin_artwork.load_schedule(source.schedule_parent)
    if (
        config.get("cross_attention_dim") != TEXT_WIDTH
        or config.get("addition_embed_type") not in (None, "text")
        or schedule.config["prediction_type"] != "v_prediction"
    ):
        raise ValueError(
            f"{source.name} has no network for the built-in artwork: --from takes the embedded model, or one that "
            "`darkroom train diffusion` made of it."
        )
    levels = len(autoencoder.config["block_out_channels"])
    channels = autoencoder.config["latent_channels"]
    own_shape = (int(autoencoder.config["sample_size"]) >> (levels - 1), channels)
    shapes = {(config["sample_size"], config.get(name)) for name in ("in_channels", "out_channels")}
    if shapes != {own_shape}:
        side = config["sample_size"]
        count = config.get("in_channels")
        raise ValueError(
            f"The network of {source.name} draws latents of {side}×{side}×{count}, and the autoencoder has "
            f"{own_shape[0]}×{own_shape[0]}×{channels}: --from takes a network that was trained on its latents."
        )


def load_denoiser(source: NetworkSource, autoencoder: AutoencoderKL, device: torch.device) -> Denoiser:
    """Load a network, its noise schedule and the caption encoder. Raises ValueError."""
    try:
        network = UNet2DConditionModel.from_pretrained(
            source.folder, torch_dtype=torch.float32, use_safetensors=True
        ).eval()
    except (OSError, ValueError, TypeError, KeyError, RuntimeError, SafetensorError) as error:
        raise ValueError(f"{source.name} holds no diffusion network in safetensors.") from error
    cast(Any, network).to(device, memory_format=torch.channels_last)
    alphas_cumprod = builtin_artwork.load_schedule(source.schedule_parent).alphas_cumprod
    return Denoiser(network, alphas_cumprod, autoencoder, load_caption_encoder())

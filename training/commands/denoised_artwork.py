"""Adds latents that a diffusion network denoised to the built-in artwork, for `train autoencoder --network`."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from safetensors import SafetensorError

from engine.models.families.embedded import WEIGHTS_FOLDER
from training.commands import builtin_artwork
from training.commands.progress import show_progress
from training.core import memory_estimate
from training.diffusion.denoised_latents import Denoiser, open_denoised_latents
from training.diffusion.latent_cache import load_caption_encoder
from training.diffusion.models import find_model_folder, hash_contents
from training.pictures.masked_pictures import MaskedPictures

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


def find_network(name: str) -> NetworkSource:
    """Find the network of a model, or a folder that is one; its schedule is the embedded one if it has none."""
    folder = find_model_folder(name)
    return NetworkSource(
        name,
        folder / "unet" if (folder / "unet").is_dir() else folder,
        folder if (folder / "scheduler").is_dir() else WEIGHTS_FOLDER,
    )


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
            f"{source.name} is no network for the built-in artwork: --network takes the embedded model's, or one that "
            "`darkroom train diffusion` made of it."
        )
    levels, channels = len(autoencoder.config["block_out_channels"]), autoencoder.config["latent_channels"]
    own_shape = (int(autoencoder.config["sample_size"]) >> (levels - 1), channels)
    shapes = {(config["sample_size"], config.get(name)) for name in ("in_channels", "out_channels")}
    if shapes != {own_shape}:
        side, count = config["sample_size"], config.get("in_channels")
        raise ValueError(
            f"The network of {source.name} draws latents of {side}×{side}×{count}, and the autoencoder has "
            f"{own_shape[0]}×{own_shape[0]}×{channels}: --network takes a network that was trained on its latents."
        )


def add_denoised_latents(
    folder: Path, source: NetworkSource, autoencoder: AutoencoderKL, autoencoder_hash: str, seed: int,
    pictures: tuple[MaskedPictures, MaskedPictures], device: torch.device,
) -> tuple[MaskedPictures, MaskedPictures]:  # fmt: skip
    """Return the pictures to train on and the held-out ones with latents denoised on `device`, kept in `folder`."""
    train_pictures, held_out = pictures
    with show_progress("denoising latents") as report_progress:
        latents = open_denoised_latents(
            folder,
            f"{source.fingerprint}/{autoencoder_hash}",
            partial(_load_denoiser, source, autoencoder, device),
            np.concatenate([train_pictures.pictures, held_out.pictures]),
            train_pictures.captions + held_out.captions,
            seed,
            lambda finished, total: report_progress(finished / total, ""),
        )
    count = len(train_pictures)
    return (
        replace(train_pictures, denoised_latents=latents[:count]),
        replace(held_out, denoised_latents=latents[count:]),
    )


def _load_denoiser(source: NetworkSource, autoencoder: AutoencoderKL, device: torch.device) -> Denoiser:
    try:
        network = UNet2DConditionModel.from_pretrained(
            source.folder, torch_dtype=torch.float32, use_safetensors=True
        ).eval()
    except (OSError, ValueError, TypeError, KeyError, RuntimeError, SafetensorError) as error:
        raise ValueError(f"{source.name} holds no diffusion network in safetensors.") from error
    cast(Any, network).to(device, memory_format=torch.channels_last)
    alphas_cumprod = builtin_artwork.load_schedule(source.schedule_parent).alphas_cumprod
    return Denoiser(network, alphas_cumprod, autoencoder, load_caption_encoder())

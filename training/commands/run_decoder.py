"""Runs `darkroom train decoder`, on the built-in artwork: it learns to mend the errors of a model's network."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

from engine.models.autoencoder.large_decoder import LARGE_DECODER_FOLDER, LargeDecoder
from engine.models.judge import as_images
from engine.process.model_settings import WEIGHTS_FOLDER
from training.commands import builtin_artwork
from training.commands.progress import show_counts
from training.commands.run_pixel_networks import (
    find_autoencoder_folder,
    load_autoencoder,
    load_perceptual_loss,
    write_figures,
)
from training.commands.session import Session
from training.core import memory_estimate
from training.core.run import Metrics
from training.diffusion.denoised_latents import Denoiser, open_denoised_latents
from training.diffusion.latent_cache import load_caption_encoder
from training.diffusion.models import find_model_folder, hash_contents, refuse_unreadable
from training.evaluation.context import load_resolver
from training.gan.decoder_trainer import (
    Decode,
    DecoderEvaluator,
    DecoderPictures,
    DecoderSettings,
    DecoderTrainer,
    build_large_decoder,
    decode_and_upscale,
    decode_large,
    encode_large_pictures,
    fit_output_layer,
    measure_decoder,
    parse_widths,
    render_large_variants,
)
from training.gan.upscaler_trainer import LARGE_SIDE
from training.pictures.artwork import split_drawings
from training.pictures.variants import FIRST_VALIDATION_NUMBER, SIDE

HELD_OUT_PICTURES = 32
FIT_PICTURES = 16  # pictures to which the last layer is fitted before the first step


def train_decoder(session: Session, model: str, cache: Path | None, overrides: dict[str, Any]) -> int:
    settings = session.resolve_settings(DecoderSettings, **overrides)
    autoencoder = load_autoencoder(model).eval()
    source = find_network(model)
    if autoencoder.config["sample_size"] != SIDE:
        raise ValueError(f"The autoencoder of {model} is not for {SIDE} pixels: only such models are trained here.")
    check_network(source, autoencoder)
    network = build_large_decoder(autoencoder, parse_widths(settings.widths, autoencoder), settings.seed)
    _check_memory(network, settings, source)
    autoencoder_hash = hash_contents(find_autoencoder_folder(model))
    start = f"{autoencoder_hash} with the network {source.fingerprint}"
    session.bind_origin({"starting weights": start, "pictures": "the built-in artwork"})
    for part in (network, autoencoder):
        torch.nn.Module.to(part, session.device)
    pictures, held_out = _open_pictures(session, source, autoencoder, autoencoder_hash, cache, settings)
    fit_output_layer(network, pictures.means[:FIT_PICTURES], as_images(pictures.large[:FIT_PICTURES]))
    perception = load_perceptual_loss(session.device) if settings.perceptual > 0 else None
    trainer = DecoderTrainer(network, pictures, settings, perception)
    decode_before = _load_two_passes(model, autoencoder)
    return session.train(
        trainer,
        DecoderEvaluator(trainer, held_out, decode_before),
        lambda: _write_result(session, trainer, held_out, measure_decoder(decode_before, held_out)),
    )


def _check_memory(network: LargeDecoder, settings: DecoderSettings, source: NetworkSource) -> None:
    """Raise ValueError if the training does not fit into memory."""
    config = network.config
    shape = {"block_out_channels": config["block_out_channels"], "layers_per_block": config["layers_per_block"]}
    crop_side = min(LARGE_SIDE, settings.crop << (len(config["block_out_channels"]) - 1))
    bytes_per_picture = memory_estimate.activation_bytes(shape, 1, crop_side) / 2  # as for an autoencoder
    pixels = LARGE_SIDE**2
    memory_estimate.check_pixel_network(
        sum(parameter.numel() for parameter in network.parameters()),
        bytes_per_picture,
        settings.batch,
        settings.pictures * pixels,
        HELD_OUT_PICTURES * pixels,
        "a smaller --batch or fewer --pictures",
        memory_estimate.count_parameters(source.folder),
    )


def _open_pictures(
    session: Session,
    source: NetworkSource,
    autoencoder: AutoencoderKL,
    autoencoder_hash: str,
    cache: Path | None,
    settings: DecoderSettings,
) -> tuple[DecoderPictures, DecoderPictures]:
    """Render the pictures to train on and the held-out ones, encode them, and denoise their latents."""
    drawings = builtin_artwork.load_drawings(cache, LARGE_SIDE, with_related_words=True)
    train_drawings, held_out_drawings = split_drawings(drawings)
    with show_counts("drawing variants") as on_progress:
        train_pictures = render_large_variants(train_drawings, settings.pictures, 0, settings.seed, on_progress)
    held_out = render_large_variants(held_out_drawings, HELD_OUT_PICTURES, FIRST_VALIDATION_NUMBER, settings.seed)
    with show_counts("denoising latents") as on_progress:
        denoised = open_denoised_latents(
            session.folder,
            f"{source.fingerprint}/{autoencoder_hash}",
            partial(load_denoiser, source, autoencoder, session.device),
            np.concatenate([train_pictures.small, held_out.small]),
            train_pictures.captions + held_out.captions,
            settings.seed,
            on_progress,
        )
    return (
        encode_large_pictures(autoencoder, train_pictures, denoised[: len(train_pictures)]),
        encode_large_pictures(autoencoder, held_out, denoised[len(train_pictures) :]),
    )


def _load_two_passes(model: str, autoencoder: AutoencoderKL) -> Decode:
    return partial(decode_and_upscale, autoencoder, load_resolver(find_model_folder(model)))


def _write_result(session: Session, trainer: DecoderTrainer, held_out: DecoderPictures, before: Metrics) -> None:
    """Write the averaged network in fp16, as a model's folder holds it, and its figures beside two passes."""
    network = copy.deepcopy(trainer.average)
    torch.nn.Module.half(network)
    network.save_pretrained(session.options.out / LARGE_DECODER_FOLDER, safe_serialization=True)
    torch.nn.Module.float(network)
    after = measure_decoder(lambda latents: decode_large(network, latents), held_out)
    write_figures(session, {"held_out": len(held_out), "before": before, "after": after, "samples": trainer.samples})


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
    with refuse_unreadable(f"{source.name} holds no diffusion network in safetensors."):
        network = UNet2DConditionModel.from_pretrained(
            source.folder, torch_dtype=torch.float32, use_safetensors=True
        ).eval()
    cast(Any, network).to(device, memory_format=torch.channels_last)
    alphas_cumprod = builtin_artwork.load_schedule(source.schedule_parent).alphas_cumprod
    return Denoiser(network, alphas_cumprod, autoencoder, load_caption_encoder())

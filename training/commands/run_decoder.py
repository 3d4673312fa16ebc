"""Runs `darkroom train decoder`, on the built-in artwork. Imports torch."""

from __future__ import annotations

import copy
import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

from engine.models.autoencoder.large_decoder import LARGE_DECODER_FOLDER, LargeDecoder
from engine.models.judge import as_images
from engine.upscaling.super_resolver import SuperResolver
from training.commands import builtin_artwork
from training.commands.model_network import NetworkSource, check_network, find_network, load_denoiser
from training.commands.progress import show_progress
from training.commands.run_autoencoder import (
    METRICS_FILE,
    find_autoencoder_folder,
    load_autoencoder,
    load_perceptual_loss,
)
from training.commands.session import Session
from training.core import memory_estimate
from training.core.run import Metrics
from training.diffusion.denoised_latents import open_denoised_latents
from training.diffusion.models import find_model_folder, hash_contents
from training.evaluation.context_loader import find_upscaler
from training.gan.decoder_evaluator import Decode, DecoderEvaluator, decode_and_upscale, decode_large, measure_decoder
from training.gan.decoder_pictures import DecoderPictures, TwoSizePictures, encode_large_pictures, render_large_variants
from training.gan.decoder_trainer import (
    DecoderSettings,
    DecoderTrainer,
    build_large_decoder,
    fit_output_layer,
    parse_widths,
)
from training.gan.upscaler_pairs import LARGE_SIDE
from training.pictures.artwork import is_held_out
from training.pictures.variants import FIRST_VALIDATION_NUMBER, SIDE

HELD_OUT_PICTURES = 32
FIT_PICTURES = 16  # pictures to which the last layer is fitted before the first step


def train_decoder(session: Session, model: str, cache: Path | None, overrides: dict[str, Any]) -> int:
    settings = session.resolve_settings(DecoderSettings, **overrides)
    autoencoder = load_autoencoder(model).eval()
    source = find_network(model)
    _refuse_other_size(model, autoencoder)
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
    trainer = DecoderTrainer(
        network, pictures, settings, load_perceptual_loss(session.device) if settings.perceptual > 0 else None
    )
    decode_before = _load_two_passes(model, autoencoder)
    return session.train(
        trainer,
        DecoderEvaluator(trainer, held_out, decode_before),
        lambda: _write_result(session, trainer, held_out, measure_decoder(decode_before, held_out)),
    )


def _refuse_other_size(model: str, autoencoder: AutoencoderKL) -> None:
    if autoencoder.config["sample_size"] != SIDE:
        raise ValueError(f"The autoencoder of {model} is not for {SIDE} pixels: only such models are trained here.")


def _check_memory(network: LargeDecoder, settings: DecoderSettings, source: NetworkSource) -> None:
    """Raise ValueError if the training does not fit into memory."""
    config = network.config
    shape = {"block_out_channels": config["block_out_channels"], "layers_per_block": config["layers_per_block"]}
    crop_side = min(LARGE_SIDE, settings.crop << (len(config["block_out_channels"]) - 1))
    bytes_per_picture = memory_estimate.activation_bytes(shape, 1, crop_side) / 2  # as for an autoencoder
    pixels = LARGE_SIDE**2
    memory_estimate.check_fits(
        memory_estimate.estimate_pixel_network(
            sum(parameter.numel() for parameter in network.parameters()),
            bytes_per_picture,
            settings.batch,
            settings.pictures * pixels,
            HELD_OUT_PICTURES * pixels,
            "a smaller --batch or fewer --pictures",
            memory_estimate.count_parameters(source.folder),
        )
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
    train_drawings = [drawing for drawing in drawings if not is_held_out(drawing.key)]
    held_out_drawings = [drawing for drawing in drawings if is_held_out(drawing.key)]
    with show_progress("drawing variants") as report_progress:
        train_pictures = render_large_variants(
            train_drawings, settings.pictures, 0, settings.seed, lambda done, total: report_progress(done / total, "")
        )
    held_out = render_large_variants(held_out_drawings, HELD_OUT_PICTURES, FIRST_VALIDATION_NUMBER, settings.seed)
    with show_progress("denoising latents") as report_progress:
        denoised = open_denoised_latents(
            session.folder,
            f"{source.fingerprint}/{autoencoder_hash}",
            partial(load_denoiser, source, autoencoder, session.device),
            np.concatenate([train_pictures.small, held_out.small]),
            train_pictures.captions + held_out.captions,
            settings.seed,
            lambda done, total: report_progress(done / total, ""),
        )
    parts: tuple[tuple[TwoSizePictures, np.ndarray], ...] = (
        (train_pictures, denoised[: len(train_pictures)]),
        (held_out, denoised[len(train_pictures) :]),
    )
    encoded_train, encoded_held_out = (encode_large_pictures(autoencoder, *part) for part in parts)
    return encoded_train, encoded_held_out


def _load_two_passes(model: str, autoencoder: AutoencoderKL) -> Decode:
    resolver = SuperResolver.load(find_upscaler(find_model_folder(model)))
    if resolver is None:
        raise ValueError("The super-resolver's weights are not there: `darkroom train upscaler` makes them.")
    return partial(decode_and_upscale, autoencoder, resolver)


def _write_result(session: Session, trainer: DecoderTrainer, held_out: DecoderPictures, before: Metrics) -> None:
    """Write the averaged network in fp16, as a model's folder holds it, and its figures beside two passes."""
    network = copy.deepcopy(trainer.average)
    torch.nn.Module.half(network)
    network.save_pretrained(session.options.out / LARGE_DECODER_FOLDER, safe_serialization=True)
    torch.nn.Module.float(network)
    after = measure_decoder(lambda latents: decode_large(network, latents), held_out)
    report = {"held_out": len(held_out), "before": before, "after": after, "samples": trainer.samples}
    rounded_report = json.loads(json.dumps(report), parse_float=lambda number: float(np.round(float(number), 4)))
    (session.options.out / METRICS_FILE).write_text(json.dumps(rounded_report, indent=1) + "\n")

"""Runs `darkroom train autoencoder`, on the built-in artwork or on the user's pictures. Imports torch."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from safetensors import SafetensorError

from engine.models.judge import load_judge
from engine.process.model_words import WEIGHTS_FOLDER
from training.commands import builtin_artwork, user_dataset
from training.commands.progress import show_progress
from training.commands.session import Session
from training.core import memory_estimate
from training.core.run import Metrics
from training.diffusion.models import find_model_folder, hash_contents
from training.gan.autoencoder_evaluator import AutoencoderEvaluator, measure_autoencoder
from training.gan.autoencoder_shapes import AUTOENCODER_SHAPES, build_autoencoder
from training.gan.autoencoder_trainer import AutoencoderSettings, AutoencoderTrainer
from training.gan.latent_scale import fold_scale, measure_latent_scale
from training.gan.perceptual_loss import PerceptualLoss
from training.pictures.artwork import is_held_out
from training.pictures.dataset import DatasetPicture, PictureDataset
from training.pictures.masked_pictures import MaskedPictures, mask_pictures, render_artwork
from training.pictures.views import number_views, render_view

METRICS_FILE = "figures.json"
LATENT_OPTIONS = {"kl", "noise_to_signal", "equivariance"}


def train_autoencoder(
    session: Session, source: str, data: Path | None, cache: Path | None, overrides: dict[str, Any]
) -> int:
    settings = session.resolve_settings(partial(_make_settings, bool(source)), **overrides)
    if settings.keep_latents and not source:
        raise ValueError("--keep-latents needs an existing autoencoder: add --from embedded.")
    _refuse_unused(settings, data is not None, overrides)
    network = load_autoencoder(source) if source else _build_network(settings)
    torch.nn.Module.to(network, session.device)
    weights_hash = hash_contents(find_autoencoder_folder(source)) if source else "none"
    if data is None:
        train_pictures, held_out = _open_artwork(session, network, weights_hash, cache, settings)
    else:
        dataset = user_dataset.read_dataset(session, data, require_captions=False)
        session.bind_origin({"starting weights": weights_hash, "pictures": dataset.fingerprint})
        train_pictures, held_out = _render_dataset(dataset, network, settings)
    initial_metrics: Mapping[str, float] = measure_autoencoder(network, held_out) if source else {}
    trainer = AutoencoderTrainer(
        network, train_pictures, settings, load_perceptual_loss(session.device) if settings.perceptual > 0 else None
    )
    return session.train(
        trainer,
        AutoencoderEvaluator(trainer, held_out),
        lambda: _write_result(session, trainer, held_out, initial_metrics),
    )


def load_autoencoder(source: str) -> AutoencoderKL:
    """Load the autoencoder of a model's folder, or of a folder that is one, fp32. Raises ValueError."""
    try:
        return AutoencoderKL.from_pretrained(
            find_autoencoder_folder(source), torch_dtype=torch.float32, use_safetensors=True
        )
    except (OSError, ValueError, TypeError, KeyError, RuntimeError, SafetensorError) as error:
        raise ValueError(f"{source} holds no diffusers autoencoder in safetensors.") from error


def find_autoencoder_folder(source: str) -> Path:
    """Return the folder of a model's autoencoder; a folder may be one itself."""
    folder = find_model_folder(source)
    return folder / "vae" if (folder / "vae").is_dir() else folder


def split_pictures(pictures: tuple[DatasetPicture, ...]) -> tuple[list[DatasetPicture], list[DatasetPicture]]:
    """Split into training and held-out pictures by name; of very few pictures, hold out the first."""
    held_out = [picture for picture in pictures if is_held_out(picture.name)] or list(pictures[:1])
    names = {picture.name for picture in held_out}
    return [picture for picture in pictures if picture.name not in names] or list(pictures), held_out


def _make_settings(has_source: bool, **overrides: Any) -> AutoencoderSettings:
    """Build the settings. Raises ValueError for an unknown shape, or one given for an existing autoencoder."""
    shape = str(overrides.setdefault("shape", "" if has_source else "compact"))
    if has_source and shape:
        raise ValueError("--shape is for an autoencoder from scratch: leave out --from, or --shape.")
    if not has_source and shape not in AUTOENCODER_SHAPES:
        raise ValueError(f"--shape takes {', '.join(AUTOENCODER_SHAPES)}, and {shape[:40]!r} is none of them.")
    values: dict[str, Any] = {"keep_latents": has_source, "rate": 5e-4 if has_source else 1e-3}
    return AutoencoderSettings(**(values | overrides))


def _refuse_unused(settings: AutoencoderSettings, has_dataset: bool, overrides: Mapping[str, Any]) -> None:
    """Raise ValueError if an option is given that this run does not use."""
    set_names = {name for name, value in overrides.items() if value is not None}
    if has_dataset and "variants" in set_names:
        raise ValueError("--variants is only for the built-in artwork: leave it out with --data.")
    if settings.keep_latents and (unused_names := sorted(set_names & LATENT_OPTIONS)):
        raise ValueError(f"--{unused_names[0].replace('_', '-')} needs latents that change: add --new-latents.")


def _build_network(settings: AutoencoderSettings) -> AutoencoderKL:
    return build_autoencoder(settings.seed, AUTOENCODER_SHAPES[settings.shape])


def load_perceptual_loss(device: torch.device = torch.device("cpu")) -> PerceptualLoss:
    """Return the perceptual loss on the embedded judge's convolutional features."""
    return PerceptualLoss(load_judge(WEIGHTS_FOLDER / "judge").network.to(device).stages)


def _check_memory(network: AutoencoderKL, batch: int, train_count: int, held_out_count: int) -> None:
    """Raise ValueError if the training does not fit into memory, with `train_count` and `held_out_count` pictures."""
    side = int(network.config["sample_size"])
    parameter_count = sum(parameter.numel() for parameter in network.parameters())
    bytes_per_picture = (
        memory_estimate.activation_bytes(dict(network.config), 1, side) / 2
    )  # convolutions keep less than a U-Net's attention
    area = side * side
    memory_estimate.check_fits(
        memory_estimate.estimate_pixel_network(
            parameter_count,
            bytes_per_picture,
            batch,
            train_count * area,
            held_out_count * area,
            "a smaller --batch or fewer pictures",
        )
    )


def _open_artwork(
    session: Session, network: AutoencoderKL, weights_hash: str, cache: Path | None, settings: AutoencoderSettings
) -> tuple[MaskedPictures, MaskedPictures]:
    session.bind_origin({"starting weights": weights_hash, "pictures": "the built-in artwork"})
    drawings = builtin_artwork.load_drawings(cache)
    _check_memory(network, settings.batch, settings.variants * len(drawings), len(drawings) // 10)
    with show_progress("drawing variants") as report_progress:
        return render_artwork(
            drawings,
            settings.seed,
            settings.variants,
            on_progress=lambda finished, total: report_progress(finished / total, ""),
        )


def _render_dataset(
    dataset: PictureDataset, network: AutoencoderKL, settings: AutoencoderSettings
) -> tuple[MaskedPictures, MaskedPictures]:
    train_files, held_out_files = split_pictures(dataset.pictures)
    side = int(network.config["sample_size"])
    seed = settings.seed
    pairs = number_views(train_files, flip=False)
    _check_memory(network, settings.batch, len(pairs), len(held_out_files))
    train_views = [render_view(train_files[index], number, side, seed, flip=False) for index, number in pairs]
    return mask_pictures(train_views), mask_pictures(
        [render_view(picture, 0, side, seed, flip=False) for picture in held_out_files]
    )


def _write_result(
    session: Session, trainer: AutoencoderTrainer, held_out: MaskedPictures, initial_metrics: Metrics
) -> None:
    """Write the averaged network in fp16 and its figures. New latents get their scale folded into the weights."""
    network = copy.deepcopy(trainer.average)
    if not trainer.settings.keep_latents:
        fold_scale(network, *measure_latent_scale(network, trainer.pixels))
        network.register_to_config(scaling_factor=1.0, shift_factor=None)
    torch.nn.Module.half(network)
    network.register_to_config(_name_or_path="")  # otherwise a path of this machine
    network.save_pretrained(session.options.out, safe_serialization=True)
    torch.nn.Module.float(network)
    report = {
        "held_out": len(held_out),
        "before": initial_metrics,
        "after": measure_autoencoder(network, held_out),
        "samples": trainer.samples,
    }
    rounded_report = json.loads(json.dumps(report), parse_float=lambda number: float(np.round(float(number), 4)))
    (session.options.out / METRICS_FILE).write_text(json.dumps(rounded_report, indent=1) + "\n")

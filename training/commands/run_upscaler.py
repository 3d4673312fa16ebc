"""Runs `darkroom train upscaler`, on the built-in artwork or on the user's pictures. Imports torch."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

import numpy as np
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from PIL import Image
from torch import nn

from engine.upscaling.super_resolver import BUILT_IN
from training.commands import builtin_artwork, user_dataset
from training.commands.progress import show_progress
from training.commands.run_autoencoder import METRICS_FILE, find_autoencoder_folder, load_autoencoder, split_pictures
from training.commands.session import Session
from training.core import memory_estimate
from training.diffusion.models import hash_contents
from training.gan import upscaler_pairs
from training.gan.upscaler_evaluator import UpscalerEvaluator, measure_upscaler
from training.gan.upscaler_pairs import LARGE_SIDE, UpscalerPairs
from training.gan.upscaler_trainer import (
    UpscalerSettings,
    UpscalerTrainer,
    build_upscaler,
    export_upscaler,
    load_upscaler,
)
from training.pictures.artwork import is_held_out
from training.pictures.dataset import DatasetPicture
from training.pictures.picture_file import decode_picture

HELD_OUT_PICTURES = 48
LOSS_BYTES_PER_PIXEL = 6000  # bytes that losses and discriminator keep for a pixel of the small picture
RESULT_FILE = "model.safetensors"


@dataclass(frozen=True)
class UpscalerSources:
    """The command's arguments for starting weights and training data."""

    weights: str
    autoencoder: str
    data: Path | None
    cache: Path | None
    picture_count: int


@dataclass(frozen=True)
class LargePictures:
    """Training pictures and `count` held-out ones, and the fingerprint of both."""

    training: Iterator[np.ndarray]
    held_out: Iterator[np.ndarray]
    held_out_count: int
    fingerprint: str


class LazyPictures(Sequence[Image.Image]):
    """Decodes pictures on access: a camera's photos in full size do not fit into memory."""

    def __init__(self, pictures: Sequence[DatasetPicture]) -> None:
        self.pictures = pictures

    def __len__(self) -> int:
        return len(self.pictures)

    @overload
    def __getitem__(self, index: int) -> Image.Image: ...

    @overload
    def __getitem__(self, index: slice) -> LazyPictures: ...

    def __getitem__(self, index: int | slice) -> Image.Image | LazyPictures:
        return (
            LazyPictures(self.pictures[index])
            if isinstance(index, slice)
            else decode_picture(self.pictures[index].path).pixels
        )


def train_upscaler(session: Session, sources: UpscalerSources, overrides: dict[str, Any]) -> int:
    settings = session.resolve_settings(UpscalerSettings, **overrides)
    start_file = _weights_file(sources.weights) if sources.weights else None
    network = load_upscaler(start_file) if start_file else build_upscaler(settings.seed)
    _check_memory(network, settings, sources.picture_count)
    autoencoder = load_autoencoder(sources.autoencoder).eval()
    for part in (network, autoencoder):
        nn.Module.to(part, session.device)
    large_pictures = _open_large_pictures(session, sources, settings.seed)
    session.bind_origin(
        {
            "starting weights": hash_contents(start_file) if start_file else "none",
            "pictures": large_pictures.fingerprint,
            "--pictures": str(sources.picture_count),
            "--autoencoder": hash_contents(find_autoencoder_folder(sources.autoencoder)),
        }
    )
    train_pairs = _build_pairs(
        large_pictures.training, sources.picture_count, autoencoder, settings.seed, upscaler_pairs.CHART_SHARE
    )
    held_out_pairs = _build_pairs(
        large_pictures.held_out, large_pictures.held_out_count, autoencoder, settings.seed + 1, 0.0
    )
    trainer = UpscalerTrainer(network, train_pairs, settings)
    return session.train(
        trainer,
        UpscalerEvaluator(trainer, held_out_pairs),
        lambda: _write_result(session, trainer, held_out_pairs, sources.data is None),
    )


def _weights_file(source: str) -> Path:
    return BUILT_IN if source == "embedded" else Path(source)


def _check_memory(network: nn.Module, settings: UpscalerSettings, picture_count: int) -> None:
    parameters = list(network.parameters())
    channels = sum(
        parameter.numel() for parameter in parameters if parameter.ndim == 1
    )  # of every layer and its activation
    bytes_per_picture = (4 * channels + LOSS_BYTES_PER_PIXEL) * settings.crop**2
    parameter_count = sum(parameter.numel() for parameter in parameters)
    pixel_count = (picture_count + HELD_OUT_PICTURES) * LARGE_SIDE**2
    memory_estimate.check_fits(
        memory_estimate.estimate_pixel_network(
            parameter_count,
            bytes_per_picture,
            settings.batch,
            pixel_count,
            HELD_OUT_PICTURES * LARGE_SIDE**2,
            "fewer --pictures",
        )
    )


def _open_large_pictures(session: Session, sources: UpscalerSources, seed: int) -> LargePictures:
    rngs = np.random.default_rng([seed, 1]), np.random.default_rng([seed, 2])
    if sources.data is None:
        drawings = builtin_artwork.load_drawings(sources.cache, LARGE_SIDE)
        split_drawings = [
            [drawing for drawing in drawings if is_held_out(drawing.key) == is_kept_out]
            for is_kept_out in (False, True)
        ]
        counts = sources.picture_count, HELD_OUT_PICTURES
        training, held_out = (
            upscaler_pairs.render_drawings(*arguments) for arguments in zip(split_drawings, counts, rngs, strict=True)
        )
        return LargePictures(training, held_out, HELD_OUT_PICTURES, "the built-in artwork")
    dataset = user_dataset.read_dataset(session, sources.data, require_captions=False)
    files = [LazyPictures(picture_files) for picture_files in split_pictures(dataset.pictures)]
    counts = sources.picture_count, min(HELD_OUT_PICTURES, len(files[1]))
    training, held_out = (upscaler_pairs.cut_squares(*arguments) for arguments in zip(files, counts, rngs, strict=True))
    return LargePictures(training, held_out, counts[1], dataset.fingerprint)


def _build_pairs(
    large: Iterator[np.ndarray], count: int, autoencoder: AutoencoderKL, seed: int, chart_share: float
) -> UpscalerPairs:
    with show_progress("scaling pictures down") as report_progress:
        return upscaler_pairs.build_pairs(
            large, count, autoencoder, seed, chart_share, lambda finished, total: report_progress(finished / total, "")
        )


def _write_result(session: Session, trainer: UpscalerTrainer, held_out: UpscalerPairs, is_flat: bool) -> None:
    """Write the averaged network in fp16 for spandrel, and its figures."""
    target = session.options.out / RESULT_FILE
    export_upscaler(trainer.average, target, flat=is_flat)
    metrics = measure_upscaler(load_upscaler(target), held_out)
    report = {"held_out": len(held_out), **{name: round(figure, 4) for name, figure in metrics.items()}}
    (session.options.out / METRICS_FILE).write_text(json.dumps({**report, "samples": trainer.samples}, indent=1) + "\n")

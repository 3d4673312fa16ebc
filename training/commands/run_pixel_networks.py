"""Runs `darkroom train autoencoder`, `upscaler` and `judge`: the trainings of networks that see pixels."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from PIL import Image
from torch import nn

from engine.models.judge import load_judge, save_judge
from engine.models.text_embedder import Embedder
from engine.process.model_settings import WEIGHTS_FOLDER
from engine.upscaling.super_resolver import BUILT_IN
from training.commands import builtin_artwork, user_dataset
from training.commands.progress import show_counts
from training.commands.session import Session
from training.core import memory_estimate
from training.core.run import Metrics
from training.diffusion.models import find_model_folder, hash_contents, refuse_unreadable
from training.evaluation.judge_trainer import (
    RENDERINGS_PER_DRAWING,
    JudgeEvaluator,
    JudgeSettings,
    JudgeTrainer,
    collect_labels,
    count_parameters,
    held_back_pairs,
    parse_widths,
)
from training.gan.autoencoder_trainer import (
    AUTOENCODER_SHAPES,
    AutoencoderEvaluator,
    AutoencoderSettings,
    AutoencoderTrainer,
    build_autoencoder,
    measure_autoencoder,
)
from training.gan.latent_coding import fold_scale, measure_latent_scale
from training.gan.losses import PerceptualLoss
from training.gan.upscaler_trainer import (
    CHART_SHARE,
    LARGE_SIDE,
    UpscalerEvaluator,
    UpscalerPairs,
    UpscalerSettings,
    UpscalerTrainer,
    build_pairs,
    build_upscaler,
    cut_squares,
    export_upscaler,
    load_upscaler,
    measure_upscaler,
    render_drawings,
)
from training.pictures.artwork import is_held_out, split_drawings
from training.pictures.dataset import DatasetPicture, PictureDataset, number_views, render_view
from training.pictures.masked_pictures import MaskedPictures, mask_pictures, render_artwork
from training.pictures.picture_file import decode_picture

METRICS_FILE = "figures.json"
# of a rendering; of the first stage, each other has a quarter
RENDERING_PIXELS = 64 * 64
STAGE_PIXELS = 16 * 16
STAGE_VALUE_BYTES = 36  # that a picture of a batch keeps for each output of a stage
LATENT_OPTIONS = {"kl", "noise_to_signal", "equivariance"}


def train_autoencoder(
    session: Session, source: str, data: Path | None, cache: Path | None, overrides: dict[str, Any]
) -> int:
    settings = session.resolve_settings(partial(_make_settings, bool(source)), **overrides)
    if settings.keep_latents and not source:
        raise ValueError("--keep-latents needs an existing autoencoder: add --from embedded.")
    _refuse_unused(settings, data is not None, overrides)
    network = (
        load_autoencoder(source) if source else build_autoencoder(settings.seed, AUTOENCODER_SHAPES[settings.shape])
    )
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
        lambda: _write_autoencoder(session, trainer, held_out, initial_metrics),
    )


def load_autoencoder(source: str) -> AutoencoderKL:
    """Load the autoencoder of a model's folder, or of a folder that is one, fp32. Raises ValueError."""
    with refuse_unreadable(f"{source} holds no diffusers autoencoder in safetensors."):
        return AutoencoderKL.from_pretrained(
            find_autoencoder_folder(source), torch_dtype=torch.float32, use_safetensors=True
        )


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


def load_perceptual_loss(device: torch.device = torch.device("cpu")) -> PerceptualLoss:
    """Return the perceptual loss on the embedded judge's convolutional features."""
    return PerceptualLoss(load_judge(WEIGHTS_FOLDER / "judge").network.to(device).stages)


def _check_autoencoder_memory(network: AutoencoderKL, batch: int, train_count: int, held_out_count: int) -> None:
    """Raise ValueError if the training does not fit into memory, with `train_count` and `held_out_count` pictures."""
    side = int(network.config["sample_size"])
    parameter_count = sum(parameter.numel() for parameter in network.parameters())
    # convolutions keep less than a U-Net's attention
    bytes_per_picture = memory_estimate.activation_bytes(dict(network.config), 1, side) / 2
    pixels = train_count * side * side, held_out_count * side * side
    remedy = "a smaller --batch or fewer pictures"
    memory_estimate.check_pixel_network(parameter_count, bytes_per_picture, batch, *pixels, remedy)


def _open_artwork(
    session: Session, network: AutoencoderKL, weights_hash: str, cache: Path | None, settings: AutoencoderSettings
) -> tuple[MaskedPictures, MaskedPictures]:
    session.bind_origin({"starting weights": weights_hash, "pictures": "the built-in artwork"})
    drawings = builtin_artwork.load_drawings(cache)
    _check_autoencoder_memory(network, settings.batch, settings.variants * len(drawings), len(drawings) // 10)
    with show_counts("drawing variants") as on_progress:
        return render_artwork(drawings, settings.seed, settings.variants, on_progress)


def _render_dataset(
    dataset: PictureDataset, network: AutoencoderKL, settings: AutoencoderSettings
) -> tuple[MaskedPictures, MaskedPictures]:
    train_files, held_out_files = split_pictures(dataset.pictures)
    side = int(network.config["sample_size"])
    seed = settings.seed
    pairs = number_views(train_files, flip=False)
    _check_autoencoder_memory(network, settings.batch, len(pairs), len(held_out_files))
    train_views = [render_view(train_files[index], number, side, seed, flip=False) for index, number in pairs]
    held_out_views = [render_view(picture, 0, side, seed, flip=False) for picture in held_out_files]
    return mask_pictures(train_views), mask_pictures(held_out_views)


def _write_autoencoder(
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
    figures = {"before": initial_metrics, "after": measure_autoencoder(network, held_out)}
    write_figures(session, {"held_out": len(held_out), **figures, "samples": trainer.samples})


def write_figures(session: Session, report: Mapping[str, object]) -> None:
    """Write a result's figures beside it as JSON, rounded to four decimals."""
    rounded_report = json.loads(json.dumps(report), parse_float=lambda number: float(np.round(float(number), 4)))
    (session.options.out / METRICS_FILE).write_text(json.dumps(rounded_report, indent=1) + "\n")


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


def decode_in_turn(pictures: Sequence[DatasetPicture], count: int) -> Iterator[Image.Image]:
    """Decode `count` pictures, one at a time: a camera's photos in full size do not fit into memory."""
    return (decode_picture(pictures[number % len(pictures)].path).pixels for number in range(count))


def train_upscaler(session: Session, sources: UpscalerSources) -> int:
    settings = session.resolve_settings(UpscalerSettings)
    start_file = {"": None, "embedded": BUILT_IN}.get(sources.weights, Path(sources.weights))
    network = load_upscaler(start_file) if start_file else build_upscaler(settings.seed)
    _check_upscaler_memory(network, settings, sources.picture_count)
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
    train_pairs = _build_pairs(large_pictures.training, sources.picture_count, autoencoder, settings.seed, CHART_SHARE)
    held_out_pairs = _build_pairs(
        large_pictures.held_out, large_pictures.held_out_count, autoencoder, settings.seed + 1, 0.0
    )
    trainer = UpscalerTrainer(network, train_pairs, settings)
    return session.train(
        trainer,
        UpscalerEvaluator(trainer, held_out_pairs),
        lambda: _write_upscaler(session, trainer, held_out_pairs, sources.data is None),
    )


def _check_upscaler_memory(network: nn.Module, settings: UpscalerSettings, picture_count: int) -> None:
    parameters = list(network.parameters())
    channels = sum(each.numel() for each in parameters if each.ndim == 1)  # of every layer and its activation
    memory_estimate.check_pixel_network(
        sum(each.numel() for each in parameters),
        (4 * channels + LOSS_BYTES_PER_PIXEL) * settings.crop**2,
        settings.batch,
        (picture_count + HELD_OUT_PICTURES) * LARGE_SIDE**2,
        HELD_OUT_PICTURES * LARGE_SIDE**2,
        "fewer --pictures",
    )


def _open_large_pictures(session: Session, sources: UpscalerSources, seed: int) -> LargePictures:
    rngs = np.random.default_rng([seed, 1]), np.random.default_rng([seed, 2])
    if sources.data is None:
        sides = split_drawings(builtin_artwork.load_drawings(sources.cache, LARGE_SIDE))
        counts = sources.picture_count, HELD_OUT_PICTURES
        training, held_out = (render_drawings(*arguments) for arguments in zip(sides, counts, rngs, strict=True))
        return LargePictures(training, held_out, HELD_OUT_PICTURES, "the built-in artwork")
    dataset = user_dataset.read_dataset(session, sources.data, require_captions=False)
    training_files, held_out_files = split_pictures(dataset.pictures)
    held_out_count = min(HELD_OUT_PICTURES, len(held_out_files))
    training = cut_squares(decode_in_turn(training_files, sources.picture_count), rngs[0])
    held_out = cut_squares(decode_in_turn(held_out_files, held_out_count), rngs[1])
    return LargePictures(training, held_out, held_out_count, dataset.fingerprint)


def _build_pairs(
    large: Iterator[np.ndarray], count: int, autoencoder: AutoencoderKL, seed: int, chart_share: float
) -> UpscalerPairs:
    with show_counts("scaling pictures down") as on_progress:
        return build_pairs(large, count, autoencoder, seed, chart_share, on_progress)


def _write_upscaler(session: Session, trainer: UpscalerTrainer, held_out: UpscalerPairs, is_flat: bool) -> None:
    """Write the averaged network in fp16 for spandrel, and its figures."""
    target = session.options.out / RESULT_FILE
    export_upscaler(trainer.average, target, flat=is_flat)
    metrics = measure_upscaler(load_upscaler(target), held_out)
    write_figures(session, {"held_out": len(held_out), **metrics, "samples": trainer.samples})


def train_judge(session: Session, cache: Path | None, widths: str | None) -> int:
    settings = session.resolve_settings(JudgeSettings, widths=widths)
    session.bind_origin({"pictures": "the built-in artwork"})
    pictures = builtin_artwork.load_drawings(cache)
    labels = collect_labels(pictures)
    stage_widths = parse_widths(settings.widths)
    stage_bytes = STAGE_VALUE_BYTES * sum(width * STAGE_PIXELS / 4**stage for stage, width in enumerate(stage_widths))
    memory_estimate.check_pixel_network(
        count_parameters(len(labels), stage_widths),
        stage_bytes,
        settings.batch,
        RENDERINGS_PER_DRAWING * len(pictures) * RENDERING_PIXELS,
    )
    trainer = JudgeTrainer(pictures, torch.tensor(Embedder()(labels)), settings, device=session.device)
    evaluator = JudgeEvaluator(trainer, held_back_pairs(pictures, 1, settings.seed))
    return session.train(trainer, evaluator, lambda: save_judge(evaluator.build_judge(), session.options.out))

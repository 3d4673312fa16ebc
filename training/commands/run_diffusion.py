"""Runs `darkroom train diffusion`, on the built-in artwork or on the user's pictures. Imports torch."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from PIL import Image
from torch import from_numpy

from engine.models.families.embedded import EMBEDDED_MODEL
from engine.models.family import SMALL_MODEL_SIZE
from engine.models.files.model_source import fingerprint_folder
from engine.output.previewer import choose_map_shape
from engine.preview_maps.latent_map import MODEL_MAP_FILE, LatentMap, LatentMapFit, write_map
from training.commands import builtin_artwork, user_dataset
from training.commands.builtin_artwork import Focus
from training.commands.progress import print_status
from training.commands.run_pixel_networks import find_autoencoder_folder, load_autoencoder
from training.commands.session import STAGING_FOLDER, Session
from training.core import memory_estimate
from training.core.learner import spread_rows
from training.diffusion.diffusion_trainer import (
    SCRATCH,
    DiffusionEvaluator,
    DiffusionSettings,
    DiffusionTrainer,
    add_text_embedding,
    build_network,
    fit_config,
    fit_latents,
    load_network,
)
from training.diffusion.latent_cache import LatentCache, select_evaluation_rows
from training.diffusion.models import (
    LoadedModel,
    find_model_folder,
    hash_contents,
    load_model,
    read_dtypes,
    write_model,
)
from training.diffusion.sampling import SHEET_PROMPTS, decode_latents
from training.pictures.variants import mix_fingerprint

# Muon's step size does not depend on the batch
DATASET_BATCH = 16
DATASET_RATE = 1e-4

POOLING_HEADS = 64  # attention heads with which diffusers pools the text for the time embedding


def train_on_artwork(session: Session, source: str, autoencoder: str, cache: Path | None, focus: Focus) -> int:
    settings = session.resolve_settings(DiffusionSettings)
    parts_model = _parts_model(source)
    weights = builtin_artwork.find_weights(parts_model)
    _check_size(weights, autoencoder, settings.batch)
    weights_text = _describe_weights(fingerprint_folder(weights), autoencoder)
    artwork_text = f"the built-in artwork, {mix_fingerprint()}"
    start = _describe_start(source, weights_text)
    session.bind_origin({"starting weights": start, "pictures": artwork_text, "focus": focus.describe()})
    vae, caption_encoder = builtin_artwork.load_encoders(weights)
    vae = load_autoencoder(autoencoder).eval() if autoencoder else vae
    for part in (vae, caption_encoder.encoder):
        torch.nn.Module.to(part, session.device)
    train_cache, validation_cache = builtin_artwork.open_variants(cache, (vae, caption_encoder), settings.seed, focus)
    scheduler = builtin_artwork.load_schedule(weights)
    unet = weights / "unet"
    network = build_network(unet, settings.seed) if source == SCRATCH else load_network(unet)
    trainer = _make_trainer(_fit_network(network, train_cache), train_cache, scheduler, settings, session.device)
    evaluator = DiffusionEvaluator(trainer, validation_cache, caption_encoder(SHEET_PROMPTS), vae, scheduler)

    def write_result() -> None:
        model = load_model(parts_model)
        model.pipeline.vae = vae
        _write_result(session, model, trainer, autoencoder)

    return session.train(trainer, evaluator, write_result)


def train_on_dataset(session: Session, source: str, autoencoder: str, data: Path, flip: bool) -> int:
    settings = session.resolve_settings(DiffusionSettings if source == SCRATCH else make_small_dataset_settings)
    parts_model = _parts_model(source)
    folder = find_model_folder(parts_model)
    if (folder / "unet").is_dir():  # otherwise `load_model` reports what is missing
        _check_size(folder, autoencoder, settings.batch)
    dataset = user_dataset.read_dataset(session, data)
    model = _load_parts(parts_model, autoencoder)
    start = _describe_start(source, model.fingerprint)
    session.bind_origin({"starting weights": start, "pictures": dataset.fingerprint, "--flip": str(flip)})
    scheduler = _load_schedule(model)
    train_cache = user_dataset.encode_dataset(session, dataset, model, side=model.side, seed=settings.seed, flip=flip)
    model.pipeline.unet = _fit_network(_make_network(model, source, settings.seed), train_cache)
    trainer = _make_trainer(model.pipeline.unet, train_cache, scheduler, settings, session.device)
    prompt_states = model.encode_captions(user_dataset.choose_prompts(dataset))
    evaluation_rows = select_evaluation_rows(train_cache, dataset, flip)
    parts = (evaluation_rows, prompt_states, model.pipeline.vae, scheduler)
    evaluator = DiffusionEvaluator(trainer, *parts, "v_mse_of_pictures")

    def write_result() -> None:
        _write_result(session, model, trainer, autoencoder)

    exit_code = session.train(trainer, evaluator, write_result, minutes=1.0)
    if exit_code == 0:
        print_status(f'Draw with it: darkroom imagine "{dataset.pictures[0].caption}" --model {session.options.out}')
    return exit_code


def _make_trainer(
    network: UNet2DConditionModel,
    train_cache: LatentCache,
    scheduler: DDIMScheduler,
    settings: DiffusionSettings,
    device: torch.device,
) -> DiffusionTrainer:
    torch.nn.Module.to(network, device)
    return DiffusionTrainer(network, train_cache, scheduler.alphas_cumprod, settings)


def _fit_network(network: UNet2DConditionModel, cache: LatentCache) -> UNet2DConditionModel:
    _, channels, side, _ = cache.latents.shape
    return fit_latents(network, channels, side)


def _check_size(weights: Path, autoencoder: str, batch: int) -> None:
    """Raise ValueError if the network does not fit into memory, or cannot draw the autoencoder's latents."""
    config: dict[str, Any] | None = None
    if autoencoder:
        config = memory_estimate.read_config(weights / "unet")
        own = _read_autoencoder_config(weights / "vae")
        other = _read_autoencoder_config(find_autoencoder_folder(autoencoder))
        pixels = config["sample_size"] << len(own["block_out_channels"])
        config = fit_config(config, other["latent_channels"], pixels >> len(other["block_out_channels"]))
    memory_estimate.check_fits(memory_estimate.estimate_diffusion(weights, batch, config))


def _read_autoencoder_config(folder: Path) -> dict[str, Any]:
    config = memory_estimate.read_config(folder, needs_sample_size=False)
    if not isinstance(config.get("latent_channels"), int):
        raise ValueError(f"{folder} holds no autoencoder of diffusers.")
    return config


def _load_parts(parts_model: str, autoencoder: str) -> LoadedModel:
    """Load a model, with the autoencoder of `autoencoder` if there is one. Raises ValueError."""
    model = load_model(parts_model)
    if autoencoder:
        model.pipeline.vae = load_autoencoder(autoencoder).eval()
        model = replace(model, fingerprint=_describe_weights(model.fingerprint, autoencoder))
    return model


def _parts_model(source: str) -> str:
    """Return the model of the other parts (autoencoder, text encoder, schedule): the embedded one for scratch."""
    return EMBEDDED_MODEL if source == SCRATCH else source


def _describe_start(source: str, fingerprint: str) -> str:
    return f"{SCRATCH} beside {fingerprint}" if source == SCRATCH else fingerprint


def _describe_weights(fingerprint: str, autoencoder: str) -> str:
    if not autoencoder:
        return fingerprint
    return f"{fingerprint} with the autoencoder {hash_contents(find_autoencoder_folder(autoencoder))}"


def _make_network(model: LoadedModel, source: str, seed: int) -> UNet2DConditionModel:
    if source == SCRATCH:
        return build_network(model.folder / "unet", seed)
    torch.manual_seed(seed)  # initial weights of the added layers
    network = model.pipeline.unet
    return add_text_embedding(network) if network.config.cross_attention_dim % POOLING_HEADS == 0 else network


def make_small_dataset_settings(**overrides: Any) -> DiffusionSettings:
    """Return settings for few pictures, seen often: small steps, so that the network forgets little."""
    values: dict[str, Any] = {"rate": DATASET_RATE, "batch": DATASET_BATCH, "warm": 20} | overrides
    return DiffusionSettings(**values)


def _load_schedule(model: LoadedModel) -> DDIMScheduler:
    config = model.pipeline.scheduler.config
    if config.prediction_type != "v_prediction":
        raise ValueError(
            "This model does not predict v, and only such models are trained here: use `darkroom train lora`."
        )
    return cast(DDIMScheduler, DDIMScheduler.from_config(config))


def _write_result(session: Session, model: LoadedModel, trainer: DiffusionTrainer, autoencoder: str) -> None:
    """Write the averaged network in fp16 with the model's other parts in their stored number formats.

    With another `autoencoder` the model's large decoder and preview map stay behind: they decode other latents. A small
    model without a map gets one.
    """
    model.pipeline.unet = trainer.average
    dtypes = {**read_dtypes(model.folder), "unet": torch.float16}
    decoder_source = None if autoencoder else model.folder
    write_model(model.pipeline, dtypes, session.options.out, session.folder / STAGING_FOLDER, decoder_source)
    if model.side <= SMALL_MODEL_SIZE and (autoencoder or not (model.folder / MODEL_MAP_FILE).is_file()):
        preview_map = fit_map_to_decoder(model.pipeline.vae.float(), trainer.cache.latents)
        write_map(session.options.out / MODEL_MAP_FILE, preview_map)


FIT_PICTURES = 512
BATCH = 32


def fit_map_to_decoder(autoencoder: AutoencoderKL, latents: np.ndarray) -> LatentMap:
    """Return the least-squares map from `latents` [n, c, h, w], scaled as the network has them, to decoded pixels.

    Uses `FIT_PICTURES` of them, evenly spread. Raises `numpy.linalg.LinAlgError` where they are not finite.
    """
    chosen = latents[spread_rows(len(latents), FIT_PICTURES)]
    fit: LatentMapFit | None = None
    for start in range(0, len(chosen), BATCH):
        batch = chosen[start : start + BATCH].astype(np.float32)
        pictures = decode_latents(autoencoder, from_numpy(batch))
        factor = pictures.shape[1] // batch.shape[2]
        reach, patch = choose_map_shape(pictures.shape[1], factor)
        fit = fit or LatentMapFit(batch.shape[1], reach, patch)
        for row, picture in zip(batch, pictures, strict=True):
            fit.add_picture(row, _reduce_picture(picture, patch / factor))
    assert fit is not None, "a training has pictures"
    return fit.solve()


def _reduce_picture(picture: np.ndarray, scale: float) -> np.ndarray:
    height, width, _ = picture.shape
    size = (round(width * scale), round(height * scale))
    return np.asarray(Image.fromarray(picture).resize(size, Image.Resampling.BOX), dtype=np.uint8)

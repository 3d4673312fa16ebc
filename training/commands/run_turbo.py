"""Runs `darkroom train turbo`: opens the model and the pictures, distils the turbo LoRA, and writes it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from peft.utils.save_and_load import get_peft_model_state_dict
from transformers.models.bert.modeling_bert import BertModel

from engine.models.families.embedded import EMBEDDED_MODEL, INTERVAL
from training.commands import builtin_artwork, user_dataset
from training.commands.progress import print_status
from training.commands.run_lora import FEW_PICTURES, FEW_PICTURES_SIDE, write_layers
from training.commands.session import Session
from training.core import memory_estimate
from training.diffusion.dataset_cache import select_evaluation_rows
from training.diffusion.latent_cache import LatentCache, load_caption_encoder
from training.diffusion.models import LoadedModel, find_model_folder, load_model
from training.diffusion.sampling import SHEET_PROMPTS
from training.diffusion.turbo_trainer import TurboEvaluator, TurboSettings, TurboTrainer, parse_interval
from training.pictures.variants import SIDE, mix_fingerprint

EVALUATE_EVERY_ROW = 16  # of the 1,024 held-out variants one in so many is evaluated
PARAMETERS_OF_LORA = 7  # the turbo LoRA has about so many times the parameters of one on the attention alone


@dataclass(frozen=True)
class _Pictures:
    """What a run learns from: latents to train on, latents to evaluate, captions of the sheet."""

    train_cache: LatentCache
    evaluation_cache: LatentCache
    captions: list[str]


def train_turbo(
    session: Session, source: str, data: Path | None, cache: Path | None, flip: bool, overrides: dict[str, Any]
) -> int:
    """Train and return the exit code. Raises ValueError or `JobRejected` with what is wrong."""

    def build_settings(**values: Any) -> TurboSettings:
        return _make_settings(source, values)

    settings = session.resolve_settings(build_settings, **overrides)
    folder = find_model_folder(source)
    if (folder / "unet").is_dir() and (folder / "vae").is_dir():  # otherwise `load_model` reports what is missing
        estimate = memory_estimate.estimate_lora(
            folder, settings.batch, PARAMETERS_OF_LORA * settings.rank, has_size_option=False
        )
        memory_estimate.check_fits(estimate)
    model = load_model(source)
    if data is None:
        pictures = _open_artwork(session, model, cache, settings.seed)
    else:
        pictures = _open_dataset(session, model, data, settings.seed, flip)
    scheduler = cast(DDIMScheduler, DDIMScheduler.from_config(model.pipeline.scheduler.config))
    network, autoencoder = (
        torch.nn.Module.to(part, session.device) for part in (model.pipeline.unet, model.pipeline.vae)
    )
    prompt_states = model.encode_captions(pictures.captions)
    trainer = TurboTrainer(network, pictures.train_cache, scheduler, settings)
    evaluator = TurboEvaluator(trainer, pictures.evaluation_cache, prompt_states, autoencoder, scheduler)
    exit_code = session.train(trainer, evaluator, lambda: _write_turbo(network, session.options.out), minutes=2.0)
    if exit_code == 0:
        print_status(f"Copy pytorch_lora_weights.safetensors to the folder turbo of the model {source}.")
    return exit_code


def _write_turbo(network: Any, folder: Path) -> None:
    """Write `pytorch_lora_weights.safetensors` in fp16, with PEFT's names: diffusers renames only the attention."""
    write_layers(network, {name: tensor.half() for name, tensor in get_peft_model_state_dict(network).items()}, folder)


def _make_settings(source: str, values: dict[str, Any]) -> TurboSettings:
    """Build the settings; the embedded model's teacher guides in the same steps as the model itself."""
    start, stop = INTERVAL if source == EMBEDDED_MODEL else (0, 1)
    values = {"interval": f"{start}-{stop}", **values}
    settings = TurboSettings(**values)
    parse_interval(settings.interval)
    return settings


def _open_artwork(session: Session, model: LoadedModel, cache: Path | None, seed: int) -> _Pictures:
    session.bind_origin({"model": model.fingerprint, "pictures": f"the built-in artwork, {mix_fingerprint()}"})
    if not isinstance(model.pipeline.text_encoder, BertModel) or model.side != SIDE:
        raise ValueError(
            "The built-in artwork is for models like the embedded one: give this one captioned pictures with --data."
        )
    vae = model.pipeline.vae
    caption_encoder = load_caption_encoder()
    for part in (vae, caption_encoder.encoder):
        torch.nn.Module.to(part, session.device)
    train_cache, held_out_cache = builtin_artwork.open_variants(cache, (vae, caption_encoder), seed)
    rows = slice(None, None, EVALUATE_EVERY_ROW)
    evaluation_cache = LatentCache(
        held_out_cache.latents[rows],
        held_out_cache.states[rows],
        held_out_cache.empty_states,
        held_out_cache.captions[rows],
    )
    return _Pictures(train_cache, evaluation_cache, list(SHEET_PROMPTS))


def _open_dataset(session: Session, model: LoadedModel, data: Path, seed: int, flip: bool) -> _Pictures:
    dataset = user_dataset.read_dataset(session, data)
    session.bind_origin({"model": model.fingerprint, "pictures": dataset.fingerprint, "--flip": str(flip)})
    train_cache = user_dataset.encode_dataset(session, dataset, model, side=model.side, seed=seed, flip=flip)
    captions = user_dataset.choose_prompts(dataset)[: FEW_PICTURES if model.side > FEW_PICTURES_SIDE else None]
    return _Pictures(train_cache, select_evaluation_rows(train_cache, dataset, flip), captions)

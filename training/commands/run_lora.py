"""Runs `darkroom train lora` and `turbo`: opens model and pictures, trains the LoRA, writes it, merges it (--merge)."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.training_utils import _collate_lora_metadata  # pyright: ignore[reportPrivateUsage] - the only writer
from diffusers.utils.state_dict_utils import convert_state_dict_to_diffusers
from peft.utils.save_and_load import get_peft_model_state_dict
from transformers.models.bert.modeling_bert import BertModel

from engine.models.families.embedded import EMBEDDED_MODEL, INTERVAL
from training.commands import builtin_artwork, user_dataset
from training.commands.progress import print_status
from training.commands.session import MERGED_FILE, STAGING_FOLDER, Session, read_json_object
from training.core import checkpoint, memory_estimate
from training.diffusion.latent_cache import LatentCache, load_caption_encoder, select_evaluation_rows
from training.diffusion.lora_trainer import LoraEvaluator, LoraSettings, LoraTrainer
from training.diffusion.models import INDEX_FILE, LoadedModel, find_model_folder, load_model, read_dtypes, write_model
from training.diffusion.sampling import SHEET_PROMPTS
from training.diffusion.turbo_trainer import TurboEvaluator, TurboSettings, TurboTrainer, parse_interval
from training.pictures.dataset import PictureDataset
from training.pictures.variants import SIDE, mix_fingerprint

# side in pixels above which a sample sheet has few pictures
FEW_PICTURES_SIDE = 128
FEW_PICTURES = 4


def train_lora(
    session: Session, source: str, data: Path, merge_folder: Path | None, flip: bool, overrides: dict[str, Any]
) -> int:
    """Train and return the exit code. Raises ValueError or `JobRejected` with what is wrong."""
    _check_merge_folder(session, merge_folder)
    _check_lora_memory(session, find_model_folder(source), overrides)
    dataset = user_dataset.read_dataset(session, data)
    model = load_model(source)

    def build_settings(**values: Any) -> LoraSettings:
        return _make_lora_settings(model, values)

    settings = session.resolve_settings(build_settings, **overrides)
    session.bind_origin({"model": model.fingerprint, "pictures": dataset.fingerprint, "--flip": str(flip)})
    trainer, evaluator = _make_lora_trainer(session, model, settings, dataset, flip)
    out = session.options.out
    exit_code = session.train(trainer, evaluator, lambda: write_lora(model.pipeline.unet, out), minutes=2.0)
    if exit_code == 0 and merge_folder is not None:
        _write_merged_model(session, model, trainer, merge_folder)
    return exit_code


def _check_lora_memory(session: Session, folder: Path, overrides: dict[str, Any]) -> None:
    given = session.options.setting_overrides | overrides
    values: dict[str, Any] = {"batch": LoraSettings.batch, "rank": LoraSettings.rank}
    values |= session.position["settings"] if session.position else {}
    values |= {name: value for name, value in given.items() if value is not None}
    if (folder / "unet").is_dir() and (folder / "vae").is_dir():  # otherwise `load_model` reports what is missing
        estimate = memory_estimate.estimate_lora(folder, values["batch"], values["rank"], values.get("size"))
        memory_estimate.check_fits(estimate)


def _make_lora_trainer(
    session: Session, model: LoadedModel, settings: LoraSettings, dataset: PictureDataset, flip: bool
) -> tuple[LoraTrainer, LoraEvaluator]:
    scheduler = cast(DDIMScheduler, DDIMScheduler.from_config(model.pipeline.scheduler.config))
    cache = user_dataset.encode_dataset(session, dataset, model, side=settings.size, seed=settings.seed, flip=flip)
    captions = user_dataset.choose_prompts(dataset)[: FEW_PICTURES if settings.size > FEW_PICTURES_SIDE else None]
    prompt_states = model.encode_captions(captions)
    network = torch.nn.Module.to(model.pipeline.unet, session.device)
    trainer = LoraTrainer(network, cache, scheduler, settings)
    evaluation_rows = select_evaluation_rows(cache, dataset, flip)
    return trainer, LoraEvaluator(trainer, evaluation_rows, prompt_states, model.pipeline.vae, scheduler)


def _make_lora_settings(model: LoadedModel, overrides: dict[str, Any]) -> LoraSettings:
    """Build the settings; defaults depend on the model and on the rank."""
    size_step = int(model.pipeline.vae_scale_factor) * 2 ** (len(model.pipeline.unet.config.block_out_channels) - 1)
    if (size := overrides.get("size", model.side)) % size_step:
        raise ValueError(f"--size {size} does not suit this model: it takes multiples of {size_step}.")
    values: dict[str, Any] = {"size": size, "alpha": float(overrides.get("rank", LoraSettings.rank))} | overrides
    return LoraSettings(**values)


def write_lora(network: Any, folder: Path) -> None:
    """Write `pytorch_lora_weights.safetensors` with diffusers, for `pipeline.load_lora_weights(folder)`."""
    write_layers(network, cast(Any, convert_state_dict_to_diffusers)(get_peft_model_state_dict(network)), folder)


def write_layers(network: Any, layers: dict[str, torch.Tensor], folder: Path) -> None:
    """Write the tensors of a network's LoRA, named as diffusers or PEFT names them."""
    StableDiffusionPipeline.save_lora_weights(
        str(folder),
        unet_lora_layers=cast(Any, layers),
        safe_serialization=True,
        **_collate_lora_metadata({"unet": network}),
    )


def _check_merge_folder(session: Session, merge_folder: Path | None) -> None:
    if merge_folder is None or not merge_folder.exists():
        return
    if str(merge_folder.resolve()) == _read_merge_record(session).get("folder"):
        return
    if not merge_folder.is_dir() or any(merge_folder.iterdir()):
        raise ValueError(f"--merge takes a new folder, and there is something at {merge_folder} already.")


def _write_merged_model(session: Session, model: LoadedModel, trainer: LoraTrainer, merge_folder: Path) -> None:
    merge_record = {"folder": str(merge_folder.resolve()), "steps": trainer.steps}
    if _read_merge_record(session) == merge_record and (merge_folder / INDEX_FILE).is_file():
        print_status(f"{merge_folder} already has this model with the LoRA merged.")
        return
    checkpoint.write_atomically(session.folder / MERGED_FILE, json.dumps(merge_record))
    network: Any = torch.nn.Module.to(trainer.network, "cpu")
    network.fuse_lora()
    network.unload_lora()
    with checkpoint.translate_write_errors(merge_folder):
        staging_folder = session.folder / STAGING_FOLDER
        write_model(model.pipeline, read_dtypes(model.folder), merge_folder, staging_folder, model.folder)
    checkpoint.make_readable(merge_folder)
    print_status(f"{merge_folder} is the model with the LoRA merged.")


def _read_merge_record(session: Session) -> dict[str, Any]:
    return read_json_object(session.folder / MERGED_FILE) if session.position else {}


EVALUATE_EVERY_ROW = 16  # of the 1,024 held-out variants one in so many is evaluated
PARAMETERS_OF_LORA = 7  # the turbo LoRA has about so many times the parameters of one on the attention alone


@dataclass(frozen=True)
class TurboPictures:
    """What a run learns from: latents to train on, latents to evaluate, captions of the sheet."""

    train_cache: LatentCache
    evaluation_cache: LatentCache
    captions: list[str]


def train_turbo(
    session: Session, source: str, data: Path | None, cache: Path | None, flip: bool, overrides: dict[str, Any]
) -> int:
    """Train and return the exit code. Raises ValueError or `JobRejected` with what is wrong."""

    def build_settings(**values: Any) -> TurboSettings:
        return _make_turbo_settings(source, values)

    settings = session.resolve_settings(build_settings, **overrides)
    folder = find_model_folder(source)
    if (folder / "unet").is_dir() and (folder / "vae").is_dir():  # otherwise `load_model` reports what is missing
        rank = PARAMETERS_OF_LORA * settings.rank
        estimate = memory_estimate.estimate_lora(folder, settings.batch, rank, has_size_option=False)
        memory_estimate.check_fits(estimate)
    model = load_model(source)
    if data is None:
        pictures = _open_artwork(session, model, cache, settings.seed)
    else:
        pictures = _open_dataset(session, model, data, settings.seed, flip)
    scheduler = cast(DDIMScheduler, DDIMScheduler.from_config(model.pipeline.scheduler.config))
    parts = (model.pipeline.unet, model.pipeline.vae)
    network, autoencoder = (torch.nn.Module.to(part, session.device) for part in parts)
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


def _make_turbo_settings(source: str, values: dict[str, Any]) -> TurboSettings:
    """Build the settings; the embedded model's teacher guides in the same steps as the model itself."""
    start, stop = INTERVAL if source == EMBEDDED_MODEL else (0, 1)
    values = {"interval": f"{start}-{stop}", **values}
    settings = TurboSettings(**values)
    parse_interval(settings.interval)
    return settings


def _open_artwork(session: Session, model: LoadedModel, cache: Path | None, seed: int) -> TurboPictures:
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
    latents, states, captions = held_out_cache.latents[rows], held_out_cache.states[rows], held_out_cache.captions[rows]
    evaluation_cache = LatentCache(latents, states, held_out_cache.empty_states, captions)
    return TurboPictures(train_cache, evaluation_cache, list(SHEET_PROMPTS))


def _open_dataset(session: Session, model: LoadedModel, data: Path, seed: int, flip: bool) -> TurboPictures:
    dataset = user_dataset.read_dataset(session, data)
    session.bind_origin({"model": model.fingerprint, "pictures": dataset.fingerprint, "--flip": str(flip)})
    train_cache = user_dataset.encode_dataset(session, dataset, model, side=model.side, seed=seed, flip=flip)
    captions = user_dataset.choose_prompts(dataset)[: FEW_PICTURES if model.side > FEW_PICTURES_SIDE else None]
    return TurboPictures(train_cache, select_evaluation_rows(train_cache, dataset, flip), captions)

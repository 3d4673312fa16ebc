"""Runs `darkroom train lora`: opens the model, trains the LoRA, writes it, and merges it with --merge."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.training_utils import _collate_lora_metadata  # pyright: ignore[reportPrivateUsage] - the only writer
from diffusers.utils.state_dict_utils import convert_state_dict_to_diffusers
from peft.utils.save_and_load import get_peft_model_state_dict

from training.commands import run_folder, user_dataset
from training.commands.progress import print_status
from training.commands.session import Session
from training.core import checkpoint, memory_estimate
from training.diffusion.dataset_cache import select_evaluation_rows
from training.diffusion.lora_trainer import LoraEvaluator, LoraSettings, LoraTrainer
from training.diffusion.models import INDEX_FILE, LoadedModel, find_model_folder, load_model, read_dtypes, write_model
from training.pictures.dataset import PictureDataset

# side in pixels above which a sample sheet has few pictures
FEW_PICTURES_SIDE = 128
FEW_PICTURES = 4


def train_lora(
    session: Session, source: str, data: Path, merge_folder: Path | None, flip: bool, overrides: dict[str, Any]
) -> int:
    """Train and return the exit code. Raises ValueError or `JobRejected` with what is wrong."""
    _check_merge_folder(session, merge_folder)
    _check_memory(session, find_model_folder(source), overrides)
    dataset = user_dataset.read_dataset(session, data)
    model = load_model(source)

    def build_settings(**values: Any) -> LoraSettings:
        return _make_settings(model, values)

    settings = session.resolve_settings(build_settings, **overrides)
    session.bind_origin({"model": model.fingerprint, "pictures": dataset.fingerprint, "--flip": str(flip)})
    trainer, evaluator = _make_trainer(session, model, settings, dataset, flip)
    exit_code = session.train(
        trainer, evaluator, lambda: write_lora(model.pipeline.unet, session.options.out), minutes=2.0
    )
    if exit_code == 0 and merge_folder is not None:
        _write_merged_model(session, model, trainer, merge_folder)
    return exit_code


def _check_memory(session: Session, folder: Path, overrides: dict[str, Any]) -> None:
    saved_settings: Mapping[str, Any] = session.position["settings"] if session.position else {}
    estimate_settings: dict[str, Any] = {
        "batch": LoraSettings.batch,
        "rank": LoraSettings.rank,
        **saved_settings,
        **{name: value for name, value in overrides.items() if value is not None},
    }
    if (folder / "unet").is_dir() and (folder / "vae").is_dir():  # otherwise `load_model` reports what is missing
        memory_estimate.check_fits(
            memory_estimate.estimate_lora(
                folder, estimate_settings["batch"], estimate_settings["rank"], estimate_settings.get("size")
            )
        )


def _make_trainer(
    session: Session, model: LoadedModel, settings: LoraSettings, dataset: PictureDataset, flip: bool
) -> tuple[LoraTrainer, LoraEvaluator]:
    scheduler = cast(DDIMScheduler, DDIMScheduler.from_config(model.pipeline.scheduler.config))
    cache = user_dataset.encode_dataset(session, dataset, model, side=settings.size, seed=settings.seed, flip=flip)
    captions = user_dataset.choose_prompts(dataset)[: FEW_PICTURES if settings.size > FEW_PICTURES_SIDE else None]
    prompt_states = model.encode_captions(captions)
    network = torch.nn.Module.to(model.pipeline.unet, session.device)
    trainer = LoraTrainer(network, cache, scheduler, settings)
    return trainer, LoraEvaluator(
        trainer, select_evaluation_rows(cache, dataset, flip), prompt_states, model.pipeline.vae, scheduler
    )


def _make_settings(model: LoadedModel, overrides: dict[str, Any]) -> LoraSettings:
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
    if (
        merge_folder is None
        or not merge_folder.exists()
        or str(merge_folder.resolve()) == _read_merge_record(session).get("folder")
    ):
        return
    if not merge_folder.is_dir() or any(merge_folder.iterdir()):
        raise ValueError(f"--merge takes a new folder, and there is something at {merge_folder} already.")


def _write_merged_model(session: Session, model: LoadedModel, trainer: LoraTrainer, merge_folder: Path) -> None:
    merge_record = {"folder": str(merge_folder.resolve()), "steps": trainer.steps}
    if _read_merge_record(session) == merge_record and (merge_folder / INDEX_FILE).is_file():
        print_status(f"{merge_folder} already has this model with the LoRA merged.")
        return
    checkpoint.write_atomically(session.folder / run_folder.MERGED_FILE, json.dumps(merge_record))
    network: Any = torch.nn.Module.to(trainer.network, "cpu")
    network.fuse_lora()
    network.unload_lora()
    with checkpoint.translate_write_errors(merge_folder):
        staging_folder = session.folder / run_folder.STAGING_FOLDER
        write_model(model.pipeline, read_dtypes(model.folder), merge_folder, staging_folder, model.folder)
    checkpoint.make_readable(merge_folder)
    print_status(f"{merge_folder} is the model with the LoRA merged.")


def _read_merge_record(session: Session) -> dict[str, Any]:
    return run_folder.read_json_object(session.folder / run_folder.MERGED_FILE) if session.position else {}

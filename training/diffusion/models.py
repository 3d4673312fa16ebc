"""Opens a complete model as a diffusers pipeline, and writes one as a folder in the diffusers layout.

It says which parts a model has and where they lie in a folder. It is independent of training.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from safetensors import SafetensorError, safe_open

from engine.contract import JobRejected
from engine.models.autoencoder.large_decoder import LARGE_DECODER_FOLDER
from engine.models.families.embedded import EMBEDDED_MODEL, build_pipeline
from engine.models.families.stable_diffusion import detect_guides
from engine.models.files.model_source import fingerprint_folder
from engine.models.library_logging import silence_libraries
from engine.models.loading.pipeline_loader import find_folder, load_training_pipeline
from engine.models.text_embedder import load_text_encoder
from engine.preview_maps.latent_map import MODEL_MAP_FILE
from engine.process.model_settings import WEIGHTS_FOLDER
from engine.process.settings import default_data

INDEX_FILE = "model_index.json"
PART_CONFIGS = {"unet": "config.json", "vae": "config.json", "scheduler": "scheduler_config.json"}
DTYPES = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32}


@dataclass(frozen=True)
class LoadedModel:
    """An open model: `folder` has its weights, `fingerprint` changes with them. `side` is in pixels."""

    pipeline: Any
    folder: Path
    fingerprint: str

    @property
    def side(self) -> int:
        return int(self.pipeline.unet.config.sample_size) * int(self.pipeline.vae_scale_factor)

    @torch.inference_mode()
    def encode_captions(self, captions: list[str]) -> torch.Tensor:
        """Return the pipeline's token states, fp32 [n, tokens, width]."""
        with silence_libraries():  # the caller reports cut captions once, for all of them
            return self.pipeline.encode_prompt(captions, torch.device("cpu"), 1, False)[0].float()

    def count_truncated(self, captions: list[str]) -> int:
        """Count the captions that are longer than the text encoder's limit."""
        max_tokens = int(self.pipeline.tokenizer.model_max_length)
        with silence_libraries():
            return sum(len(tokens) > max_tokens for tokens in self.pipeline.tokenizer(captions)["input_ids"])


def find_model_folder(source: str, models: Path | None = None) -> Path:
    """Find the folder of `embedded`, a path, a name in the data folder's `models`, or a hub name.

    Raises `JobRejected`.
    """
    if source == EMBEDDED_MODEL:
        return WEIGHTS_FOLDER
    local_folder = (models or default_data() / "models") / source
    return local_folder if local_folder.is_dir() else find_folder(source)


def load_model(source: str) -> LoadedModel:
    """Open a model. Raises `JobRejected` if it is not a Stable Diffusion model in safetensors."""
    folder = find_model_folder(source)
    if (folder / INDEX_FILE).is_file():
        pipeline = load_training_pipeline(folder, source)
        if not isinstance(pipeline, StableDiffusionPipeline) or detect_guides(pipeline) != "rows":
            sentence = f"{source} is not a Stable Diffusion 1.x or 2.x model: only these can be trained."
            raise JobRejected(sentence, "model")
        return LoadedModel(pipeline, folder, fingerprint_folder(folder))
    refuse_incomplete(source, folder)
    with refuse_unreadable(f"{source} is no model that diffusers can load from safetensors."):
        pipeline = build_pipeline(folder)  # only our parts, as in `engine/weights`
    _, pipeline.text_encoder = load_text_encoder(with_pooler=True)
    return LoadedModel(pipeline, folder, fingerprint_folder(folder))


@contextmanager
def refuse_unreadable(sentence: str) -> Generator[None]:
    """Raise ValueError with a sentence if diffusers cannot load what is loaded meanwhile."""
    try:
        yield
    except (OSError, ValueError, TypeError, KeyError, RuntimeError, SafetensorError) as error:
        raise ValueError(sentence) from error


def refuse_incomplete(source: str, folder: Path) -> None:
    """Raise ValueError if a folder lacks one of our parts or has it only as a pickle."""
    missing_parts = [part for part, config in PART_CONFIGS.items() if not (folder / part / config).is_file()]
    if missing_parts:
        missing = " and no ".join(missing_parts)
        raise ValueError(f"{source} is no model in the layout of diffusers: it has no {missing}.")
    pickled_parts = [part for part in ("unet", "vae") if not any((folder / part).glob("*.safetensors"))]
    if pickled_parts:
        parts = " and its ".join(pickled_parts)
        raise ValueError(f"{source} has no safetensors for its {parts}, and other formats are not loaded.")


def hash_contents(path: Path) -> str:
    """Hash a file, or the configurations and weights directly in a folder, as twelve hex digits."""
    files = [*path.glob("*.json"), *path.glob("*.safetensors")] if path.is_dir() else [path]
    digest = hashlib.sha256()
    for file_path in sorted(files):
        with file_path.open("rb") as file:
            name = file_path.name if path.is_dir() else ""
            digest.update(f"{name} {hashlib.file_digest(file, 'sha256').hexdigest()}".encode())
    return digest.hexdigest()[:12]


def write_model(
    pipeline: Any, dtypes: dict[str, torch.dtype], folder: Path, temp_folder: Path, source_folder: Path | None = None
) -> None:
    """Write a complete folder for `StableDiffusionPipeline.from_pretrained`; casts the parts to `dtypes`.

    `source_folder` is of a model with the same autoencoder: its large decoder and its preview map come along.

    Writes to `temp_folder`, moves part by part into place, and the index last: without it the folder does not count as
    a model.
    """
    shutil.rmtree(temp_folder, ignore_errors=True)
    for part, dtype in dtypes.items():
        torch.nn.Module.to(getattr(pipeline, part), dtype)
    with silence_libraries():
        pipeline.save_pretrained(temp_folder, safe_serialization=True)
    for config in [temp_folder / INDEX_FILE, *temp_folder.glob("*/config.json")]:
        config_values = json.loads(config.read_text())
        config_values.pop("_name_or_path", None)  # a path of this machine
        config.write_text(json.dumps(config_values, indent=2) + "\n")
    if source_folder is not None and (source_folder / LARGE_DECODER_FOLDER).is_dir():
        shutil.copytree(source_folder / LARGE_DECODER_FOLDER, temp_folder / LARGE_DECODER_FOLDER)
    if source_folder is not None and (source_folder / MODEL_MAP_FILE).is_file():
        shutil.copy(source_folder / MODEL_MAP_FILE, temp_folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / INDEX_FILE).unlink(missing_ok=True)
    for part in sorted(temp_folder.iterdir(), key=lambda path: path.name == INDEX_FILE):
        if (folder / part.name).is_dir():
            shutil.rmtree(folder / part.name)
        part.replace(folder / part.name)
    temp_folder.rmdir()


def read_dtypes(folder: Path) -> dict[str, torch.dtype]:
    """Return the number format of each part of a folder, read from its first tensor."""
    dtypes: dict[str, torch.dtype] = {}
    for part in ("unet", "vae", "text_encoder"):
        for path in sorted((folder / part).glob("*.safetensors"))[:1]:
            with cast(Any, safe_open)(path, framework="pt") as file:
                for first_tensor in list(file.keys())[:1]:
                    dtypes[part] = DTYPES.get(file.get_slice(first_tensor).get_dtype(), torch.float32)
    return dtypes

"""Opens a complete model as a diffusers pipeline, and writes one as a folder in the diffusers layout.

Knows which parts a model has and where a folder holds them; knows nothing of training.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from safetensors import SafetensorError, safe_open

from engine.config import default_data
from engine.families.consistency import guides_of
from engine.families.embedded import NAME, WEIGHTS, assemble, load_text_encoder
from engine.families.opening import folder_of, open_pipeline
from engine.families.quiet import quiet
from engine.families.revision import fingerprint
from engine.unfit import Unfit

INDEX = "model_index.json"
PARTS = {"unet": "config.json", "vae": "config.json", "scheduler": "scheduler_config.json"}
DTYPES = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32}


@dataclass(frozen=True)
class Model:
    """An open model: `folder` has its weights, `fingerprint` changes with them. `side` is in pixels."""

    pipeline: Any
    folder: Path
    fingerprint: str

    @property
    def side(self) -> int:
        return int(self.pipeline.unet.config.sample_size) * int(self.pipeline.vae_scale_factor)

    @torch.inference_mode()
    def states(self, captions: list[str]) -> torch.Tensor:
        """Return the pipeline's token states, fp32 [n, tokens, width]."""
        with quiet():  # the caller reports cut captions once, for all of them
            return self.pipeline.encode_prompt(captions, torch.device("cpu"), 1, False)[0].float()

    def cut(self, captions: list[str]) -> int:
        """Count the captions that are longer than the text encoder's limit."""
        most = int(self.pipeline.tokenizer.model_max_length)
        with quiet():
            return sum(len(tokens) > most for tokens in self.pipeline.tokenizer(captions)["input_ids"])


def model_folder(source: str, models: Path | None = None) -> Path:
    """Find the folder of `embedded`, a path, a name in the data folder's `models`, or a hub name. Raises `Unfit`."""
    if source == NAME:
        return WEIGHTS
    own = (models or default_data() / "models") / source
    return own if own.is_dir() else folder_of(source)


def open_model(source: str) -> Model:
    """Open a model. Raises `Unfit` if it is not a Stable Diffusion model in safetensors."""
    folder = model_folder(source)
    if (folder / INDEX).is_file():
        pipeline = open_pipeline(folder, source)
        if not isinstance(pipeline, StableDiffusionPipeline) or guides_of(pipeline) != "rows":
            raise Unfit(f"{source} is not a Stable Diffusion 1.x or 2.x model: only these can be trained.", "model")
        return Model(pipeline, folder, fingerprint(folder))
    refuse_incomplete(source, folder)
    try:
        pipeline = assemble(folder)  # only our parts, as in `engine/weights`
    except (OSError, ValueError, TypeError, KeyError, RuntimeError, SafetensorError) as error:
        raise ValueError(f"{source} is no model that diffusers can load from safetensors.") from error
    _, pipeline.text_encoder = load_text_encoder(pooler=True)
    return Model(pipeline, folder, fingerprint(folder))


def refuse_incomplete(source: str, folder: Path) -> None:
    """Raise ValueError if a folder lacks one of our parts or has it only as a pickle."""
    missing = [part for part, config in PARTS.items() if not (folder / part / config).is_file()]
    if missing:
        raise ValueError(f"{source} is no model in the layout of diffusers: it has no {' and no '.join(missing)}.")
    pickled = [part for part in ("unet", "vae") if not any((folder / part).glob("*.safetensors"))]
    if pickled:
        raise ValueError(
            f"{source} has no safetensors for its {' and its '.join(pickled)}, and other formats are not loaded."
        )


def contents(path: Path) -> str:
    """Hash a file, or the configurations and weights directly in a folder, as twelve hex digits."""
    found = [*path.glob("*.json"), *path.glob("*.safetensors")] if path.is_dir() else [path]
    digest = hashlib.sha256()
    for one in sorted(found):
        with one.open("rb") as file:
            digest.update(
                f"{one.name if path.is_dir() else ''} {hashlib.file_digest(file, 'sha256').hexdigest()}".encode()
            )
    return digest.hexdigest()[:12]


def write_model(pipeline: Any, dtypes: dict[str, torch.dtype], folder: Path, scratch: Path) -> None:
    """Write a complete folder for `StableDiffusionPipeline.from_pretrained`; casts the parts to `dtypes`.

    Writes to `scratch`, moves part by part into place, and the index last: without it the folder does not count as a
    model.
    """
    shutil.rmtree(scratch, ignore_errors=True)
    for part, dtype in dtypes.items():
        torch.nn.Module.to(getattr(pipeline, part), dtype)
    with quiet():
        pipeline.save_pretrained(scratch, safe_serialization=True)
    for config in [scratch / INDEX, *scratch.glob("*/config.json")]:
        said = json.loads(config.read_text())
        said.pop("_name_or_path", None)  # a path of this machine
        config.write_text(json.dumps(said, indent=2) + "\n")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / INDEX).unlink(missing_ok=True)
    for part in sorted(scratch.iterdir(), key=lambda path: path.name == INDEX):
        if (folder / part.name).is_dir():
            shutil.rmtree(folder / part.name)
        part.replace(folder / part.name)
    scratch.rmdir()


def stored(folder: Path) -> dict[str, torch.dtype]:
    """Return the number format of each part of a folder, read from its first tensor."""
    found: dict[str, torch.dtype] = {}
    for part in ("unet", "vae", "text_encoder"):
        for path in sorted((folder / part).glob("*.safetensors"))[:1]:
            with safe_open(path, framework="pt") as file:
                for first in list(file.keys())[:1]:
                    found[part] = DTYPES.get(file.get_slice(first).get_dtype(), torch.float32)
    return found

"""Loading a model by name or path. One file a family; nothing else in the engine knows a model by name."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from engine.unfit import Unfit

if TYPE_CHECKING:
    import torch

    from engine.families.family import Family
    from engine.super_resolver import SuperResolver


def load(
    name_or_path: str, data: Path, *, device: torch.device | str = "cpu", resolver: SuperResolver | None = None
) -> Family:
    """`embedded`, a folder, a folder's name under `<data>/models`, or a name on the model hub. Raises `Unfit`.

    `resolver` enlarges what a small model draws.
    """
    from engine.families.embedded import NAME, load_embedded

    if name_or_path == NAME:
        return load_embedded(device, resolver=resolver)
    own = data / "models" / name_or_path
    return load_folder(str(own) if own.is_dir() else name_or_path, model_name(name_or_path), device, resolver)


def load_folder(
    source: str, name: str, device: torch.device | str = "cpu", resolver: SuperResolver | None = None
) -> Family:
    """From a folder, or a name on the model hub. Raises `Unfit` where that is no model in safetensors."""
    from engine.families.opening import folder_of, open_pipeline
    from engine.families.pipelined import fingerprint
    from engine.families.stable_diffusion import StableDiffusion
    from engine.families.table import BY_PIPELINE

    folder = folder_of(source)
    pipeline, revision = open_pipeline(folder, name), fingerprint(folder)
    kind = type(pipeline).__name__
    if kind == "StableDiffusionPipeline":
        return StableDiffusion(pipeline, name, revision, device, resolver=resolver)
    if kind in BY_PIPELINE:
        return BY_PIPELINE[kind](pipeline, name, revision, device)
    raise Unfit(f"The model {name} is a {kind}, which has no family here.", "model")


def model_name(name_or_path: str) -> str:
    """A name as `engine.job.Name` allows it: the last part of a path or hub name."""
    last = name_or_path.replace("\\", "/").rstrip("/").rsplit("/", 1)[-1]
    name = re.sub(r"[^A-Za-z0-9._-]", "-", last).lstrip("._-")[:64]
    if not name:
        raise Unfit(f"A model needs a name of letters and digits; {name_or_path!r} has none.", "worker")
    return name

"""Loads a model by name or path as its model family, one file a family."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from engine.families.family import Family
    from engine.families.opening import Opened, Told
    from engine.families.source import Source
    from engine.super_resolver import SuperResolver


def load(
    name_or_path: str, data: Path, *, device: torch.device | str = "cpu", resolver: SuperResolver | None = None,
    told: Told | None = None, large: int | None = None,
) -> Family:  # fmt: skip
    """Load a model: `embedded`, a folder, a safetensors file, either's name in `<data>/models`, or a hub name.

    `resolver` upscales a small model's pictures. `told` receives the progress. `large`: as in `Choice`. Raises `Unfit`.
    """
    from engine.families.embedded import NAME, load_embedded
    from engine.families.pipelined import Pipelined
    from engine.families.source import find

    if name_or_path == NAME:
        family: Family = load_embedded(device, resolver=resolver)
    else:
        family = load_source(find(name_or_path, data), device, resolver, told, large)
    if isinstance(family, Pipelined):
        family.lora_folder = data / "loras"
    return family


def load_folder(
    source: str, name: str, device: torch.device | str = "cpu", resolver: SuperResolver | None = None
) -> Family:
    """Load a folder, or a hub name. Raises `Unfit` where it is no model in safetensors."""
    from engine.families.opening import folder_of
    from engine.families.source import Source

    return load_source(Source(name, folder_of(source)), device, resolver)


def load_source(
    source: Source, device: torch.device | str = "cpu", resolver: SuperResolver | None = None,
    told: Told | None = None, large: int | None = None,
) -> Family:  # fmt: skip
    """Load a located model. Raises `Unfit` where it is no model in safetensors."""
    import torch

    from engine.families.checkpoint import open_file
    from engine.families.formats import LARGE, Choice
    from engine.families.opening import open_folder
    from engine.families.pipelined import Pipelined

    choice = Choice(torch.device(device), LARGE if large is None else large)
    opened = (open_file if source.is_file else open_folder)(source.path, source.name, choice, told)
    family = _family(opened, source.name, source.fingerprint(), device, resolver)
    if isinstance(family, Pipelined) and opened.held is not None:
        family.hold_one(opened.held, opened.reopen)
    return family


def _family(
    opened: Opened, name: str, revision: str, device: torch.device | str, resolver: SuperResolver | None
) -> Family:
    from engine.families.coalesced import Coalesced
    from engine.families.consistency import as_stable_diffusion
    from engine.families.stable_diffusion import StableDiffusion
    from engine.families.table import BY_PIPELINE

    kind = type(opened.pipeline).__name__
    if kind == "LatentConsistencyModelPipeline":
        return StableDiffusion(as_stable_diffusion(opened.pipeline), name, revision, device)
    if kind == "StableDiffusionPipeline":
        return StableDiffusion(opened.pipeline, name, revision, device, resolver=resolver)
    if kind in BY_PIPELINE:
        return BY_PIPELINE[kind](opened.pipeline, name, revision, device)
    return Coalesced(opened.pipeline, name, revision, device)


def model_name(name_or_path: str) -> str:
    """Return a name that `engine.job.Name` allows: the last part of a path or hub name, without a file's suffix."""
    from engine.families.source import model_name

    return model_name(name_or_path)

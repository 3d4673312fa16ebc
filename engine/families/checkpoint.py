"""Opens one safetensors file in the layout of the original programs, through diffusers' conversion.

The pipeline class and its parts come from the folder of configurations beside the file. Without one they are fetched
from the hub, by what diffusers recognises in the file.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers.loaders import single_file_utils
from huggingface_hub import snapshot_download
from safetensors import SafetensorError, safe_open

from engine.families.casting import read_as
from engine.families.family import TORCH
from engine.families.formats import Choice, Formats
from engine.families.opening import WRONG, Opened, Told, checked, one_by_one, unloadable, unused
from engine.families.parts import STORED, Part, classes, pipeline_class, read_index, refuse_pickles
from engine.families.quiet import quiet
from engine.families.source import configs_beside
from engine.job import Dtype
from engine.strands.shell import NETWORKS
from engine.unfit import Unfit

TEXTS = ("cond_stage_model.", "conditioner.", "text_encoders.", "text_encoder.")
AUTOENCODER = ("first_stage_model.", "vae.")
CONFIGS = ["*.json", "**/*.json", "*.txt", "**/*.txt", "**/*.model"]


def open_file(path: Path, name: str, choice: Choice, told: Told | None = None) -> Opened:
    """Open a file as a pipeline. Raises `Unfit` where it is no model that can be opened."""
    _sizes(path, name)  # refuse a bad file before anything is fetched
    configs = configurations(path, name)
    index = read_index(configs, name)
    found, pipeline = weighed_file(path, name, index), index["_class_name"]
    formats = choice.formats(pipeline, found)

    def reopen(dtype: Dtype) -> Any:
        return _open(path, name, configs, choice.formats_in(dtype, pipeline, found), None)

    return Opened(_open(path, name, configs, formats, told), formats.held, reopen)


def _open(path: Path, name: str, configs: Path, formats: Formats, told: Told | None) -> Any:
    index = read_index(configs, name)
    kind, kinds, found = pipeline_class(index, name), classes(index, name), weighed_file(path, name, index)
    refuse_pickles(configs, kinds)

    def load(part: Part) -> Any:
        how = {"config": str(configs), "subfolder": part.name, "local_files_only": True}
        dtype, group = TORCH[formats.of[part.name]], "vae" if part.name == "vae" else "network"
        own = dtype != TORCH[part.stored]
        weights = read_as([path], dtype, wanted=lambda key: _group(key) == group) if own else str(path)
        with quiet():
            return kinds[part.name].from_single_file(weights, torch_dtype=dtype, **how)

    try:
        own = [part for part in found if hasattr(kinds.get(part.name), "from_single_file")]
        loaded = one_by_one(own, load, told) | unused(index)
        texts = TORCH[formats.of.get("text_encoder", "float32")]
        with quiet():
            pipeline = kind.from_single_file(
                str(path), config=str(configs), dtype=texts, local_files_only=True, **loaded
            )
    except single_file_utils.SingleFileComponentError as error:
        raise Unfit(f"The file of the model {name} lacks a part: its network or a text encoder.", "model") from error
    except WRONG as error:
        raise unloadable(name) from error
    return checked(pipeline, name)


def configurations(path: Path, name: str) -> Path:
    """Return the folder beside the file, or the one fetched from the hub, once a process. Raises `Unfit`."""
    if beside := configs_beside(path):
        return beside
    stat = path.stat()
    return _fetched(path, name, stat.st_size, stat.st_mtime_ns)


def weighed_file(path: Path, name: str, index: Mapping[str, Any] | None = None) -> list[Part]:
    """Return the sizes of network, autoencoder and text encoders. `index`: of its configurations. Raises `Unfit`."""
    configs = configs_beside(path)
    known = index or (read_index(configs, name) if configs else {})
    network = next((each for each in NETWORKS if each in known), NETWORKS[0])
    names = {"network": network, "vae": "vae", "text_encoder": "text_encoder"}
    return [
        Part(names[group], None, sum(count.values()), STORED.get(count.most_common(1)[0][0], "float32"))
        for group, count in _sizes(path, name).items()
    ]


def _sizes(path: Path, name: str) -> dict[str, Counter[str]]:
    """Count the parameters of each number format in every group. Raises `Unfit`."""
    sizes: dict[str, Counter[str]] = {}
    try:
        with safe_open(path, framework="pt") as file:
            for key in file.keys():  # noqa: SIM118 - not a mapping
                tensor = file.get_slice(key)
                count = sizes.setdefault(_group(key), Counter())
                count[tensor.get_dtype()] += torch.Size(tensor.get_shape()).numel()
    except (OSError, SafetensorError) as error:
        raise Unfit(f"The model {name} cannot be read: its file is no safetensors.", "model") from error
    return sizes


def _group(key: str) -> str:
    if key.startswith(TEXTS):
        return "text_encoder"
    return "vae" if key.startswith(AUTOENCODER) else "network"


@functools.lru_cache(maxsize=64)
def _fetched(path: Path, name: str, size: int, changed: int) -> Path:
    """Fetch the configurations that diffusers uses for such a file; cached for this `size` and modification time."""
    try:
        known = single_file_utils.load_single_file_checkpoint(str(path), local_files_only=True)
        repository = single_file_utils.fetch_diffusers_config(known)["pretrained_model_name_or_path"]
        return Path(snapshot_download(repository, allow_patterns=CONFIGS))
    except WRONG as error:
        where = f"in a folder {path.stem} beside the file"
        sentence = f"The model {name} needs its configurations, {where}, since they cannot be fetched from the hub."
        raise Unfit(sentence, "model") from error

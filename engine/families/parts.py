"""Inspects a diffusers folder: its parts, their classes, and the sizes of their weights.

Reads configurations and safetensors headers; loads no weights and runs no code from the folder. Refuses unusable models
before anything is loaded.
"""

from __future__ import annotations

import importlib
import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from safetensors import SafetensorError, safe_open

from engine.families.revision import UNUSED, refuse_odd_parts
from engine.job import Dtype
from engine.unfit import Unfit

LIBRARIES = ("diffusers", "transformers")
PICKS = (
    "AutoTokenizer",
    "AutoProcessor",
    "AutoImageProcessor",
    "AutoFeatureExtractor",
)  # classes without weights that pick another class
PICKLES = ("*.bin", "*.ckpt", "*.pt", "*.pth")
STORED: dict[str, Dtype] = {"BF16": "bfloat16", "F16": "float16"}


@dataclass(frozen=True)
class Part:
    """A part with weights: its class, parameter count, and the number format of most parameters."""

    name: str
    kind: Any  # the class
    parameters: int
    stored: Dtype
    variant: str | None = None  # infix of its file names, as in `model.fp16.safetensors`
    files: tuple[Path, ...] = ()  # the weights


def read_index(folder: Path, name: str) -> dict[str, Any]:
    """Return the folder's `model_index.json`. Raises `Unfit`."""
    try:
        index = json.loads((folder / "model_index.json").read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise Unfit(f"The model {name} has no model_index.json that can be read.", "model") from error
    if isinstance(index, dict) and isinstance(index.get("_class_name"), list):
        raise Unfit(f"The model {name} brings its own code, which is not run.", "model")
    if not isinstance(index, dict) or not isinstance(index.get("_class_name"), str):
        raise Unfit(f"The model {name} does not say which pipeline it is (model_index.json).", "model")
    refuse_odd_parts(index, name)
    return index


def pipeline_class(index: dict[str, Any], name: str) -> Any:
    """Return the pipeline's class. Raises `Unfit` where diffusers has no such pipeline."""
    kind = _member("diffusers", index["_class_name"])
    if not isinstance(kind, type) or not issubclass(kind, DiffusionPipeline):
        raise Unfit(f"The model {name} is of a kind that diffusers does not know.", "model")
    return kind


def classes(index: dict[str, Any], name: str) -> dict[str, Any]:
    """Return the class of every used part. Raises `Unfit` for a foreign class, or one with uninspected weights."""
    found: dict[str, Any] = {}
    for part, of in index.items():
        if part in UNUSED or not isinstance(of, list) or of == [None, None]:
            continue
        library, kind = (str(each) for each in of) if len(of) == 2 else ("", "")
        known = _member(library, kind) if library in LIBRARIES else None
        if not isinstance(known, type):
            where = f"{library}.{kind}"[:80]
            raise Unfit(
                f"The {part} of the model {name} is {where}, which is not part of diffusers or transformers.", "model"
            )
        if not _is_plain(known):
            raise Unfit(f"The {part} of the model {name} is a {kind[:80]}, which cannot be a part here.", "model")
        found[part] = known
    return found


def parts(folder: Path, kinds: dict[str, Any]) -> list[Part]:
    """Return the parts with weights. Raises `Unfit` where weights are missing or not in safetensors."""
    found = (_part(folder / name, kind) for name, kind in kinds.items())
    return [part for part in found if part is not None]


def refuse_pickles(folder: Path, kinds: Mapping[str, Any]) -> None:
    """Refuse pickles in folders whose weights are not inspected. Raises `Unfit`."""
    for name in kinds:
        if any(each for pattern in PICKLES for each in (folder / name).glob(pattern)):
            why = "which can run code when it is opened: take it away, or convert it to safetensors"
            raise Unfit(f"The folder {name} of the model's configurations holds a pickle, {why}.", "model")


def counted(files: list[Path]) -> tuple[int, Dtype]:
    """Return the files' parameter count and most common number format. Raises `SafetensorError` or OSError."""
    formats: Counter[str] = Counter()
    for path in files:
        with safe_open(path, framework="pt") as file:
            for key in file.keys():  # noqa: SIM118 - not a mapping
                tensor = file.get_slice(key)
                formats[tensor.get_dtype()] += torch.Size(tensor.get_shape()).numel()
    most = formats.most_common(1)[0][0] if formats else ""
    return sum(formats.values()), STORED.get(most, "float32")


def _is_plain(kind: type) -> bool:
    """Whether it is one network, which is inspected, or has no weights: no pipeline, and no auto class but `PICKS`."""
    mixins = (transformers.ProcessorMixin, transformers.FeatureExtractionMixin, transformers.ImageProcessingMixin)
    without = (SchedulerMixin, transformers.PreTrainedTokenizerBase, *mixins)
    return issubclass(kind, (torch.nn.Module, *without)) or kind.__name__ in PICKS


def _member(library: str, name: str) -> Any:
    return getattr(importlib.import_module(library), name, None)


def _part(folder: Path, kind: Any) -> Part | None:
    if not issubclass(kind, torch.nn.Module):
        return None
    _refuse_detours(folder)
    files, variant = _files(folder)
    try:
        return Part(folder.name, kind, *counted(files), variant, tuple(files))
    except (OSError, SafetensorError) as error:
        raise Unfit(
            f"The weights of the model's {folder.name} cannot be read: they are no safetensors.", "model"
        ) from error


def _refuse_detours(folder: Path) -> None:
    """Refuse configurations that make transformers open other weights than the inspected ones, even a pickle."""
    try:
        config = json.loads((folder / "config.json").read_bytes())
    except (OSError, ValueError, RecursionError):
        config = None  # reported when the part is loaded
    if (folder / "adapter_config.json").exists() or (isinstance(config, dict) and "transformers_weights" in config):
        raise Unfit(f"The {folder.name} of the model names weights besides its own, which are not opened.", "model")


def _files(folder: Path) -> tuple[list[Path], str | None]:
    """Return the weight files: those of an index, else the one of the first variant."""
    found = sorted(folder.glob("*.safetensors"))
    if indexed := sorted(folder.glob("*.safetensors.index*.json"), key=lambda path: len(path.name)):
        shards = [_shards(folder, each) for each in indexed]  # check all: the library chooses one
        return shards[0], _variant(indexed[0].name.replace(".safetensors.index", ""))
    if found:
        first = min(found, key=lambda path: path.name.count("."))
        return [first], _variant(first.name.removesuffix(".safetensors"))
    pickled = [each for pattern in PICKLES for each in folder.glob(pattern)]
    why = "only as a pickle, which can run code when it is opened" if pickled else "not at all"
    raise Unfit(f"The model holds the weights of its {folder.name} {why}: convert them to safetensors.", "model")


def _variant(name: str) -> str | None:
    """Return `fp16` for `model.fp16` and `model.fp16.json`."""
    return name.removesuffix(".json").partition(".")[2] or None


def _shards(folder: Path, index: Path) -> list[Path]:
    try:
        names = {str(each) for each in json.loads(index.read_bytes())["weight_map"].values()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise Unfit(f"The list of the weights of the model's {folder.name} cannot be read.", "model") from error
    if not names:
        raise Unfit(f"The list of the weights of the model's {folder.name} names no file.", "model")
    for name in sorted(names):
        if "/" in name or "\\" in name or not name.endswith(".safetensors") or not (folder / name).is_file():
            raise Unfit(f"The model lacks {name[:100]}, a file of the weights of its {folder.name}.", "model")
    return [folder / name for name in sorted(names)]

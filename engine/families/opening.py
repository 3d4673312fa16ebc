"""Loads a diffusers folder part by part as its pipeline; runs no code from the folder.

Only safetensors: a pickle can run code when it is opened. The number format of each part is chosen before any is
loaded.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError

from engine.families.casting import read_as
from engine.families.family import TORCH
from engine.families.formats import Choice, Formats, stored_formats
from engine.families.parts import Part, classes, parts, pipeline_class, read_index
from engine.families.quiet import quiet
from engine.families.revision import UNUSED
from engine.families.source import find
from engine.job import Dtype
from engine.unfit import Unfit

Told = Callable[[float], None]  # takes the loaded fraction; may raise, to stop the loading
WRONG = (
    OSError, ValueError, TypeError, LookupError, RuntimeError, AttributeError, ImportError, ArithmeticError,
    SafetensorError, StrictDataclassError,
)  # fmt: skip


def folder_of(source: str) -> Path:
    """Return a folder, or fetch a hub name into one. Raises `Unfit`."""
    return Path(source) if Path(source).is_dir() else find(source, Path()).path


@dataclass(frozen=True)
class Opened:
    """`held`: the number format of a large model. `reopen` loads its pipeline in another one."""

    pipeline: Any
    held: Dtype | None
    reopen: Callable[[Dtype], Any]


def open_pipeline(folder: Path, name: str) -> Any:
    """Load a folder's pipeline for training. Raises `Unfit` where it is no such model in safetensors."""
    return _open(folder, name, stored_formats(weighed(folder, name)), None)


def open_folder(folder: Path, name: str, choice: Choice, told: Told | None = None) -> Opened:
    """Load a folder's pipeline for generation. Raises `Unfit` where it is no such model in safetensors."""
    found, pipeline = weighed(folder, name), read_index(folder, name)["_class_name"]
    formats = choice.formats(pipeline, found)

    def reopen(dtype: Dtype) -> Any:
        return _open(folder, name, choice.formats_in(dtype, pipeline, found), None)

    return Opened(_open(folder, name, formats, told), formats.held, reopen)


def _open(folder: Path, name: str, formats: Formats, told: Told | None) -> Any:
    index = read_index(folder, name)
    kind, found = pipeline_class(index, name), weighed(folder, name)
    loaded = one_by_one(found, lambda part: _part(folder, part, TORCH[formats.of[part.name]], name), told)
    try:
        with quiet():
            pipeline = kind.from_pretrained(
                str(folder), use_safetensors=True, local_files_only=True, **loaded, **unused(index)
            )
    except WRONG as error:
        raise unloadable(name) from error
    return checked(pipeline, name)


def weighed(folder: Path, name: str) -> list[Part]:
    """Return the parts of a folder that have weights. Raises `Unfit` where anything is wrong with them."""
    index = read_index(folder, name)
    pipeline_class(index, name)
    return parts(folder, classes(index, name))


def one_by_one(found: Sequence[Part], load: Callable[[Part], Any], told: Told | None) -> dict[str, Any]:
    """Load every part, by name; report progress before each, and after the last."""
    loaded: dict[str, Any] = {}
    whole, done = max(1, sum(part.parameters for part in found)), 0
    for part in found:
        if told is not None:
            told(done / whole)
        loaded[part.name] = load(part)
        done += part.parameters
    if told is not None:
        told(1.0)
    return loaded


def unused(index: Mapping[str, Any]) -> dict[str, Any]:
    """Return the parts that we do not use, as the pipeline's arguments: None."""
    without: dict[str, Any] = {part: None for part in UNUSED if part in index}
    return without | {"requires_safety_checker": False} if "safety_checker" in index else without


def _part(folder: Path, part: Part, dtype: torch.dtype, name: str) -> Any:
    cast = part.files if dtype != TORCH[part.stored] else ()
    kind = part.kind if dtype == torch.float32 and not cast else careful(part.kind, dtype, cast)
    try:
        with quiet():
            module = kind.from_pretrained(
                str(folder / part.name), dtype=dtype, variant=part.variant, use_safetensors=True, local_files_only=True
            )
    except WRONG as error:
        why = f"its {part.name} is damaged"
        raise Unfit(f"The model {name} is not a model that can be loaded: {why}.", "model") from error
    module.__class__ = part.kind
    return module


def careful(kind: Any, wanted: torch.dtype, cast: Sequence[Path] = ()) -> Any:
    """Return the class as a subclass that leaves torch's default dtype alone while it is built.

    Both libraries change that default for the whole process, while another thread may be drawing noise with it. `cast`:
    files in another format, read a slice at a time.
    """

    class OfDiffusers(kind):
        @classmethod
        def _set_default_torch_dtype(cls, dtype: torch.dtype) -> torch.dtype:
            return torch.get_default_dtype()

        @classmethod
        def _load_pretrained_model(cls, model: Any, state_dict: Any, *rest: Any, **named: Any) -> Any:
            if cast:
                sharded = state_dict is None
                state_dict = read_as(cast, wanted, _exact(model))
                if not sharded:
                    model._fix_state_dict_keys_on_load(state_dict)
            return super()._load_pretrained_model(model, state_dict, *rest, **named)

    class OfTransformers(kind):
        def __init__(self, *given: Any, **named: Any) -> None:
            super().__init__(*given, **named)
            for parameter in self.parameters():  # no memory yet; weights take the dtype of these
                parameter.data = parameter.data.to(wanted)

        @classmethod
        def get_init_context(cls, dtype: torch.dtype, *rest: Any, **named: Any) -> Any:
            return super().get_init_context(torch.get_default_dtype(), *rest, **named)

        @staticmethod
        def _load_pretrained_model(model: Any, state_dict: Any, *rest: Any, **named: Any) -> Any:
            read = read_as(cast, wanted, _exact(model)) if cast else state_dict
            return kind._load_pretrained_model(model, read, *rest, **named)

    made = OfDiffusers if hasattr(kind, "_set_default_torch_dtype") else OfTransformers
    made.__name__, made.__qualname__, made.__module__ = kind.__name__, kind.__qualname__, kind.__module__
    return made


def _exact(model: Any) -> set[str]:
    """Return name fragments of weights that the library keeps in float32."""
    names = ("_keep_in_fp32_modules", "_keep_in_fp32_modules_strict")
    return {one for name in names for one in getattr(model, name, None) or ()}


def unloadable(name: str) -> Unfit:
    return Unfit(f"The model {name} is not a model that can be loaded.", "model")


def checked(pipeline: Any, name: str) -> Any:
    """Turn off progress bars. Raises `Unfit` where the pipeline needs more than a prompt."""
    _refuse_other_inputs(pipeline, name)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def _refuse_other_inputs(pipeline: Any, name: str) -> None:
    """Refuse inpainting and depth networks: they also take a picture and a mask."""
    if getattr(pipeline, "unet", None) is None or getattr(pipeline, "vae", None) is None:
        return
    network = pipeline.unet.config
    if not network.in_channels == network.out_channels == pipeline.vae.config.latent_channels:
        raise Unfit(
            f"The model {name} needs more than a prompt (inpainting, depth …), which is not supported.", "model"
        )

"""LoRAs: their files, which fit a model, and copies of its networks with LoRAs in them (Hu et al. 2021).

A model's own folder may hold one more, `turbo/`, which only that model has.
"""

from __future__ import annotations

import copy
import hashlib
import logging
import re
import warnings
from collections import OrderedDict
from collections.abc import Generator, Hashable, Iterable, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from diffusers.utils.state_dict_utils import convert_unet_state_dict_to_peft
from safetensors import SafetensorError

from engine.contract import TURBO_LORA, JobRejected, Lora
from engine.device.memory import is_out_of_memory
from engine.models.files.added_kind import AddedEntry, AddedKind, cache_while_unchanged, log_once
from engine.models.files.pipeline_parts import read_names
from engine.models.library_logging import silence_libraries
from engine.models.network.pipeline_offload import copy_without_offload, find_offload, offload_like, remove_hooks
from engine.models.quantization import find_compute_dtype, find_weight_shape

DEFAULT_FILE_NAME = "pytorch_lora_weights.safetensors"  # diffusers' name, preferred among several files
FULL_HASH_BYTES = 128 * 2**20

log = logging.getLogger(__name__)


class LoraFile(NamedTuple):
    """One LoRA file; `revision` changes with its weights."""

    name: str
    path: Path
    revision: str


def find_loras(folder: Path | None, model_folder: Path | None = None) -> list[LoraFile]:
    """Return every usable LoRA by name, the model's own first; log the others."""
    if model_folder is None or not has_turbo(model_folder):
        return LORA_KIND.find_all(folder)
    names = LORA_KIND.list_names(folder)
    other_names = [name for name in names if name.lower() != TURBO_LORA]  # prompts name LoRAs in any case
    if len(other_names) < len(names):
        log_once(folder, f"the LoRA {TURBO_LORA} in {folder} is left out for models that have their own")
    return [*_TURBO_KIND.find_all(model_folder, [TURBO_LORA]), *LORA_KIND.find_all(folder, other_names)]


def has_turbo(model_folder: Path | None) -> bool:
    """Whether the model has a turbo LoRA of its own."""
    return model_folder is not None and (model_folder / TURBO_LORA / DEFAULT_FILE_NAME).is_file()


def find_lora(folder: Path | None, name: str, model_folder: Path | None = None, revision: str = "") -> LoraFile:
    """Return the LoRA of this name: the model's own before one in the folder of LoRAs. Raises `JobRejected`."""
    if name == TURBO_LORA and has_turbo(model_folder):
        return _TURBO_KIND.find(model_folder, name, revision)
    return LORA_KIND.find(folder, name, revision)


def _read_lora(entry: AddedEntry) -> LoraFile | None:
    weights = entry.list_weights()
    if len(weights) > 1:
        weights = [path for path in weights if path.name == DEFAULT_FILE_NAME]
        if not weights:
            raise entry.reject(f"has several files of weights, and none is called {DEFAULT_FILE_NAME}")
    entry.check_links(weights)
    return LoraFile(entry.name, weights[0], _hash_weights(weights[0])) if weights else None


@cache_while_unchanged
def _hash_weights(path: Path) -> str:
    """Return twelve hex digits over the weights; over 128 MiB only the two ends are hashed."""
    size = path.stat().st_size
    digest = hashlib.sha256(f"{size}".encode())
    with path.open("rb") as file:
        if size > FULL_HASH_BYTES:
            digest.update(file.read(FULL_HASH_BYTES // 2))
            file.seek(-FULL_HASH_BYTES // 2, 2)
        digest.update(file.read())
    return digest.hexdigest()[:12]


LORA_KIND = AddedKind("LoRA", _read_lora)
_TURBO_KIND = AddedKind("LoRA", _read_lora, forms=("folder",))  # in a model's own folder


_MATRIX_KEY = re.compile(r"^(.+)\.lora_([AB])\.(?:\w+\.)?weight$")


def is_compatible(pipeline: Any, network_name: str, lora: LoraFile) -> bool:
    """Whether the LoRA fits; logs why not."""
    try:
        with lora_loading_context():
            matrices = _read_matrices(pipeline, lora)
        mismatch = _find_mismatch(getattr(pipeline, network_name), _select_part(matrices, network_name))
    except Exception as error:  # untrusted files, many conversions: any error is possible
        mismatch = str(error).partition("\n")[0] or type(error).__name__
    if mismatch:
        log.warning("left out: the LoRA %s does not fit the model: %s", lora.name, mismatch)
    return not mismatch


def _read_matrices(pipeline: Any, lora: LoraFile) -> dict[str, torch.Tensor]:
    result: Any = pipeline.lora_state_dict(
        str(lora.path.parent),
        weight_name=lora.path.name,
        use_safetensors=True,
        local_files_only=True,
        **({"unet_config": pipeline.unet.config} if hasattr(pipeline, "unet") else {}),
    )
    state_dict: dict[str, torch.Tensor] = cast(Any, result)[0] if isinstance(result, tuple) else result
    parts = tuple(f"{part}." for part in pipeline._lora_loadable_modules)
    matrices = {name: value for name, value in state_dict.items() if name.startswith(parts)}
    if not matrices or not all("lora" in name for name in state_dict):
        raise ValueError("it is no LoRA of such a model")
    return matrices


def _select_part(matrices: dict[str, torch.Tensor], part: str) -> dict[str, torch.Tensor]:
    prefix = f"{part}."
    own = {name.removeprefix(prefix): value for name, value in matrices.items() if name.startswith(prefix)}
    return own if any("lora_A" in name for name in own) else cast(Any, convert_unet_state_dict_to_peft)(own)


def _find_mismatch(network: Any, matrices: dict[str, torch.Tensor]) -> str:
    """Return the first mismatch; empty: none. W [out, in, …] becomes W + B [out, r]·A [r, in, …]."""
    layers = dict(network.named_modules())
    for name, matrix in matrices.items():
        match = _MATRIX_KEY.match(name)
        if match is None:
            continue  # a scale or a bias
        shape = find_weight_shape(layers.get(match[1]))
        if shape is None:
            return f"there is no {match[1]}"
        fits_layer = matrix.shape[1:] == shape[1:] if match[2] == "A" else matrix.shape[0] == shape[0]
        if not fits_layer:
            return f"{name} has the shape {list(matrix.shape)}"
    return ""


MAX_LORAS = 256  # announced LoRAs, the limit of `engine.contract.ModelProfile`
MAX_COPIES = 6  # copies share the model's weights; only the LoRAs take memory

LoraWeights = dict[LoraFile, float]


class LoraCollection:
    """The LoRAs in `folder` for one pipeline, and the one in its `model_folder`. None: there is no such folder.

    PEFT is imported only when one is used.
    """

    def __init__(self, pipeline: Any, network_name: str) -> None:
        self.folder: Path | None = None
        self.model_folder: Path | None = None
        self._pipeline = pipeline
        self._network_name = network_name
        self._copies: OrderedDict[Hashable, LoraPipeline] = OrderedDict()
        self._compatible_revisions: dict[str, bool] = {}  # by revision
        self._resolved_weights: dict[tuple[Lora, ...], LoraWeights] = {}

    def list_compatible(self) -> tuple[Lora, ...]:
        """Return all that fit this model, at weight 1. Each file is checked once."""
        if not is_peft_available() or not hasattr(self._pipeline, "lora_state_dict"):
            return ()
        files = find_loras(self.folder, self.model_folder)
        compatible_files = [file for file in files if self._is_compatible(file)]
        return tuple(Lora(file.name, 1.0, file.revision) for file in compatible_files[:MAX_LORAS])

    def _is_compatible(self, file: LoraFile) -> bool | None:
        """Whether it fits; None while that is unknown, while a large network is reloaded."""
        if (
            file.revision not in self._compatible_revisions
            and getattr(self._pipeline, self._network_name, None) is not None
        ):
            self._compatible_revisions[file.revision] = is_compatible(self._pipeline, self._network_name, file)
        return self._compatible_revisions.get(file.revision)

    def resolve(self, loras: tuple[Lora, ...]) -> tuple[Lora, ...]:
        """Return the same with revisions. Raises `JobRejected` where one is missing, unfit or of another revision."""
        weights: LoraWeights = {}
        for lora in loras:
            file = find_lora(self.folder, lora.name, self.model_folder, lora.revision)
            if is_peft_available() and (not count_layers(file) or self._is_compatible(file) is False):
                raise JobRejected(f"The LoRA {lora.name} does not fit this model.", "model")
            weights[file] = weights.get(file, 0.0) + lora.weight
        resolved = tuple(Lora(file.name, weight, file.revision) for file, weight in weights.items())
        self._resolved_weights = {**dict(list(self._resolved_weights.items())[1 - MAX_LORAS :]), resolved: weights}
        return resolved

    def apply(self, loras: tuple[Lora, ...], copy_key: Hashable, net: Any) -> Any:
        """Return the pipeline with `loras` in its text encoders and its network `net`. Raises `JobRejected`.

        There is one copy for each `copy_key`; it is switched only when its LoRAs change.
        """
        if loras not in self._resolved_weights:
            loras = self.resolve(loras)
        lora_pipeline = self._copies.get(copy_key)
        if lora_pipeline is None or lora_pipeline.net is not net:
            lora_pipeline = self._copies[copy_key] = LoraPipeline(self._pipeline, self._network_name, net)
        self._copies.move_to_end(copy_key)
        while len(self._copies) > MAX_COPIES:
            self._copies.popitem(last=False)
        return lora_pipeline.set_loras(self._resolved_weights[loras])

    def apply_to_text_encoders(self, loras: tuple[Lora, ...], net: Any) -> Any:
        """Return the pipeline with `loras` in its text encoders: a copy that has them, else a new one around `net`."""
        weights = self._resolved_weights.get(loras, {})
        copy_keys = [
            copy_key
            for copy_key, lora_pipeline in self._copies.items()
            if isinstance(copy_key, str) and weights and lora_pipeline.has_loras(weights)
        ]
        copy_key = copy_keys[-1] if copy_keys else "texts"
        return self.apply(loras, copy_key, self._copies[copy_key].net if copy_keys else net)

    def release(self) -> None:
        """Drop all copies, and so the networks whose weights they share."""
        self._copies.clear()


LORAS_PER_COPY = 8  # LoRAs in one copy; beyond that it is remade, which costs no memory and little time

_LAYER_KEY = re.compile(r"lora(_B|_up|\.up|_linear_layer\.up)\b.*\.weight$")  # one for each changed layer


class LoraPipeline:
    """A copy of a pipeline with LoRAs in its network `net` and its text encoders. `pipeline` itself stays unchanged."""

    def __init__(self, pipeline: Any, network_name: str, net: Any) -> None:
        if not is_peft_available():
            raise JobRejected("LoRAs need the package peft, which this worker lacks.", "worker")
        if not hasattr(pipeline, "load_lora_weights"):
            raise JobRejected(f"LoRAs cannot be added to a {type(pipeline).__name__}.", "model")
        self.net = net
        self._original = pipeline
        self._network_name = network_name
        self._reset()

    def set_loras(self, weights: Mapping[LoraFile, float]) -> Any:
        """Return the pipeline with exactly these LoRAs at these weights, which add up. Raises `JobRejected`."""
        if tuple(weights.items()) == self._active_weights:
            return self.pipeline
        if len(self._loaded_revisions | {lora.revision for lora in weights}) > LORAS_PER_COPY:
            self._reset()
        with lora_loading_context(), self._in_host_memory():
            for lora in weights:
                if lora.revision not in self._loaded_revisions:
                    self._load_lora(lora)
            adapter_weights: dict[str, float] = {}
            for lora, weight in weights.items():  # the same file under two names adds up
                adapter_weights[_make_adapter_name(lora)] = adapter_weights.get(_make_adapter_name(lora), 0.0) + weight
            self.pipeline.set_adapters(list(adapter_weights), list(adapter_weights.values()))
        self._active_weights = tuple(weights.items())
        return self.pipeline

    @contextmanager
    def _in_host_memory(self) -> Generator[None]:
        """Change the copies without hooks of offloading, which know only the layers of before.

        On a processor a copy's weights stay mapped from the files of its offloaded original.
        """
        for each, _ in self._copied_modules:
            remove_hooks(each)
        yield
        for each, original in self._copied_modules:
            settings = find_offload(original)
            if settings is not None and settings.device.type != "cpu":
                offload_like(each, original)

    def has_loras(self, loras: Iterable[LoraFile]) -> bool:
        """Whether all of these are loaded."""
        return all(lora.revision in self._loaded_revisions for lora in loras)

    def _reset(self) -> None:
        self.pipeline = copy.copy(self._original)
        self._loaded_revisions: set[str] = set()
        self._active_weights: tuple[tuple[LoraFile, float], ...] = ()
        self._copied_modules: list[tuple[Any, Any]] = []  # (copy, original)
        for name in getattr(self._original, "_lora_loadable_modules", ()):
            part = self.net if name == self._network_name else getattr(self._original, name, None)
            if isinstance(part, torch.nn.Module):
                part_copy: Any = copy_without_offload(part)
                vars(self.pipeline)[name] = part_copy
                self._copied_modules.append((part_copy, part))

    def _load_lora(self, lora: LoraFile) -> None:
        adapter = _make_adapter_name(lora)
        layer_count = count_layers(lora)
        try:
            self.pipeline.load_lora_weights(
                str(lora.path.parent),
                weight_name=lora.path.name,
                adapter_name=adapter,
                use_safetensors=True,
                local_files_only=True,
            )
        except Exception as error:  # untrusted files, many conversions: any error is possible
            self._reset()
            if is_out_of_memory(error):
                raise
            raise _reject_lora(lora, str(error)) from error
        layers = (layer for copied, _ in self._copied_modules for layer in copied.modules())
        fitting_count = sum(adapter in getattr(layer, "lora_A", ()) for layer in layers)
        if fitting_count < max(1, layer_count):
            self._reset()
            raise _reject_lora(lora, f"only {fitting_count} of its {layer_count} layers fit")
        for each, original in self._copied_modules:
            _place_lora_weights(each.eval().requires_grad_(False), original)
        self._loaded_revisions.add(lora.revision)


def is_peft_available() -> bool:
    """Whether PEFT is installed: without it diffusers reads no LoRA."""
    return find_spec("peft") is not None


def _place_lora_weights(module: Any, original: Any) -> None:
    """Move the LoRAs' weights to the original's device and number format; the shared ones, quantised or not, stay."""
    device = next(original.parameters()).device
    dtype = find_compute_dtype(original)
    for name, parameter in module.named_parameters():
        if "lora_" in name:
            parameter.data = parameter.data.to(device, dtype)


def _make_adapter_name(lora: LoraFile) -> str:
    """Return PEFT's name for it, which may not contain a dot."""
    return f"of_{lora.revision}"


def count_layers(lora: LoraFile) -> int:
    """Return how many layers its file changes. Raises `JobRejected` where it is unreadable."""
    try:
        return sum(_LAYER_KEY.search(name) is not None for name in read_names(lora.path))
    except (OSError, SafetensorError) as error:
        raise JobRejected(f"The LoRA {lora.name} cannot be read as safetensors.", "worker") from error


def _reject_lora(lora: LoraFile, reason: str) -> JobRejected:
    log.info("the LoRA %s does not fit: %s", lora.name, reason)
    return JobRejected(f"The LoRA {lora.name} does not fit this model.", "model")


@contextmanager
def lora_loading_context() -> Generator[None]:
    """Load outside of inference mode, whose tensors cannot be used elsewhere, and without library warnings."""
    with torch.inference_mode(False), silence_libraries(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT warns of a second LoRA in one network
        yield

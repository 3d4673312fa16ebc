"""Autoencoders in a folder: `NAME/` as diffusers writes it, or `NAME.safetensors` in any layout that diffusers reads.

Loads no weights. Configurations and headers are bounded and checked before anything takes memory.
"""

from __future__ import annotations

import json
import math
import re
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any, NamedTuple, cast

import msgspec
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from msgspec import Meta
from safetensors import SafetensorError

from engine.contract import JobRejected, ModelPart
from engine.device.memory import is_out_of_memory
from engine.models.files.added_kind import AddedEntry, AddedKind, cache_while_unchanged, reject_added
from engine.models.files.model_source import combine_fingerprints, fingerprint_file
from engine.models.files.pipeline_parts import read_header, read_names
from engine.models.files.tensor_reader import read_tensors
from engine.models.library_logging import silence_libraries

NOUN = "autoencoder"
WEIGHTS_NAME = "diffusion_pytorch_model"  # and what follows: a variant, the number of a part
MAX_CONFIG_BYTES = 64 * 2**10
MAX_PARAMETERS = 1_000_000_000
MAX_TENSORS = 20_000
AUTOENCODER_CLASS = "AutoencoderKL"
_PREFIX = re.compile(r"^(?:first_stage_model|vae)\.")
_OWN_KEY = re.compile(r"^(?:encoder|decoder|quant_conv|post_quant_conv)\.")
_LEVEL = re.compile(r"^decoder\.up(?:_blocks)?\.(\d{1,2})\.")

Width = Annotated[int, Meta(ge=1, le=4096)]
Scale = Annotated[float, Meta(ge=-1e3, le=1e3)]
ChannelScales = Annotated[tuple[Scale, ...], Meta(max_length=256)]


class AutoencoderConfig(msgspec.Struct, forbid_unknown_fields=False):
    """The fields of `config.json` that memory or latents depend on, with diffusers' defaults."""

    class_name: Annotated[str, Meta(max_length=64)] = msgspec.field(default=AUTOENCODER_CLASS, name="_class_name")
    latent_channels: Annotated[int, Meta(ge=1, le=256)] = 4
    block_out_channels: Annotated[tuple[Width, ...], Meta(min_length=1, max_length=8)] = (64,)
    layers_per_block: Annotated[int, Meta(ge=1, le=8)] = 1
    scaling_factor: Annotated[float, Meta(gt=0, le=1e3)] = 0.18215
    shift_factor: Scale | None = None
    latents_mean: ChannelScales | None = None
    latents_std: ChannelScales | None = None


class LatentLayout(NamedTuple):
    """What a header tells: channels of the latents, levels (each but one doubles the sides), and parameters."""

    channels: int
    levels: int
    parameters: int


class AutoencoderFile(NamedTuple):
    """One autoencoder. `config` is None for a single file: it takes the configuration of the model's own."""

    name: str
    path: Path
    files: tuple[Path, ...]  # the weights
    revision: str  # changes with weights and configuration
    layout: LatentLayout
    config: AutoencoderConfig | None


def reject_autoencoder(name: str, reason: str) -> JobRejected:
    return reject_added(NOUN, name, reason)


def _read_autoencoder(entry: AddedEntry) -> AutoencoderFile | None:
    files = _choose_weights(entry.list_weights(f"{WEIGHTS_NAME}*"))
    if not files:
        return None
    entry.check_links(files)
    content = entry.read_config(MAX_CONFIG_BYTES) if entry.is_folder else b""
    inspected = [_inspect(path) for path in files]
    revision = combine_fingerprints(*(revision for revision, _ in inspected), content.hex())
    layout = _join_layouts(entry.name, [layout for _, layout in inspected])
    config = _decode_config(entry, content) if entry.is_folder else None
    return AutoencoderFile(entry.name, entry.path, tuple(files), revision, layout, config)


def _choose_weights(files: list[Path]) -> list[Path]:
    """Return one set of weights: those without a variant first."""
    plain = [path for path in files if path.stem == WEIGHTS_NAME]
    return plain or [path for path in files if "-of-" in path.name] or files[:1]


def _decode_config(entry: AddedEntry, content: bytes) -> AutoencoderConfig:
    try:
        return msgspec.json.decode(content, type=AutoencoderConfig)
    except (ValueError, msgspec.MsgspecError, RecursionError) as error:
        raise entry.reject_config() from error


@cache_while_unchanged
def _inspect(path: Path) -> tuple[str, LatentLayout]:
    """Return the fingerprint and what the header tells, -1 for what it does not."""
    channels = levels = -1
    parameters = 0
    for key, shape in _read_shapes(path).items():
        if key == "decoder.conv_in.weight" and len(shape) == 4:
            channels = shape[1]
        if match := _LEVEL.match(key):
            levels = max(levels, int(match[1]) + 1)
        parameters += shape.numel()
    return fingerprint_file(path), LatentLayout(channels, levels, parameters)


def _read_shapes(path: Path) -> Mapping[str, torch.Size]:
    if len(read_names(path)) > MAX_TENSORS:
        raise reject_autoencoder(path.stem, "has too many tensors")
    shapes = {_PREFIX.sub("", name): each.shape for name, each in read_header(path).items()}
    return {name: shape for name, shape in shapes.items() if _OWN_KEY.match(name)}


def _join_layouts(name: str, layouts: list[LatentLayout]) -> LatentLayout:
    """Return the layout of weights in several files. Raises `JobRejected` for what is no autoencoder."""
    channels, levels, parameters = (
        fold(each) for fold, each in zip((max, max, sum), zip(*layouts, strict=True), strict=True)
    )
    if channels < 1 or levels < 1 or not 1 <= parameters <= MAX_PARAMETERS:
        raise reject_autoencoder(name, "is no autoencoder of at most a billion parameters")
    return LatentLayout(channels, levels, parameters)


AUTOENCODER_KIND = AddedKind(NOUN, _read_autoencoder)


MAX_ANNOUNCED = 32  # the limit of `engine.contract.ModelProfile`
MAX_LOADED = 2  # autoencoders of one model beside its own; beyond that the one used longest ago is dropped

LOAD_ERRORS = (
    OSError,
    ValueError,
    TypeError,
    LookupError,
    RuntimeError,
    AttributeError,
    ArithmeticError,
    SafetensorError,
)

Key = tuple[ModelPart, torch.dtype]


class AutoencoderCollection:
    """The autoencoders in `folder` for one model, whose own one is `own`. None: there is no such folder.

    Any thread may call it.
    """

    def __init__(self, own: Any, model_name: str) -> None:
        self.folder: Path | None = None
        self._own_config: dict[str, Any] = dict(own.config)
        self._own_class = type(own).__name__
        self._own_parameters = sum(each.numel() for each in own.parameters())
        self._model_name = model_name
        self._loaded: OrderedDict[Key, Any] = OrderedDict()
        self._lock = threading.Lock()

    def list_fitting(self) -> tuple[ModelPart, ...]:
        """Return all that fit this model."""
        files = AUTOENCODER_KIND.find_all(self.folder) if self._own_class == AUTOENCODER_CLASS else []
        return AUTOENCODER_KIND.list_fitting(files, self.find_mismatch)[:MAX_ANNOUNCED]

    def find_mismatch(self, file: AutoencoderFile) -> str:
        """Return why a file does not fit, as the end of a sentence; empty: it fits."""
        class_name = AUTOENCODER_CLASS if file.config is None else file.config.class_name
        if self._own_class != AUTOENCODER_CLASS or class_name != AUTOENCODER_CLASS:
            return f"{self._model_name} has {self._own_class}, and only {AUTOENCODER_CLASS} can be replaced, by another"
        own_channels = self._own_config["latent_channels"]
        own_levels = len(self._own_config["block_out_channels"])
        if file.layout.channels != own_channels:
            return f"its latents have {file.layout.channels} channels, and those of {self._model_name} {own_channels}"
        if file.layout.levels != own_levels:
            return f"its latents have another size than those of {self._model_name}"
        if file.config is None:
            is_same = file.layout.parameters == self._own_parameters
            return "" if is_same else "it is built otherwise than the model's own: give it as a folder with config.json"
        fields = ("scaling_factor", "shift_factor", "latents_mean", "latents_std")
        if not all(_is_close(getattr(file.config, field), self._own_config.get(field)) for field in fields):
            own = self._own_config.get("scaling_factor")
            other = file.config.scaling_factor
            return f"its latents are scaled or shifted otherwise (scaling_factor {other:g}, the model's {own:g})"
        return ""

    def resolve(self, part: ModelPart) -> AutoencoderFile:
        """Return the file. Raises `JobRejected` where it is missing, unfit or of another revision."""
        file = AUTOENCODER_KIND.find(self.folder, part.name, part.revision)
        if mismatch := self.find_mismatch(file):
            raise JobRejected(f"The autoencoder {part.name} does not fit {self._model_name}: {mismatch}.", "model")
        return file

    def count_bytes(self, part: ModelPart | None, dtype: torch.dtype, *, with_kept: bool = True) -> int:
        """Return the memory of `part`, and `with_kept` of the others that are loaded then. Raises `JobRejected`."""
        file = None if part is None else self.resolve(part)
        with self._lock:
            kept = [each for key, each in self._loaded.items() if file is None or key[0].name != file.name]
        kept_count = MAX_LOADED if file is None else MAX_LOADED - 1
        kept_bytes = sum(tensor.nbytes for each in kept[-kept_count:] for tensor in each.parameters())
        return (kept_bytes if with_kept else 0) + (0 if file is None else file.layout.parameters * dtype.itemsize)

    def load(self, part: ModelPart, like: Any, device: torch.device) -> Any:
        """Return the autoencoder in number format and memory layout of `like`, loaded once. Raises `JobRejected`."""
        with self._lock:
            if (part, like.dtype) in self._loaded:  # whatever has become of its file
                self._loaded.move_to_end((part, like.dtype))
                return self._loaded[part, like.dtype]
        file = self.resolve(part)
        key = ModelPart(file.name, file.revision), like.dtype
        with self._lock:
            if key not in self._loaded:
                while len(self._loaded) >= MAX_LOADED:
                    self._loaded.popitem(last=False)
                self._loaded[key] = self._load(file, like, device)
            self._loaded.move_to_end(key)
            return self._loaded[key]

    def load_alone(self, part: ModelPart, like: Any, device: torch.device) -> Any:
        """Return the autoencoder as `load` does, for the caller alone to keep. Raises `JobRejected`."""
        return self._load(self.resolve(part), like, device)

    def release_others(self, part: ModelPart | None) -> None:
        """Drop all that are in memory but `part`."""
        with self._lock:
            for key in [key for key in self._loaded if part is None or key[0].name != part.name]:
                del self._loaded[key]

    def release(self) -> None:
        """Drop all that are in memory."""
        with self._lock:
            self._loaded.clear()

    def _load(self, file: AutoencoderFile, like: Any, device: torch.device) -> Any:
        try:
            with torch.inference_mode(False), silence_libraries():
                network = (self._load_file if file.config is None else _load_folder)(file, like.dtype)
                network = network.eval().requires_grad_(False).to(device)
                if _is_channels_last(like):
                    network.to(memory_format=torch.channels_last)
                _test_network(network, file)
        except LOAD_ERRORS as error:
            if is_out_of_memory(error):
                raise
            raise reject_autoencoder(
                file.name, "cannot be loaded: its weights are damaged, or of another kind"
            ) from error
        return network

    def _load_file(self, file: AutoencoderFile, dtype: torch.dtype) -> Any:
        """Load a single file by diffusers' conversion, with the configuration of the model's own autoencoder."""
        weights = read_tensors([file.path], dtype)
        with TemporaryDirectory() as folder:
            Path(folder, "config.json").write_text(json.dumps(self._own_config, default=list), encoding="utf-8")
            load: Any = cast(Any, AutoencoderKL).from_single_file
            return load(weights, config=folder, torch_dtype=dtype, local_files_only=True)


def _load_folder(file: AutoencoderFile, dtype: torch.dtype) -> Any:
    """Load a diffusers folder. The library's own loading would change torch's default dtype for all threads."""
    own_class: Any = AutoencoderKL
    with torch.device("meta"):  # a wrong configuration takes no memory
        network = own_class.from_config(own_class.load_config(str(file.path), local_files_only=True))
    weights = read_tensors(file.files, dtype)
    network._fix_state_dict_keys_on_load(weights)  # names of earlier versions
    network.load_state_dict(weights, assign=True)
    return network


@torch.inference_mode()
def _test_network(network: Any, file: AutoencoderFile) -> None:
    if sum(each.numel() for each in network.parameters()) != file.layout.parameters:
        raise ValueError("weights are missing")
    latents = torch.zeros(1, file.layout.channels, 2, 2, device=network.device, dtype=network.dtype)
    if not bool(network.decode(latents, return_dict=False)[0].isfinite().all()):
        raise ValueError("its pictures are not finite")


def _is_close(value: float | Sequence[float] | None, other: float | Sequence[float] | None) -> bool:
    """Whether scales or shifts are equal but for rounding; None is none."""
    if isinstance(value, Sequence) and isinstance(other, Sequence):
        return len(value) == len(other) and all(map(_is_close, value, other))
    if isinstance(value, Sequence) or isinstance(other, Sequence):
        return not value and not other
    return math.isclose(value or 0.0, other or 0.0, rel_tol=1e-4)


def _is_channels_last(network: Any) -> bool:
    kernels = [weight for weight in network.parameters() if weight.dim() == 4 and min(weight.shape) > 1]
    return bool(kernels) and all(weight.is_contiguous(memory_format=torch.channels_last) for weight in kernels)

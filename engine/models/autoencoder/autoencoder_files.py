"""Autoencoders in a folder: `NAME/` as diffusers writes it, or `NAME.safetensors` in any layout that diffusers reads.

Loads no weights. Only safetensors are accepted: a pickle can run code when it is opened. Configurations and headers are
bounded and checked before anything takes memory. No name and no link leads out of the folder.
"""

from __future__ import annotations

import functools
import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, NamedTuple, cast

import msgspec
import torch
from msgspec import Meta
from safetensors import SafetensorError, safe_open

from engine.contract.rejection import JobRejected
from engine.models.files.fingerprint import combine_fingerprints, fingerprint_file

log = logging.getLogger(__name__)

SAFETENSORS_SUFFIX = ".safetensors"
PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt")
WEIGHTS_NAME = "diffusion_pytorch_model"  # and what follows: a variant, the number of a part
MAX_CONFIG_BYTES = 64 * 2**10
MAX_PARAMETERS, MAX_TENSORS = 1_000_000_000, 20_000
AUTOENCODER_CLASS = "AutoencoderKL"
_PREFIX = re.compile(r"^(?:first_stage_model|vae)\.")
_OWN_KEY = re.compile(r"^(?:encoder|decoder|quant_conv|post_quant_conv)\.")
_LEVEL = re.compile(r"^decoder\.up(?:_blocks)?\.(\d{1,2})\.")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")  # as `engine.contract.Name`

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


def find_autoencoders(folder: Path | None) -> list[AutoencoderFile]:
    """Return every usable autoencoder by name; log the others."""
    autoencoders: list[AutoencoderFile] = []
    for name in sorted(_list_names(folder)):
        try:
            autoencoders.append(find_autoencoder(folder, name))
        except JobRejected as rejection:
            log.warning("left out: %s", rejection.sentence)
    return autoencoders


def find_autoencoder(folder: Path | None, name: str) -> AutoencoderFile:
    """Return the autoencoder of this name, its header and configuration checked. Raises `JobRejected`."""
    if folder is None or not _NAME.fullmatch(name):
        raise _reject_missing(name)
    try:
        path = folder / f"{name}{SAFETENSORS_SUFFIX}"
        files = [path] if path.is_file() else _list_weights(path := folder / name)
        if not files:
            _refuse_pickle(folder, name)
            raise _reject_missing(name)
        if not all(each.resolve().is_relative_to(folder.resolve()) for each in files):
            raise reject_autoencoder(name, "is a link that leads out of the folder that it is in")
        config = _read_config(path, name) if path.is_dir() else None
        layouts = [_inspect_unchanged(each) for each in files]
        revision = combine_fingerprints(*(revision for revision, _ in layouts), _encode_config(path))
    except (OSError, SafetensorError) as error:
        raise reject_autoencoder(name, "cannot be read as safetensors") from error
    return AutoencoderFile(
        name, path, tuple(files), revision, _join_layouts(name, [layout for _, layout in layouts]), config
    )


def reject_autoencoder(name: str, reason: str) -> JobRejected:
    return JobRejected(f"The autoencoder {name[:64]} {reason}.", "worker")


def _list_names(folder: Path | None) -> set[str]:
    try:
        paths = list(folder.iterdir()) if folder is not None and folder.is_dir() else []
        suffixes = (SAFETENSORS_SUFFIX, *PICKLE_SUFFIXES)
        names = {
            path.name if path.is_dir() else path.stem for path in paths if path.is_dir() or path.suffix in suffixes
        }
    except OSError as error:
        log.warning("the folder of autoencoders cannot be read: %s", error)
        return set()
    return {name for name in names if _NAME.fullmatch(name)}


def _list_weights(folder: Path) -> list[Path]:
    """Return the weights of a diffusers folder, those without a variant first; none where there is no such folder."""
    files = sorted(folder.glob(f"{WEIGHTS_NAME}*{SAFETENSORS_SUFFIX}")) if folder.is_dir() else []
    plain = [path for path in files if path.name == f"{WEIGHTS_NAME}{SAFETENSORS_SUFFIX}"]
    return plain or [path for path in files if "-of-" in path.name] or files[:1]


def _read_config(folder: Path, name: str) -> AutoencoderConfig:
    path = folder / "config.json"
    try:
        if path.stat().st_size > MAX_CONFIG_BYTES:
            raise ValueError
        return msgspec.json.decode(path.read_bytes(), type=AutoencoderConfig)
    except (OSError, ValueError, msgspec.MsgspecError, RecursionError) as error:
        raise reject_autoencoder(name, "has no config.json that can be read") from error


def _encode_config(path: Path) -> str:
    return (path / "config.json").read_bytes().hex() if path.is_dir() else ""


def _inspect_unchanged(path: Path) -> tuple[str, LatentLayout]:
    stat = path.stat()
    return _inspect(path, stat.st_size, stat.st_mtime_ns)


@functools.lru_cache(maxsize=256)
def _inspect(path: Path, size: int, mtime_ns: int) -> tuple[str, LatentLayout]:
    """Return the fingerprint and what the header tells, -1 for what it does not; cached while the file is the same."""
    channels = levels = -1
    parameters = 0
    for key, shape in _read_shapes(path).items():
        if key == "decoder.conv_in.weight" and len(shape) == 4:
            channels = shape[1]
        if match := _LEVEL.match(key):
            levels = max(levels, int(match[1]) + 1)
        parameters += torch.Size(shape).numel()
    return fingerprint_file(path), LatentLayout(channels, levels, parameters)


def _read_shapes(path: Path) -> Mapping[str, list[int]]:
    """Return the shapes of an autoencoder's tensors, by their names without the prefix of a whole model."""
    with cast(Any, safe_open)(path, framework="pt") as file:
        names: list[str] = list(file.keys())
        if len(names) > MAX_TENSORS:
            raise reject_autoencoder(path.stem, "has too many tensors")
        shapes = {_PREFIX.sub("", name): file.get_slice(name).get_shape() for name in names}
    return {name: shape for name, shape in shapes.items() if _OWN_KEY.match(name)}


def _join_layouts(name: str, layouts: list[LatentLayout]) -> LatentLayout:
    """Return the layout of weights in several files. Raises `JobRejected` for what is no autoencoder."""
    channels, levels, parameters = (
        fold(each) for fold, each in zip((max, max, sum), zip(*layouts, strict=True), strict=True)
    )
    if channels < 1 or levels < 1 or not 1 <= parameters <= MAX_PARAMETERS:
        raise reject_autoencoder(name, "is no autoencoder of at most a billion parameters")
    return LatentLayout(channels, levels, parameters)


def _refuse_pickle(folder: Path, name: str) -> None:
    inside = [path for path in (folder / name).iterdir() if path.is_file()] if (folder / name).is_dir() else []
    beside = [path for suffix in PICKLE_SUFFIXES if (path := folder / f"{name}{suffix}").is_file()]
    if any(path.suffix in PICKLE_SUFFIXES for path in [*inside, *beside]):
        reason = "exists only as a pickle, which can run code when it is opened: convert it to safetensors"
        raise reject_autoencoder(name, reason)


def _reject_missing(name: str) -> JobRejected:
    return JobRejected(f"This worker has no autoencoder called {name[:64]}.", "worker")

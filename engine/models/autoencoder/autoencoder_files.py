"""Autoencoders in a folder: `NAME/` as diffusers writes it, or `NAME.safetensors` in any layout that diffusers reads.

Loads no weights. Configurations and headers are bounded and checked before anything takes memory.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, NamedTuple, cast

import msgspec
import torch
from msgspec import Meta
from safetensors import safe_open

from engine.contract.rejection import JobRejected
from engine.models.files.added_kind import AddedEntry, AddedKind, cache_while_unchanged, reject_added
from engine.models.files.fingerprint import combine_fingerprints, fingerprint_file

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
    """Return the autoencoder, its header and configuration checked."""
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


AUTOENCODER_KIND = AddedKind(NOUN, _read_autoencoder)

"""IP-Adapters of a folder: `NAME/` with one safetensors file and the folder `image_encoder`, as they are published."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, cast

import msgspec
from msgspec import Meta
from safetensors import SafetensorError, safe_open
from transformers import CLIPVisionModelWithProjection

from engine.hub.catalogue import SAFETENSORS_SUFFIX
from engine.models.files.added_kind import CONFIG_FILE, AddedEntry, AddedKind, cache_while_unchanged, reject_added
from engine.models.files.fingerprint import combine_fingerprints, fingerprint_file
from engine.models.files.pipeline_parts import list_parts

ENCODER_FOLDER = "image_encoder"
MAX_CONFIG_BYTES = 2**20
NOUN = "reference adapter"

Width = Annotated[int, Meta(ge=1, le=2**14)]


class EncoderConfig(msgspec.Struct, frozen=True):
    """The fields of an image encoder's `config.json` that its size depends on, with the defaults of transformers.

    Published encoders have at most 448 pixels a side, 1664 features and 48 layers.
    """

    model_type: Annotated[str, Meta(max_length=64)] = ""
    image_size: Annotated[int, Meta(ge=1, le=1024)] = 224  # pixels a side
    patch_size: Annotated[int, Meta(ge=1, le=256)] = 32
    num_channels: Annotated[int, Meta(ge=1, le=4)] = 3
    hidden_size: Width = 768
    intermediate_size: Annotated[int, Meta(ge=1, le=2**16)] = 3072
    projection_dim: Width = 512
    num_hidden_layers: Annotated[int, Meta(ge=1, le=128)] = 12


@dataclass(frozen=True)
class AdapterFile:
    """One adapter. `revision` changes with its weights and with its image encoder's."""

    name: str
    path: Path
    encoder_folder: Path
    revision: str
    encoder_revision: str
    encoder_config: EncoderConfig


def read_shapes(adapter: AdapterFile) -> dict[str, tuple[int, ...]]:
    """Return the shape of each tensor, from the file's header. Raises `JobRejected`."""
    try:
        with cast(Any, safe_open)(adapter.path, framework="pt") as file:
            return {key: tuple(file.get_slice(key).get_shape()) for key in list(file.keys())}
    except (OSError, SafetensorError) as error:
        raise reject_added(NOUN, adapter.name, "cannot be read as safetensors") from error


def count_values(adapter: AdapterFile) -> int:
    """Return the number of values of adapter and image encoder. Raises `JobRejected`."""
    (encoder,) = list_parts(adapter.encoder_folder.parent, {ENCODER_FOLDER: CLIPVisionModelWithProjection})
    return encoder.parameters + sum(math.prod(shape) for shape in read_shapes(adapter).values())


def _read_adapter(entry: AddedEntry) -> AdapterFile:
    path = _find_weights(entry)
    encoder_folder = entry.path / ENCODER_FOLDER
    encoder_files = sorted([*encoder_folder.glob(CONFIG_FILE), *encoder_folder.glob(f"*{SAFETENSORS_SUFFIX}")])
    if not any(each.suffix == SAFETENSORS_SUFFIX for each in encoder_files):
        raise entry.reject(
            f"needs its image encoder beside it, as the folder {ENCODER_FOLDER} with weights in safetensors"
        )
    if any(each.stat().st_size > MAX_CONFIG_BYTES for each in encoder_folder.glob("*.json")):  # libraries read it whole
        raise entry.reject(f"has an image encoder with a configuration of more than {MAX_CONFIG_BYTES // 2**20} MiB")
    entry.check_links([path, *encoder_files])
    encoder_revision = combine_fingerprints(*(_fingerprint(each) for each in encoder_files))
    revision = combine_fingerprints(_fingerprint(path), encoder_revision)
    config = _read_encoder_config(entry, encoder_folder / CONFIG_FILE)
    return AdapterFile(entry.name, path, encoder_folder, revision, encoder_revision, config)


def _read_encoder_config(entry: AddedEntry, path: Path) -> EncoderConfig:
    """Return the bounded configuration: libraries build what it says before they look at the weights."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=EncoderConfig)
    except msgspec.ValidationError as error:
        raise entry.reject(f"has an image encoder that is not built here: {str(error).lower()}") from error
    except (OSError, ValueError, msgspec.MsgspecError, RecursionError) as error:
        raise entry.reject("has an image encoder whose configuration cannot be read") from error


def _find_weights(entry: AddedEntry) -> Path:
    """Return the only file of weights. Raises `JobRejected` for a pickle, several files or none."""
    weights = entry.list_weights()
    if len(weights) == 1:
        return weights[0]
    several = "has several files of weights: give each adapter a folder of its own"
    raise entry.reject(several if weights else "has no file of weights")


@cache_while_unchanged
def _fingerprint(path: Path) -> str:
    return f"{path.name} {fingerprint_file(path)}"


REFERENCE_KIND = AddedKind(NOUN, _read_adapter, forms=("folder",))

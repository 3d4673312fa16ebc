"""IP-Adapters: their files, whether one fits a U-Net, and their image encoder."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, cast

import msgspec
import torch
from msgspec import Meta
from PIL import Image
from safetensors import SafetensorError, safe_open
from transformers import CLIPImageProcessor, CLIPVisionModelWithProjection

from engine.contract import Dtype, JobRejected
from engine.hub.catalogue import SAFETENSORS_SUFFIX
from engine.models.family import TORCH_DTYPES
from engine.models.files.added_kind import CONFIG_FILE, AddedEntry, AddedKind, cache_while_unchanged, reject_added
from engine.models.files.model_source import combine_fingerprints, fingerprint_file
from engine.models.files.pipeline_parts import list_parts
from engine.models.library_logging import silence_libraries
from engine.models.loading.pipeline_loader import LOAD_ERRORS, guard_default_dtype
from engine.models.network.pipeline_offload import offload_to_cpu
from engine.models.network.reference_attention import list_attention_layers

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


Shapes = Mapping[str, tuple[int, ...]]
# The matrix that reads the image encoder's output, by the kind of adapter: pooled output, or states. In the sequence in
# which diffusers' loader tells them apart, with what only that kind has.
PLAIN_KEY = "image_proj.proj.weight"
FULL_KEY = "image_proj.proj.0.weight"
PLUS_KEY = "image_proj.proj_in.weight"
FULL_MARK = "image_proj.proj.3.weight"
FACE_MARKS = ("image_proj.perceiver_resampler", "image_proj.norm.")
MATRICES = ("to_k_ip", "to_v_ip")  # of each layer: to keys, to values


def find_mismatch(net: Any, adapter: AdapterFile) -> str:
    """Return why the adapter does not fit `net`; empty: it fits. Raises `JobRejected` for unreadable files."""
    shapes = read_shapes(adapter)
    return _find_layer_mismatch(net, shapes) or _find_encoder_mismatch(adapter.encoder_config, shapes)


def list_layer_keys(net: Any) -> list[str]:
    """Return the adapter's names for the matrices of each layer of `net`: to its keys, to its values."""
    count = sum(1 for _ in list_attention_layers(net))
    return [f"ip_adapter.{2 * number + 1}.{part}.weight" for number in range(count) for part in MATRICES]


def is_plain(layer: Any) -> bool:
    """Whether an attention layer only attends: no norms inside, no residual."""
    norms = layer.spatial_norm, layer.group_norm, layer.norm_q, layer.norm_k, layer.norm_cross
    return not any(norms) and not layer.residual_connection and layer.rescale_output_factor == 1


def _find_layer_mismatch(net: Any, shapes: Shapes) -> str:
    """Compare each matrix `[width, features of a token]` with its layer."""
    layers = list(list_attention_layers(net))
    keys = list_layer_keys(net)
    adapter_layers = {key.split(".")[1] for key in shapes if key.startswith("ip_adapter.")}
    if len(adapter_layers) != len(layers):
        return f"it has {len(adapter_layers)} layers, and the model {len(layers)}"
    for number, key in enumerate(keys):
        name, layer = layers[number // len(MATRICES)]
        if not is_plain(layer) or shapes.get(key) != (layer.inner_dim, layer.cross_attention_dim):
            return f"its {key} does not fit {name}"
    return ""


def _find_encoder_mismatch(config: EncoderConfig, shapes: Shapes) -> str:
    if PLAIN_KEY in shapes:
        key = PLAIN_KEY
        width = config.projection_dim
    elif FULL_MARK not in shapes and any(key.startswith(FACE_MARKS) for key in shapes):
        return "it is for faces, and reads the output of a network that recognises them"
    else:
        key = FULL_KEY if FULL_MARK in shapes else PLUS_KEY
        width = config.hidden_size
    if config.model_type != "clip_vision_model":
        return "its image encoder is no CLIP"
    if key not in shapes:
        return "it has no image projection that is known"
    return "" if shapes[key][-1] == width else f"its image encoder has the width {width}, not {shapes[key][-1]}"


class ImageEncoder:
    """Encodes pictures (RGB) in `dtype`. `revision`: its weights'. On a GPU it stays on the host between pictures."""

    def __init__(self, file: AdapterFile, device: torch.device, dtype: Dtype) -> None:
        """Load it. Raises `JobRejected` where it cannot be loaded from safetensors."""
        self.revision = file.encoder_revision
        self._device = device
        self.dtype: Dtype = dtype
        self._encoder: Any = _load(file, TORCH_DTYPES[dtype]).eval().requires_grad_(False)
        if device.type != "cpu":
            offload_to_cpu(self._encoder, device)
        size = int(self._encoder.config.image_size)
        self._processor: Any = CLIPImageProcessor(size=size, crop_size=size)  # diffusers' default

    @torch.inference_mode()
    def encode_pooled(self, picture: Image.Image) -> tuple[torch.Tensor, torch.Tensor]:
        """Return (picture, no picture) as pooled outputs `[1, width]`."""
        pooled = self._encoder(self._prepare(picture)).image_embeds
        return pooled, torch.zeros_like(pooled)

    @torch.inference_mode()
    def encode_states(self, picture: Image.Image) -> tuple[torch.Tensor, torch.Tensor]:
        """Return (picture, no picture) as states before the last layer `[1, tokens, width]`."""
        pixels = self._prepare(picture)
        return self._run_states(pixels), self._run_states(torch.zeros_like(pixels))

    def _prepare(self, picture: Image.Image) -> torch.Tensor:
        """Return pixels `[1, 3, size, size]`: the shorter side scaled to the encoder's size, the middle cut out."""
        pixels = self._processor(picture, return_tensors="pt").pixel_values
        return pixels.to(self._device, TORCH_DTYPES[self.dtype])

    def _run_states(self, pixels: torch.Tensor) -> torch.Tensor:
        return self._encoder(pixels, output_hidden_states=True).hidden_states[-2]


def _load(file: AdapterFile, dtype: torch.dtype) -> Any:
    (part,) = list_parts(file.encoder_folder.parent, {ENCODER_FOLDER: CLIPVisionModelWithProjection})
    converted_files = part.files if dtype != TORCH_DTYPES[part.stored_dtype] else ()
    guarded_class = guard_default_dtype(CLIPVisionModelWithProjection, dtype, converted_files)
    try:
        with silence_libraries(), torch.inference_mode(False):
            encoder = guarded_class.from_pretrained(
                str(file.encoder_folder), dtype=dtype, variant=part.variant, use_safetensors=True, local_files_only=True
            )
    except LOAD_ERRORS as error:
        raise JobRejected(f"The image encoder of the reference adapter {file.name} is damaged.", "worker") from error
    encoder.__class__ = CLIPVisionModelWithProjection
    return encoder

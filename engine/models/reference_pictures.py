"""Reference pictures of one model: which adapters fit, the loaded ones, and pictures as its U-Net attends to them.

A picture is encoded once, before the first step. Its forwards need no weights of the adapter.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import RLock
from typing import Annotated, Any, cast
from weakref import WeakKeyDictionary

import msgspec
import torch
from diffusers.models.embeddings import ImageProjection
from msgspec import Meta
from PIL import Image
from safetensors import SafetensorError, safe_open
from transformers import CLIPImageProcessor, CLIPVisionModelWithProjection

from engine.contract import ControlModel, Dtype, JobRejected, Preprocessor, Recipe
from engine.hub.catalogue import SAFETENSORS_SUFFIX
from engine.models.family import TORCH_DTYPES
from engine.models.files.added_kind import (
    CONFIG_FILE,
    REFERENCE_FOLDER,
    AddedEntry,
    AddedKind,
    cache_while_unchanged,
    reject_added,
)
from engine.models.files.model_source import combine_fingerprints, fingerprint_file
from engine.models.files.pipeline_parts import list_parts
from engine.models.library_logging import silence_libraries
from engine.models.loading.pipeline_loader import LOAD_ERRORS, guard_default_dtype
from engine.models.network.network_copies import ADDITION, list_attention_layers
from engine.models.network.pipeline_offload import offload_to_cpu
from engine.models.picture_conditions import (
    Additions,
    ForwardInputs,
    OpenPicture,
    PictureCondition,
    PictureConditions,
    PictureRows,
    PictureSlot,
    SlotKind,
)

log = logging.getLogger(__name__)

MAX_ANNOUNCED = 16  # adapters, the limit of `engine.contract.ModelProfile`


class ReferenceConditioner:
    """A `PictureConditioner` for the U-Net of a family: its pipeline's, in one number format where that is large."""

    kinds: tuple[SlotKind, ...] = ("reference",)

    def __init__(self, family: Any) -> None:
        self.folder: Path | None = None
        self._family = family
        self._lock = RLock()
        self._mismatches: dict[str, str] = {}  # by revision
        self._adapter: tuple[str, Dtype, ReferenceAdapter] | None = None  # the last one, by revision
        self._encoder: ImageEncoder | None = None  # the last one: adapters often share it
        self._kept_bytes = 0
        self._cast_rows: WeakKeyDictionary[PictureRows, tuple[Dtype, tuple[torch.Tensor, ...]]] = WeakKeyDictionary()

    def use_data_folder(self, data: Path) -> None:
        self.folder = data / REFERENCE_FOLDER

    def list_networks(self) -> tuple[ControlModel, ...]:
        """Return the adapters that fit. Each is checked once."""
        fitting = [file for file in REFERENCE_KIND.find_all(self.folder) if self.find_mismatch(file) == ""]
        return tuple(ControlModel(file.name, file.revision) for file in fitting[:MAX_ANNOUNCED])

    def list_preprocessors(self) -> tuple[Preprocessor, ...]:
        return ()

    def needs_pictures(self, recipe: Recipe) -> bool:
        return bool(recipe.references)

    def check_pictures(self, recipe: Recipe) -> None:
        """Raise `JobRejected` where an adapter is missing, unfit or of another revision; load nothing."""
        for reference in recipe.references:
            file = REFERENCE_KIND.find(self.folder, reference.name)
            if reference.revision and reference.revision != file.revision:
                raise JobRejected(f"This worker has another version of the reference adapter {file.name}.", "worker")
            if self.find_mismatch(file):
                raise JobRejected(f"The reference adapter {file.name} does not fit this model.", "model")

    def count_bytes(self, recipe: Recipe, *, with_kept: bool = True) -> int:
        """Return the bytes of the largest adapter with its image encoder: one of each is in memory at a time."""
        files = {REFERENCE_KIND.find(self.folder, reference.name) for reference in recipe.references}
        kept_bytes = self._kept_bytes if with_kept else 0
        return max(kept_bytes, *(self._count_bytes(file, self._choose_dtype(recipe)) for file in files), 0)

    def list_shared_bytes(self, recipe: Recipe, *, with_kept: bool = True) -> Mapping[str, int]:
        return {}

    def load_networks(self, recipe: Recipe) -> None:
        """Load the first picture's adapter and image encoder; the next one's replace them. Raises `JobRejected`."""
        self._load(REFERENCE_KIND.find(self.folder, recipe.references[0].name), self._choose_dtype(recipe))

    def prepare_pictures(self, recipe: Recipe, open_picture: OpenPicture) -> PictureConditions:
        """Return the pictures as keys and values `[tokens, width]`. Raises `JobRejected`."""
        dtype = self._choose_dtype(recipe)
        conditions = list[PictureCondition]()
        for number, reference in enumerate(recipe.references):
            adapter, encoder = self._load(REFERENCE_KIND.find(self.folder, reference.name), dtype)
            picture, no_picture = adapter.encode(encoder, open_picture(reference.picture))
            if not torch.isfinite(picture).all():
                raise JobRejected("The reference picture was encoded as numbers that are not finite.", "model")
            slot = PictureSlot("reference", number=number)
            conditions.append(PictureCondition(slot, (picture,), reference.scale, unconditional_tensors=(no_picture,)))
        return tuple(conditions)

    def make_additions(self, inputs: ForwardInputs, pictures: Sequence[PictureRows]) -> Additions:
        """Return (keys and values, scales) of each slot, and row numbers where it does not have all rows."""
        return {f"{ADDITION} {number}": self._cast(rows, inputs.dtype) for number, rows in enumerate(pictures)}

    def release_others(self, recipe: Recipe) -> None:
        """Drop adapter and image encoder where the recipe uses another adapter or none. Raises `JobRejected`."""
        dtype = self._choose_dtype(recipe)
        used = {(REFERENCE_KIND.find(self.folder, reference.name).revision, dtype) for reference in recipe.references}
        with self._lock:
            if self._adapter is None or self._adapter[:2] not in used:
                self.release()

    def release(self) -> None:
        """Drop all weights."""
        with self._lock:
            self._adapter = None
            self._encoder = None
            self._kept_bytes = 0
        self._cast_rows.clear()

    def _cast(self, rows: PictureRows, dtype: Dtype) -> tuple[torch.Tensor, ...]:
        """Return the rows' keys and values in `dtype`: the same tensors at every step."""
        known = self._cast_rows.get(rows)
        if known is None or known[0] != dtype:
            self._cast_rows[rows] = known = dtype, _cast(rows, dtype)
        return known[1]

    def _choose_dtype(self, recipe: Recipe) -> Dtype:
        return recipe.dtype if self._family.is_single_format else "float32"

    def _load(self, file: AdapterFile, dtype: Dtype) -> tuple[ReferenceAdapter, ImageEncoder]:
        """Return adapter and encoder; those of another adapter go first, since there may be no room for two."""
        net = self._get_net()
        device = self._family.device
        with self._lock:
            if self._adapter is None or self._adapter[:2] != (file.revision, dtype):
                self._adapter = None
                self._adapter = file.revision, dtype, ReferenceAdapter(net, file, device, dtype)
            if self._encoder is None or (self._encoder.revision, self._encoder.dtype) != (file.encoder_revision, dtype):
                self._encoder = None
                self._encoder = ImageEncoder(file, device, dtype)
            self._kept_bytes = self._count_bytes(file, dtype)
            return self._adapter[2], self._encoder

    @staticmethod
    def _count_bytes(file: AdapterFile, dtype: Dtype) -> int:
        return count_values(file) * TORCH_DTYPES[dtype].itemsize

    def _get_net(self) -> Any:
        return getattr(self._family.pipeline, self._family.network_name)

    def find_mismatch(self, file: AdapterFile) -> str | None:
        """Return why an adapter does not fit; None while that is unknown, while a large network is reloaded."""
        if file.revision not in self._mismatches and (net := self._get_net()) is not None:
            try:
                mismatch = find_mismatch(net, file)
            except JobRejected as rejection:
                mismatch = rejection.sentence
            self._mismatches[file.revision] = mismatch
            if mismatch:
                log.warning("left out: the reference adapter %s does not fit the model: %s", file.name, mismatch)
        return self._mismatches.get(file.revision)


def _cast(rows: PictureRows, dtype: Dtype) -> tuple[torch.Tensor, ...]:
    (keys_values,) = rows.tensors
    tensors = keys_values.to(TORCH_DTYPES[dtype]), rows.scales.to(TORCH_DTYPES[dtype])
    return tensors if rows.is_whole else (*tensors, rows.rows)


PROJECTION_PREFIX = "image_proj."


class ReferenceAdapter:
    """`dtype`: the number format that it computes in. `net` tells only how many layers it has."""

    def __init__(self, net: Any, file: AdapterFile, device: torch.device, dtype: Dtype) -> None:
        """Load it. Raises `JobRejected` where it does not fit."""
        self._dtype = TORCH_DTYPES[dtype]
        try:
            with silence_libraries(), torch.inference_mode(False):
                projection, matrices = _load(net, file)
        except LOAD_ERRORS as error:
            raise JobRejected(f"The reference adapter {file.name} does not fit this model.", "model") from error
        self._projection = projection.to(device, self._dtype).eval().requires_grad_(False)
        self._matrices = matrices.to(device, self._dtype)

    @torch.inference_mode()
    def encode(self, encoder: ImageEncoder, picture: Image.Image) -> tuple[torch.Tensor, torch.Tensor]:
        """Return (picture, no picture) as keys and values of all layers, `[tokens, width]`.

        They lie side by side as `list_layer_keys` says.
        """
        is_pooled = isinstance(self._projection, ImageProjection)
        picture_features, no_features = (encoder.encode_pooled if is_pooled else encoder.encode_states)(picture)
        return self._project(picture_features), self._project(no_features)

    def _project(self, features: torch.Tensor) -> torch.Tensor:
        tokens = self._projection(features.to(self._dtype))[0]
        return tokens @ self._matrices.T


def _load(net: Any, file: AdapterFile) -> tuple[torch.nn.Module, torch.Tensor]:
    """Return the image projection, by diffusers' loader, and the matrices of all layers as one `[width, features]`."""
    with cast(Any, safe_open)(file.path, framework="pt") as tensors:
        names: list[str] = list(tensors.keys())
        projection = {
            key.removeprefix(PROJECTION_PREFIX): tensors.get_tensor(key)
            for key in names
            if key.startswith(PROJECTION_PREFIX)
        }
        matrices = torch.cat([tensors.get_tensor(key) for key in list_layer_keys(net)])
    return net._convert_ip_adapter_image_proj_to_diffusers(projection, low_cpu_mem_usage=False), matrices


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
        self._encoder: Any = _load_encoder(file, TORCH_DTYPES[dtype]).eval().requires_grad_(False)
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


def _load_encoder(file: AdapterFile, dtype: torch.dtype) -> Any:
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

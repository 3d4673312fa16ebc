"""Reference pictures of one model: which adapters fit, the loaded ones, and pictures as its U-Net attends to them.

A picture is encoded once, before the first step. Its forwards need no weights of the adapter.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from threading import RLock
from typing import Any, cast
from weakref import WeakKeyDictionary

import torch
from diffusers.models.embeddings import ImageProjection
from PIL import Image
from safetensors import safe_open

from engine.contract import ControlModel, Dtype, JobRejected, Preprocessor, Recipe
from engine.models.family import TORCH_DTYPES
from engine.models.files.added_kind import REFERENCE_FOLDER
from engine.models.library_logging import silence_libraries
from engine.models.loading.pipeline_loader import LOAD_ERRORS
from engine.models.network.reference_attention import ADDITION
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
from engine.models.reference.adapter_files import (
    REFERENCE_KIND,
    AdapterFile,
    ImageEncoder,
    count_values,
    find_mismatch,
    list_layer_keys,
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

"""One loaded IP-Adapter: from a picture to keys and values for each layer of a U-Net that attends to the prompt."""

from __future__ import annotations

from typing import Any, cast

import torch
from diffusers.models.embeddings import ImageProjection
from PIL import Image
from safetensors import safe_open

from engine.contract import Dtype
from engine.contract.rejection import JobRejected
from engine.models.family import TORCH_DTYPES
from engine.models.library_logging import silence_libraries
from engine.models.loading.pipeline_loader import LOAD_ERRORS
from engine.models.reference.adapter_files import AdapterFile
from engine.models.reference.compatibility import list_layer_keys
from engine.models.reference.image_encoder import ImageEncoder

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

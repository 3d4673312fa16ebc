"""An IP-Adapter's image encoder: CLIP's vision tower, and pictures as it sees them."""

from __future__ import annotations

from typing import Any

import torch
from PIL import Image
from transformers import CLIPImageProcessor, CLIPVisionModelWithProjection

from engine.contract import Dtype
from engine.contract.rejection import JobRejected
from engine.models.family import TORCH_DTYPES
from engine.models.files.pipeline_parts import list_parts
from engine.models.library_logging import silence_libraries
from engine.models.loading.pipeline_loader import LOAD_ERRORS, guard_default_dtype
from engine.models.network.cpu_offload import offload_to_cpu
from engine.models.reference.adapter_files import ENCODER_FOLDER, AdapterFile


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

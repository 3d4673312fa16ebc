"""Depth maps by a depth estimator of transformers (DPT, Depth Anything …): near is bright."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from PIL import Image

from engine.contract.rejection import JobRejected
from engine.models.library_logging import silence_libraries

MAX_CONFIG_BYTES = 256 * 1024


class DepthEstimator:
    """A depth estimator, float32."""

    def __init__(self, model: Any, processor: Any, device: torch.device) -> None:
        self._model, self._processor, self._device = model, processor, device

    @classmethod
    def load(cls, folder: Path, device: torch.device) -> DepthEstimator:
        """Load a folder with the estimator and its image processor. Raises `JobRejected`."""
        from transformers import AutoImageProcessor, AutoModelForDepthEstimation

        _refuse_other_files(folder)
        options: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
        try:
            with silence_libraries():
                processor = cast(Any, AutoImageProcessor).from_pretrained(str(folder), **options)
                model = cast(Any, AutoModelForDepthEstimation).from_pretrained(
                    str(folder), use_safetensors=True, dtype=torch.float32, **options
                )
        except Exception as error:  # untrusted files, many classes: any error is possible
            raise _reject("is none that transformers can open") from error
        return cls(model.eval().requires_grad_(False).to(device), processor, device)

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in (*self._model.parameters(), *self._model.buffers()))

    @torch.inference_mode()
    def draw(self, picture: Image.Image) -> Image.Image:
        """Return the depth of a picture (RGB) as grey RGB from 0 to 255, at the same size."""
        inputs = self._processor(images=picture, return_tensors="pt")
        depth: torch.Tensor = self._model(inputs["pixel_values"].to(self._device)).predicted_depth
        size = picture.height, picture.width
        depth = torch.nn.functional.interpolate(depth[:, None].float(), size, mode="bicubic", align_corners=False)
        low, high = depth.min(), depth.max()
        if not bool(torch.isfinite(depth).all()):
            raise JobRejected("The depth of the picture came out as numbers that are not finite.", "model")
        grey = ((depth - low) / (high - low).clamp_min(1e-12) * 255)[0, 0].round()
        return Image.fromarray(grey.cpu().numpy().astype(np.uint8)).convert("RGB")


def _refuse_other_files(folder: Path) -> None:
    """Refuse a configuration that names weights besides the folder's own. Raises `JobRejected`."""
    try:
        path = folder / "config.json"
        config: object = json.loads(path.read_bytes()) if path.stat().st_size <= MAX_CONFIG_BYTES else None
    except (OSError, ValueError, RecursionError) as error:
        raise _reject("has no config.json that can be read") from error
    if not isinstance(config, dict):
        raise _reject("has no config.json that can be read")
    entries = cast(dict[str, object], config)
    if entries.get("backbone") or entries.get("use_timm_backbone") or "auto_map" in entries:
        raise _reject("names weights or code besides its own")
    if not any(folder.glob("*.safetensors")):
        raise _reject("has no weights in safetensors")


def _reject(reason: str) -> JobRejected:
    return JobRejected(f"The depth estimator of this worker {reason}.", "worker")

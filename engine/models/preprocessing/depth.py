"""Depth maps by a depth estimator of transformers (DPT, Depth Anything …): near is bright."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from engine.contract.rejection import JobRejected
from engine.models.preprocessing.vision_network import VisionNetwork, load_vision_network


class DepthEstimator:
    """A depth estimator, float32."""

    def __init__(self, network: VisionNetwork, device: torch.device) -> None:
        self._network = network
        self._device = device

    @classmethod
    def load(cls, folder: Path, device: torch.device) -> DepthEstimator:
        """Load a folder with the estimator and its image processor. Raises `JobRejected`."""
        return cls(load_vision_network(folder, "AutoModelForDepthEstimation", "depth estimator", device), device)

    @property
    def nbytes(self) -> int:
        return self._network.nbytes

    @torch.inference_mode()
    def draw(self, picture: Image.Image) -> Image.Image:
        """Return the depth of a picture (RGB) as grey RGB from 0 to 255, at the same size."""
        inputs = self._network.processor(images=picture, return_tensors="pt")
        depth: torch.Tensor = self._network.model(inputs["pixel_values"].to(self._device)).predicted_depth
        size = picture.height, picture.width
        depth = torch.nn.functional.interpolate(depth[:, None].float(), size, mode="bicubic", align_corners=False)
        low = depth.min()
        high = depth.max()
        if not bool(torch.isfinite(depth).all()):
            raise JobRejected("The depth of the picture came out as numbers that are not finite.", "model")
        grey = ((depth - low) / (high - low).clamp_min(1e-12) * 255)[0, 0].round()
        return Image.fromarray(grey.cpu().numpy().astype(np.uint8)).convert("RGB")

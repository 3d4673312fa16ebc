"""Networks that draw control pictures: depth maps (DPT …) and line drawings (Chan et al. 2022)."""

from __future__ import annotations

import json
from collections.abc import Collection
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from engine.contract import JobRejected
from engine.models.library_logging import silence_libraries


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


WEIGHTS_FILE = "model.safetensors"


MAX_WEIGHTS_BYTES = 256 * 2**20


WIDTHS = (64, 128, 256)


RESIDUAL_BLOCKS = 3


FACTOR = 2 ** (len(WIDTHS) - 1)  # the sides of its pictures are multiples of this


class LineDrawer(nn.Module):
    """From pixels `[n, 3, height, width]` to lines `[n, 1, height, width]`, both from 0 to 1; lines are dark."""

    def __init__(self) -> None:
        super().__init__()
        first, *_, last = WIDTHS
        self.model0 = nn.Sequential(nn.ReflectionPad2d(3), nn.Conv2d(3, first, 7), nn.InstanceNorm2d(first), nn.ReLU())
        pairs = list(pairwise(WIDTHS))
        self.model1 = nn.Sequential(
            *(layer for narrow, wide in pairs for layer in _surround(nn.Conv2d(narrow, wide, 3, 2, 1), wide))
        )
        self.model2 = nn.Sequential(*(_ResidualBlock(last) for _ in range(RESIDUAL_BLOCKS)))
        self.model3 = nn.Sequential(
            *(
                layer
                for narrow, wide in reversed(pairs)
                for layer in _surround(nn.ConvTranspose2d(wide, narrow, 3, 2, 1, 1), narrow)
            )
        )
        self.model4 = nn.Sequential(nn.ReflectionPad2d(3), nn.Conv2d(first, 1, 7), nn.Sigmoid())

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.model4(self.model3(self.model2(self.model1(self.model0(pixels)))))

    @classmethod
    def load(cls, folder: Path, device: torch.device) -> LineDrawer:
        """Load the weights of a folder. Raises `JobRejected`."""
        path = folder / WEIGHTS_FILE
        try:
            if path.stat().st_size > MAX_WEIGHTS_BYTES:
                raise ValueError("it is too large")
            network = cls()
            network.load_state_dict({name: tensor.float() for name, tensor in load_file(path).items()})
        except (OSError, SafetensorError, RuntimeError, ValueError) as error:
            raise JobRejected(
                f"The line art preprocessor of this worker has no {WEIGHTS_FILE} that fits.", "worker"
            ) from error
        return network.eval().requires_grad_(False).to(device)

    @property
    def nbytes(self) -> int:
        return sum(parameter.nbytes for parameter in self.parameters())

    @torch.inference_mode()
    def draw(self, picture: Image.Image) -> Image.Image:
        """Return the lines of a picture (RGB), white on black, as RGB of the same size."""
        device = next(self.parameters()).device
        pixels = torch.from_numpy(np.asarray(picture, dtype=np.float32) / 255).permute(2, 0, 1)[None].to(device)
        height = picture.height
        width = picture.width
        padding = (0, -width % FACTOR, 0, -height % FACTOR)
        lines = self(nn.functional.pad(pixels, padding, mode="replicate"))[0, 0, :height, :width]
        grey = ((1 - lines) * 255).clamp(0, 255).round().cpu().numpy().astype(np.uint8)
        return Image.fromarray(grey).convert("RGB")


class _ResidualBlock(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv_block = nn.Sequential(
            nn.ReflectionPad2d(1),
            nn.Conv2d(width, width, 3),
            nn.InstanceNorm2d(width),
            nn.ReLU(),
            nn.ReflectionPad2d(1),
            nn.Conv2d(width, width, 3),
            nn.InstanceNorm2d(width),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.conv_block(x)


def _surround(convolution: nn.Module, width: int) -> tuple[nn.Module, nn.Module, nn.Module]:
    return convolution, nn.InstanceNorm2d(width), nn.ReLU()


MAX_CONFIG_BYTES = 256 * 1024


CONFIG_FILE = "config.json"


class VisionNetwork(NamedTuple):
    """A network in float32 that does not train, and the image processor that was saved with it."""

    model: Any
    processor: Any

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in (*self.model.parameters(), *self.model.buffers()))


def load_vision_network(
    folder: Path, class_name: str, noun: str, device: torch.device, model_types: Collection[str] = ()
) -> VisionNetwork:
    """Load a folder as this class of transformers. `noun` names it in sentences. Raises `JobRejected`.

    `model_types`: the kinds that are opened, as the configuration names them; none: all that the class knows.
    """
    config = _read_config(folder, noun)
    if model_types and config.get("model_type") not in model_types:
        raise reject_network(noun, f"is none of these kinds: {', '.join(model_types)}")
    _refuse_other_files(folder, config, noun)
    try:
        with silence_libraries():
            return _open_network(folder, class_name, device)
    except Exception as error:  # untrusted files, many classes: any error is possible
        raise reject_network(noun, "is none that transformers can open") from error


def reject_network(noun: str, reason: str) -> JobRejected:
    return JobRejected(f"The {noun} of this worker {reason}.", "worker")


def _open_network(folder: Path, class_name: str, device: torch.device) -> VisionNetwork:
    import transformers

    options: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    processor = cast(Any, transformers.AutoImageProcessor).from_pretrained(str(folder), **options)
    model = getattr(transformers, class_name).from_pretrained(
        str(folder), use_safetensors=True, dtype=torch.float32, **options
    )
    return VisionNetwork(model.eval().requires_grad_(False).to(device), processor)


def _read_config(folder: Path, noun: str) -> dict[str, Any]:
    try:
        path = folder / CONFIG_FILE
        config: object = json.loads(path.read_bytes()) if path.stat().st_size <= MAX_CONFIG_BYTES else None
    except (OSError, ValueError, RecursionError) as error:
        raise reject_network(noun, f"has no {CONFIG_FILE} that can be read") from error
    if not isinstance(config, dict):
        raise reject_network(noun, f"has no {CONFIG_FILE} that can be read")
    return cast(dict[str, Any], config)


def _refuse_other_files(folder: Path, config: dict[str, Any], noun: str) -> None:
    """Refuse a configuration that names weights besides the folder's own. Raises `JobRejected`."""
    backbone = config.get("backbone_config")
    for entries in (config, cast(dict[str, Any], backbone) if isinstance(backbone, dict) else {}):
        if entries.get("backbone") or entries.get("use_timm_backbone") or "auto_map" in entries:
            raise reject_network(noun, "names weights or code besides its own")
    if not any(folder.glob("*.safetensors")):
        raise reject_network(noun, "has no weights in safetensors")

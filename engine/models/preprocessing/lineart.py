"""Line drawings by the generator of "Learning to generate line drawings" (Chan et al. 2022), white on black.

ControlNets for line art were trained on its drawings. Its weights are published as a pickle; as safetensors they keep
their names.
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from engine.contract.rejection import JobRejected

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

"""Evaluates a super-resolver: PSNR and SSIM against Lanczos, its overshoot, and a sheet side by side.

Knows pictures that were never trained on; knows nothing of optimizers. Its results repeat exactly.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn

from engine.training.gan.losses import psnr, ssim
from engine.training.gan.pairs import SCALE, Pairs
from engine.training.gan.upscaler import Trainer
from engine.training.pictures.pixels import as_images
from engine.training.run import Losses
from engine.training.validate import write_sheet

STEPS = ((64, 192), (96, 160), (112, 144))  # mid greys, so that clipping does not hide overshoot


@torch.inference_mode()
def enlarged(network: nn.Module, small: np.ndarray) -> np.ndarray:
    """Enlarge uint8 [n, h, w, 3] to uint8 [n, 4h, 4w, 3], one after the other."""
    made = [network(as_images(one[None]) / 2 + 0.5)[0] for one in small]
    return torch.stack(made).mul(255).round().clamp(0, 255).byte().permute(0, 2, 3, 1).numpy()


def lanczos(small: np.ndarray) -> np.ndarray:
    """Enlarge by Lanczos, without a network."""
    height, width = (side * SCALE for side in small.shape[1:3])
    return np.stack(
        [np.asarray(Image.fromarray(one).resize((width, height), Image.Resampling.LANCZOS)) for one in small]
    )


def ringing(network: nn.Module, side: int = 64, border: int = 16) -> float:
    """Return the worst overshoot of a step between two mid greys, vertical or horizontal, in steps of 255."""
    charts = np.empty((2 * len(STEPS), side, side, 3), np.uint8)
    for number, (low, high) in enumerate(STEPS):
        charts[2 * number : 2 * number + 2] = low
        charts[2 * number, :, side // 2 :] = high
        charts[2 * number + 1, side // 2 :] = high
    found = enlarged(network, charts)[:, border:-border, border:-border].astype(np.int16)
    ends = np.repeat(np.array(STEPS), 2, axis=0)
    above = found.max(axis=(1, 2, 3)) - ends[:, 1]
    below = ends[:, 0] - found.min(axis=(1, 2, 3))
    return float(max(above.max(), below.max(), 0))


def figures(network: nn.Module, held_out: Pairs) -> Losses:
    """Return PSNR and SSIM on clean and mended pictures, their gain over Lanczos, and the overshoot."""
    found: dict[str, float] = {}
    wanted = as_images(held_out.large)
    for name, small in (("clean", held_out.clean), ("mended", held_out.mended)):
        ours, plain = as_images(enlarged(network, small)), as_images(lanczos(small))
        found[f"psnr_{name}"] = float(psnr(ours, wanted).mean())
        found[f"psnr_{name}_gain"] = float((psnr(ours, wanted) - psnr(plain, wanted)).mean())
        found[f"ssim_{name}"] = float(ssim(ours, wanted).mean())
        found[f"ssim_{name}_gain"] = float((ssim(ours, wanted) - ssim(plain, wanted)).mean())
    return {**found, "overshoot": ringing(network)}


@dataclass(frozen=True)
class Judge:
    """Evaluates the averaged network of `trainer` on drawings that were never trained on."""

    trainer: Trainer
    held_out: Pairs
    shown: int = 8

    def figures(self) -> Losses:
        return figures(self.trainer.average, self.held_out)

    def sheet(self, path: Path) -> None:
        """Write a line for each picture: Lanczos and ours of the clean one, the same of the mended one, the target."""
        path.parent.mkdir(parents=True, exist_ok=True)
        some = np.linspace(0, len(self.held_out) - 1, min(self.shown, len(self.held_out))).astype(int)
        clean, mended = self.held_out.clean[some], self.held_out.mended[some]
        columns = (
            lanczos(clean), enlarged(self.trainer.average, clean), lanczos(mended),
            enlarged(self.trainer.average, mended), self.held_out.large[some],
        )  # fmt: skip
        write_sheet(path, [one for row in zip(*columns, strict=True) for one in row], columns=len(columns), enlarge=1)

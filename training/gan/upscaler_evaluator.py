"""Evaluates a super-resolver: PSNR and SSIM against Lanczos, its overshoot, and a sheet side by side.

It uses pictures that were never trained on. Its results repeat exactly.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn

from engine.models.judge import as_images
from training.core.run import Metrics
from training.gan.losses import psnr, ssim
from training.gan.upscaler_pairs import UPSCALE_FACTOR, UpscalerPairs
from training.gan.upscaler_trainer import UpscalerTrainer
from training.pictures.picture_sheet import write_picture_sheet

GREY_STEPS = ((64, 192), (96, 160), (112, 144))  # mid greys, so that clipping does not hide overshoot


@torch.inference_mode()
def upscale_batch(network: nn.Module, small: np.ndarray) -> np.ndarray:
    """Upscale uint8 [n, h, w, 3] to uint8 [n, 4h, 4w, 3], one after the other."""
    device = next(network.parameters()).device
    outputs = [network(as_images(picture[None]).to(device) / 2 + 0.5)[0] for picture in small]
    return torch.stack(outputs).mul(255).round().clamp(0, 255).byte().permute(0, 2, 3, 1).cpu().numpy()


def upscale_with_lanczos(small: np.ndarray) -> np.ndarray:
    """Upscale by Lanczos, without a network."""
    height, width = (side * UPSCALE_FACTOR for side in small.shape[1:3])
    return np.stack(
        [np.asarray(Image.fromarray(picture).resize((width, height), Image.Resampling.LANCZOS)) for picture in small]
    )


def measure_ringing(network: nn.Module, side: int = 64, border: int = 16) -> float:
    """Return the worst overshoot of a step between two mid greys, vertical or horizontal, in steps of 255."""
    charts = np.empty((2 * len(GREY_STEPS), side, side, 3), np.uint8)
    for number, (low, high) in enumerate(GREY_STEPS):
        charts[2 * number : 2 * number + 2] = low
        charts[2 * number, :, side // 2 :] = high
        charts[2 * number + 1, side // 2 :] = high
    upscaled = upscale_batch(network, charts)[:, border:-border, border:-border].astype(np.int16)
    grey_ranges = np.repeat(np.array(GREY_STEPS), 2, axis=0)
    overshoot = upscaled.max(axis=(1, 2, 3)) - grey_ranges[:, 1]
    undershoot = grey_ranges[:, 0] - upscaled.min(axis=(1, 2, 3))
    return float(max(overshoot.max(), undershoot.max(), 0))


def measure_upscaler(network: nn.Module, held_out: UpscalerPairs) -> Metrics:
    """Return PSNR and SSIM on clean and decoded pictures, their gain over Lanczos, and the overshoot."""
    metrics: dict[str, float] = {}
    targets = as_images(held_out.large)
    for name, small in (("clean", held_out.clean), ("mended", held_out.decoded)):
        upscaled = as_images(upscale_batch(network, small))
        baseline = as_images(upscale_with_lanczos(small))
        metrics[f"psnr_{name}"] = float(psnr(upscaled, targets).mean())
        metrics[f"psnr_{name}_gain"] = float((psnr(upscaled, targets) - psnr(baseline, targets)).mean())
        metrics[f"ssim_{name}"] = float(ssim(upscaled, targets).mean())
        metrics[f"ssim_{name}_gain"] = float((ssim(upscaled, targets) - ssim(baseline, targets)).mean())
    return {**metrics, "overshoot": measure_ringing(network)}


@dataclass(frozen=True)
class UpscalerEvaluator:
    """Evaluates the averaged network of `trainer` on drawings that were never trained on."""

    trainer: UpscalerTrainer
    held_out: UpscalerPairs
    picture_count: int = 8

    def evaluate(self) -> Metrics:
        return measure_upscaler(self.trainer.average, self.held_out)

    def draw_sheet(self, path: Path) -> None:
        """Write a line for each picture: Lanczos and ours of the clean one, the same of the decoded one, the target."""
        path.parent.mkdir(parents=True, exist_ok=True)
        index = np.linspace(0, len(self.held_out) - 1, min(self.picture_count, len(self.held_out))).astype(int)
        clean = self.held_out.clean[index]
        decoded = self.held_out.decoded[index]
        columns = (
            upscale_with_lanczos(clean),
            upscale_batch(self.trainer.average, clean),
            upscale_with_lanczos(decoded),
            upscale_batch(self.trainer.average, decoded),
            self.held_out.large[index],
        )
        write_picture_sheet(
            path, [picture for row in zip(*columns, strict=True) for picture in row], columns=len(columns), zoom=1
        )

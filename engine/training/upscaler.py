"""Trains the super-resolver ×4, a small network in an architecture that spandrel loads ("RealESRGAN Compact").

Knows one step and what must be kept to repeat the next one exactly; knows nothing of files, clocks or where pictures
come from. What flat artwork shows at once, ringing, a colour that moved, a pattern on a plain, is in the loss: steps
between neighbours, means of areas, and whatever is outside of the target's range nearby. All chance is a function of
(seed, step).

Shi 2016 (the last layer); Wang 2021 (Real-ESRGAN, whose compact network this is); Ledig 2017 (a GAN that enlarges).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from spandrel.architectures.Compact import Compact
from torch import Tensor, nn

from engine.training.contest import Contest, Terms
from engine.training.learner import Learner
from engine.training.losses import gradient, overshoot, psnr, pyramid, ssim
from engine.training.pairs import SCALE, Pairs
from engine.training.pixels import as_images
from engine.training.run import Losses
from engine.training.validate import write_sheet

STEPS = ((64, 192), (96, 160), (112, 144))  # mid greys: clipping must not hide what overshoots


@dataclass(frozen=True)
class Settings(Terms):
    """What a run keeps from its first step to its last."""

    rate: float = 2e-3
    gan_weight: float = 0.05
    crop: int = 32  # pixels a side of the small picture
    edges: float = 0.5
    ringing: float = 1.0
    mended: float = 0.5  # how often the small picture comes back from the autoencoder


def fresh(seed: int, width: int = 48, depth: int = 12) -> nn.Module:
    """A network that has learnt nothing: it repeats each pixel four times four."""
    torch.manual_seed(seed)
    network = Compact(num_feat=width, num_conv=depth, upscale=SCALE, act_type="prelu")
    last = network.body[-1]
    for parameter in last.parameters():
        nn.init.zeros_(parameter)
    return network


def inside(name: str, parameter: Tensor) -> bool:
    """Whether a parameter is a matrix between two layers of the same width: those are Muon's."""
    return parameter.ndim == 4 and parameter.size(0) == parameter.size(1)


class Trainer:
    """A network and its discriminator at one position. `samples` counts crops seen."""

    def __init__(self, network: nn.Module, pairs: Pairs, settings: Settings) -> None:
        self.network = network.to(memory_format=torch.channels_last).train()  # pyright: ignore[reportCallIssue]
        self.pairs, self.settings = pairs, settings
        matrices = inside if settings.muon else None
        self.contest = Contest(Learner("network", self.network, ema=settings.ema, matrices=matrices), settings)
        self.steps = 0

    @property
    def average(self) -> nn.Module:
        return self.contest.generator.average

    @property
    def samples(self) -> int:
        return self.steps * self.settings.batch

    @property
    def rate(self) -> float:
        return self.contest.generator.rate

    def step(self, share: float) -> Losses:
        """One batch at this share of the run. Raises ValueError when the loss is not a number."""
        small, large = self._crops()
        with torch.autocast("cpu", torch.bfloat16):
            made = self.network(small / 2 + 0.5) * 2 - 1
        terms = self.settings

        def measure(image: Tensor) -> Tensor:
            wrong = pyramid(image, large) + terms.edges * gradient(image, large)
            return wrong + terms.ringing * overshoot(image, large)

        losses = self.contest.teach(made, large, measure, share)
        self.steps += 1
        return losses

    def tensors(self) -> dict[str, Tensor]:
        """Everything that the next step depends on, by name."""
        return self.contest.tensors()

    def restore(self, tensors: Mapping[str, Tensor], steps: int) -> None:
        """Goes back to a kept position: the next step gives what it gave then. Raises KeyError on a missing tensor."""
        self.contest.restore(tensors)
        self.steps = steps

    def _crops(self) -> tuple[Tensor, Tensor]:
        """Parts of pictures, turned and mirrored, small and large, from −1 to 1."""
        rng = np.random.default_rng([self.settings.seed, self.steps])
        crop, small, large = self.settings.crop, [], []
        for picture in rng.integers(0, len(self.pairs), self.settings.batch):
            source = self.pairs.mended if rng.random() < self.settings.mended else self.pairs.clean
            top, left = (int(place) for place in rng.integers(0, source.shape[1] - crop + 1, 2))
            turns, mirrored = int(rng.integers(4)), rng.random() < 0.5
            for found, pixels, times in ((small, source, 1), (large, self.pairs.large, SCALE)):
                rows, columns = (slice(start * times, (start + crop) * times) for start in (top, left))
                part = np.rot90(pixels[picture, rows, columns], turns)
                found.append(part[:, ::-1] if mirrored else part)
        return as_images(np.stack(small)), as_images(np.stack(large))


@torch.inference_mode()
def enlarged(network: nn.Module, small: np.ndarray) -> np.ndarray:
    """uint8 [n, h, w, 3] → uint8 [n, 4h, 4w, 3], one after the other."""
    made = [network(as_images(one[None]) / 2 + 0.5)[0] for one in small]
    return torch.stack(made).mul(255).round().clamp(0, 255).byte().permute(0, 2, 3, 1).numpy()


def lanczos(small: np.ndarray) -> np.ndarray:
    """The same without a network."""
    height, width = (side * SCALE for side in small.shape[1:3])
    return np.stack(
        [np.asarray(Image.fromarray(one).resize((width, height), Image.Resampling.LANCZOS)) for one in small]
    )


def ringing(network: nn.Module, side: int = 64, border: int = 16) -> float:
    """By how much of 255 the worst step of two mid greys is overshot, upright or lying."""
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
    """PSNR and SSIM of what the network makes, clean and mended, less what Lanczos makes; and the overshoot."""
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
    """Drawings never trained on, for the averaged network of `trainer`."""

    trainer: Trainer
    held_out: Pairs
    shown: int = 8

    def figures(self) -> Losses:
        return figures(self.trainer.average, self.held_out)

    def sheet(self, path: Path) -> None:
        """A line a picture: Lanczos and ours of the clean one, the same of the mended one, what was wanted."""
        path.parent.mkdir(parents=True, exist_ok=True)
        some = np.linspace(0, len(self.held_out) - 1, min(self.shown, len(self.held_out))).astype(int)
        clean, mended = self.held_out.clean[some], self.held_out.mended[some]
        columns = (
            lanczos(clean), enlarged(self.trainer.average, clean), lanczos(mended),
            enlarged(self.trainer.average, mended), self.held_out.large[some],
        )  # fmt: skip
        write_sheet(path, [one for row in zip(*columns, strict=True) for one in row], columns=len(columns), enlarge=1)

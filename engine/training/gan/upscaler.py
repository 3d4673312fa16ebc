"""Trains the super-resolver ×4, a small network in an architecture that spandrel loads ("RealESRGAN Compact").

Knows one step and the state that repeats the next one exactly; knows nothing of files, clocks or the source of the
pictures. The loss contains the errors that flat artwork shows at once, ringing, shifted colours, patterns on flat
areas: steps between neighbours, means of areas, and values outside the target's range nearby. All randomness is a
function of (seed, step).

Shi 2016 (the last layer); Wang 2021 (Real-ESRGAN, whose compact network this is); Ledig 2017 (a GAN that enlarges).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from spandrel import ModelLoader
from spandrel.architectures.Compact import Compact
from torch import Tensor, nn

from engine.super_resolver import BOUNDED
from engine.training import checkpoint
from engine.training.gan.contest import Contest, Terms
from engine.training.gan.losses import gradient, overshoot, pyramid
from engine.training.gan.pairs import SCALE, Pairs
from engine.training.learner import Learner
from engine.training.pictures.pixels import as_images
from engine.training.run import Losses


@dataclass(frozen=True)
class Settings(Terms):
    """The settings that stay the same for a whole run."""

    rate: float = 2e-3
    gan_weight: float = 0.05
    crop: int = 32  # pixels a side of the small picture
    edges: float = 0.5
    ringing: float = 2.0
    mended: float = 0.3  # share of the small pictures that come from the autoencoder


def fresh(seed: int, width: int = 48, depth: int = 12) -> nn.Module:
    """Build an untrained network: it repeats each pixel four times four."""
    torch.manual_seed(seed)
    network = Compact(num_feat=width, num_conv=depth, upscale=SCALE, act_type="prelu")
    last = network.body[-1]
    for parameter in last.parameters():
        nn.init.zeros_(parameter)
    return network


def load(path: Path) -> nn.Module:
    """Load a network of this architecture, fp32. Raises ValueError for another architecture or file."""
    try:
        if path.suffix.lower() != ".safetensors":  # the loader accepts pickles, too
            raise ValueError(path.suffix)
        found = ModelLoader().load_from_file(path)
    except Exception as error:  # the loader parses untrusted files and fails in many ways
        raise ValueError(f"{path} is no super-resolver in safetensors that spandrel knows.") from error
    if not isinstance(found.model, Compact) or found.scale != SCALE:
        raise ValueError(f"{path} is no RealESRGAN Compact that enlarges {SCALE} times: only these are trained.")
    return found.model.float()


def export(network: nn.Module, path: Path, *, flat: bool = True) -> None:
    """Write the network in fp16; `spandrel.ModelLoader().load_from_file` infers the rest from names and shapes.

    `flat` marks a network trained on artwork: enlarging with it clamps colours to the range nearby.
    """
    half = {name: tensor.half().contiguous() for name, tensor in network.state_dict().items()}
    checkpoint.save(path, half, {}, BOUNDED if flat else {})


def inside(name: str, parameter: Tensor) -> bool:
    """Tell whether a parameter is a matrix between layers of the same width, which Muon updates."""
    return parameter.ndim == 4 and parameter.size(0) == parameter.size(1)


class Trainer:
    """Trains a network with a discriminator. `samples` counts crops seen."""

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
        """Train one batch at this share of the run. Raises ValueError if the loss is not a number."""
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
        """Return everything that the next step depends on, by name."""
        return self.contest.tensors()

    def restore(self, tensors: Mapping[str, Tensor], steps: int) -> None:
        """Restore a saved position: the next step repeats exactly. Raises KeyError for a missing tensor."""
        self.contest.restore(tensors)
        self.steps = steps

    def _crops(self) -> tuple[Tensor, Tensor]:
        """Return random crops, rotated and mirrored, small and large, from −1 to 1."""
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

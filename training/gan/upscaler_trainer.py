"""Trains the super-resolver ×4, a small network in an architecture that spandrel loads ("RealESRGAN Compact").

It holds one step and the state that repeats the next one exactly. It is independent of files, clocks and the source of
the pictures. All randomness is a function of (seed, step).

The loss contains the errors that flat artwork shows at once: ringing, shifted colours, patterns on flat areas. It
measures them by the steps between neighbours, the means of areas, and values outside the target's range nearby.

Shi 2016 (the last layer); Wang 2021 (Real-ESRGAN, whose compact network this is); Ledig 2017 (a GAN for upscaling).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from spandrel import ModelLoader
from spandrel.architectures.Compact import Compact
from torch import Tensor, nn

from engine.device.torch_device import copy_to_device
from engine.models.judge import as_images
from engine.upscaling.super_resolver import CLAMP_METADATA
from training.core import checkpoint
from training.core.batch_trainer import BatchTrainer
from training.core.device import mixed_precision
from training.core.learner import Learner
from training.core.run import Metrics
from training.gan.gan_learner import GanLearner, GanSettings
from training.gan.losses import gradient_loss, overshoot_loss, pyramid_loss
from training.gan.upscaler_pairs import UPSCALE_FACTOR, UpscalerPairs


@dataclass(frozen=True)
class UpscalerSettings(GanSettings):
    """The settings that stay the same for a whole run."""

    rate: float = 2e-3
    gan_weight: float = 0.05
    crop: int = 32  # pixels a side of the small picture
    edges: float = 0.5
    ringing: float = 2.0
    mended: float = 0.3  # share of the small pictures that come from the autoencoder


def build_upscaler(seed: int, width: int = 48, depth: int = 12) -> nn.Module:
    """Build an untrained network: it repeats each pixel four times four."""
    torch.manual_seed(seed)
    network = Compact(num_feat=width, num_conv=depth, upscale=UPSCALE_FACTOR, act_type="prelu")
    last_layer = network.body[-1]
    for parameter in last_layer.parameters():
        nn.init.zeros_(parameter)
    return network


def load_upscaler(path: Path) -> nn.Module:
    """Load a network of this architecture, fp32. Raises ValueError for another architecture or file."""
    try:
        if path.suffix.lower() != ".safetensors":  # the loader accepts pickles, too
            raise ValueError(path.suffix)
        descriptor = ModelLoader().load_from_file(path)
    except Exception as error:  # the loader parses untrusted files and fails in many ways
        raise ValueError(f"{path} is no super-resolver in safetensors that spandrel knows.") from error
    if not isinstance(descriptor.model, Compact) or descriptor.scale != UPSCALE_FACTOR:
        raise ValueError(
            f"{path} is no RealESRGAN Compact that enlarges {UPSCALE_FACTOR} times: only these are trained."
        )
    return descriptor.model.float()


def export_upscaler(network: nn.Module, path: Path, *, flat: bool = True) -> None:
    """Write the network in fp16; `spandrel.ModelLoader().load_from_file` infers the rest from names and shapes.

    `flat` marks a network trained on artwork: an upscale with it clamps colours to the range nearby.
    """
    half_tensors = {name: tensor.half().contiguous() for name, tensor in network.state_dict().items()}
    checkpoint.save(path, half_tensors, {}, CLAMP_METADATA if flat else {})


def is_inner_matrix(name: str, parameter: Tensor) -> bool:
    """Tell whether a parameter is a matrix between layers of the same width, which Muon updates."""
    return parameter.ndim == 4 and parameter.size(0) == parameter.size(1)


class UpscalerTrainer(BatchTrainer[GanLearner]):
    """Trains a network with a discriminator. `samples` counts crops seen."""

    def __init__(self, network: nn.Module, pairs: UpscalerPairs, settings: UpscalerSettings) -> None:
        self.network: nn.Module = cast(Any, network).to(memory_format=torch.channels_last).train()
        self.pairs = pairs
        self.settings = settings
        self.device = next(network.parameters()).device
        is_muon_matrix = is_inner_matrix if settings.muon else None
        generator_learner = Learner("network", self.network, ema=settings.ema, is_muon_matrix=is_muon_matrix)
        super().__init__(GanLearner(generator_learner, settings), settings.batch)

    @property
    def average(self) -> nn.Module:
        return self.learner.generator_learner.average

    def step(self, progress: float) -> Metrics:
        """Train one batch at this share of the run. Raises ValueError if the loss is not a number."""
        small, large = (copy_to_device(crops, self.device) for crops in self._random_crops())
        with mixed_precision(self.device):
            output = self.network(small / 2 + 0.5) * 2 - 1
        settings = self.settings

        def measure_loss(image: Tensor) -> Tensor:
            loss = pyramid_loss(image, large) + settings.edges * gradient_loss(image, large)
            return loss + settings.ringing * overshoot_loss(image, large)

        losses = self.learner.update(output, large, measure_loss, progress)
        self.steps += 1
        return losses

    def _random_crops(self) -> tuple[Tensor, Tensor]:
        """Return random crops, rotated and mirrored, small and large, from −1 to 1."""
        rng = np.random.default_rng([self.settings.seed, self.steps])
        crop_side = self.settings.crop
        small = list[np.ndarray]()
        large = list[np.ndarray]()
        for number in rng.integers(0, len(self.pairs), self.settings.batch):
            source = self.pairs.decoded if rng.random() < self.settings.mended else self.pairs.clean
            top, left = (int(offset) for offset in rng.integers(0, source.shape[1] - crop_side + 1, 2))
            quarter_turns = int(rng.integers(4))
            mirrored = rng.random() < 0.5
            for crops, pixels, scale in ((small, source, 1), (large, self.pairs.large, UPSCALE_FACTOR)):
                rows, columns = (slice(start * scale, (start + crop_side) * scale) for start in (top, left))
                patch = np.rot90(pixels[number, rows, columns], quarter_turns)
                crops.append(patch[:, ::-1] if mirrored else patch)
        return as_images(np.stack(small)), as_images(np.stack(large))

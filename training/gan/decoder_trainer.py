"""Trains the large decoder: L1 on a pyramid, edges, sharpness, a perceptual loss, a discriminator.

It holds one step and the state that repeats the next one exactly. It is independent of files, clocks and the source of
the pictures. Half of each batch is decoded from latents that a diffusion network denoised, half from the encoder's with
a little noise: so the decoder mends the network's errors, and stays right for pictures that were encoded.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from torch import Tensor, nn
from torch.nn import functional as F

from engine.device.torch_device import copy_to_device
from engine.models.autoencoder.large_decoder import ADDED_LEVELS, LARGE_FACTOR, LargeDecoder
from training.core.batch_trainer import BatchTrainer
from training.core.checkpoint import copy_common_part
from training.core.device import mixed_precision
from training.core.learner import Learner
from training.core.muon import is_hidden_matrix
from training.core.rng import batch_indices, step_generator
from training.core.run import Metrics
from training.gan.autoencoder_trainer import DecoderTask
from training.gan.decoder_pictures import DecoderPictures
from training.gan.gan_learner import GanLearner, GanSettings
from training.gan.losses import gradient_loss, pyramid_loss, sharpness_loss
from training.gan.perceptual_loss import PerceptualLoss, draw_offset

PYRAMID_LEVELS = 5  # from 256 px down to 16
WINDOW = 64  # pixels a side of the part that the judge sees at full size
FIT_RIDGE = 1e-5  # of the mean square of the features
OUTPUT_LAYERS = ("decoder.conv_norm_out.", "decoder.conv_out.")


@dataclass(frozen=True)
class DecoderSettings(GanSettings):
    """The settings that stay the same for a whole run."""

    batch: int = 8
    ema: float = 0.999
    gan_from: float = 0.3
    gan_weight: float = 0.5
    widths: str = ""  # of the added levels or of all, from the pixels' end; empty: the autoencoder's outermost
    pictures: int = 3000
    crop: int = 12  # latents a side
    noise: float = 0.6  # the most noise of the encoder's latents, as a share of the posterior's deviation
    subject: float = 2.0  # added weight of a pixel of the subject
    edges: float = 0.5
    sharpness: float = 0.5
    perceptual: float = 0.1


def parse_widths(widths: str, autoencoder: AutoencoderKL) -> list[int]:
    """Return the width of each level from the pixels' end. Raises ValueError with a sentence."""
    own = list(autoencoder.config["block_out_channels"])
    groups = int(autoencoder.config["norm_num_groups"])
    words = widths.split(",") if widths else [str(own[0])] * ADDED_LEVELS
    numbers = [int(word) if word.strip().isdecimal() else 0 for word in words]
    if len(numbers) not in (ADDED_LEVELS, ADDED_LEVELS + len(own)):
        raise ValueError(f"--widths takes {ADDED_LEVELS} or {ADDED_LEVELS + len(own)} widths, and has {len(numbers)}.")
    if any(width < 1 or width > 1024 or width % groups for width in numbers):
        raise ValueError(f"--widths takes multiples of {groups} up to 1024, such as 16,24.")
    return numbers if len(numbers) > ADDED_LEVELS else [*numbers, *own]


@torch.no_grad()
def build_large_decoder(autoencoder: AutoencoderKL, widths: Sequence[int], seed: int) -> LargeDecoder:
    """Build a decoder with the autoencoder's weights in the levels that both have.

    A narrower level gets the first channels. Each new level begins as a linear map of the one within.
    """
    config = autoencoder.config
    names = ("latent_channels", "layers_per_block", "norm_num_groups", "mid_block_add_attention")
    shared: dict[str, Any] = {name: config[name] for name in names}
    torch.manual_seed(seed)
    network = LargeDecoder(
        block_out_channels=list(widths),
        use_post_quant_conv=autoencoder.post_quant_conv is not None,
        scaling_factor=float(config["scaling_factor"]),
        shift_factor=config.get("shift_factor"),
        **shared,
    )
    targets = network.state_dict()
    for name, tensor in autoencoder.state_dict().items():
        if name in targets and not name.startswith(OUTPUT_LAYERS):
            copy_common_part(tensor, targets[name])
    _simplify_new_levels(network, len(config["block_out_channels"]))
    return network


def _simplify_new_levels(network: LargeDecoder, own_levels: int) -> None:
    for level, block in enumerate(cast(Any, network.decoder.up_blocks)):
        if level >= own_levels - 1:
            for upsampler in block.upsamplers or ():
                nn.init.dirac_(upsampler.conv.weight)
                nn.init.zeros_(upsampler.conv.bias)
        for resnet in block.resnets if level >= own_levels else ():
            nn.init.zeros_(resnet.conv2.weight)
            nn.init.zeros_(resnet.conv2.bias)


@torch.no_grad()
def fit_output_layer(network: LargeDecoder, latents: Tensor, images: Tensor) -> None:
    """Set the last layer to the least-squares fit of `images` [n, 3, height, width] from their latents [n, c, h, w].

    So a training begins with the autoencoder's picture, about, and not with grey.
    """
    layer = network.decoder.conv_out
    device = next(network.parameters()).device
    size = layer.weight[0].numel() + 1
    products = torch.zeros(size, size, dtype=torch.float64)
    moments = torch.zeros(size, 3, dtype=torch.float64)
    features = list[Tensor]()
    hook = layer.register_forward_pre_hook(lambda _layer, inputs: features.append(inputs[0]))
    for row, image in zip(latents, images, strict=True):
        network(row[None].to(device))
        patches = F.unfold(features.pop().float().cpu(), 3, padding=1)[0]
        patches = F.pad(patches, (0, 0, 0, 1), value=1.0).double()  # the last row is for the bias
        products += patches @ patches.T
        moments += patches @ image.flatten(1).T.double()
    hook.remove()
    ridge = FIT_RIDGE * products.diagonal().mean() * torch.eye(size, dtype=torch.float64)
    solution = cast(Any, torch.linalg).solve(products + ridge, moments).T
    layer.weight.copy_(solution[:, :-1].reshape(layer.weight.shape))
    cast(Tensor, layer.bias).copy_(solution[:, -1])


class DecoderTrainer(BatchTrainer[GanLearner]):
    """Trains a large decoder with a discriminator. `samples` counts crops seen."""

    def __init__(
        self,
        network: LargeDecoder,
        pictures: DecoderPictures,
        settings: DecoderSettings,
        perception: PerceptualLoss | None = None,
    ) -> None:
        cast(Any, network).to(memory_format=torch.channels_last)
        self.network = network.train()
        self.device = next(network.parameters()).device
        self.pictures = pictures
        self.settings = settings
        self.perception = perception
        is_muon_matrix = is_hidden_matrix if settings.muon else None
        learner = Learner("network", network, ema=settings.ema, is_muon_matrix=is_muon_matrix)
        super().__init__(GanLearner(learner, settings), min(settings.batch, len(pictures)))

    @property
    def average(self) -> LargeDecoder:
        return cast(LargeDecoder, self.learner.generator_learner.average)

    def step(self, progress: float) -> Metrics:
        """Train one batch at this share of the run. Raises ValueError if the loss is not a number."""
        generator = step_generator(self.settings.seed, self.steps)
        task = self._draw_task(generator)
        offset = draw_offset(generator)
        window = self._draw_window(task.images.size(-1), generator)
        with mixed_precision(self.device):
            output = self.network(task.latents)

        def measure_loss(image: Tensor) -> Tensor:
            return self._reconstruction_loss(image, task, offset, window)

        losses = self.learner.update(output, task.images, measure_loss, progress)
        self.steps += 1
        return losses

    def _draw_task(self, generator: torch.Generator) -> DecoderTask:
        """Draw crops. The first half of the rows are denoised; the halves of an odd batch take turns.

        The order of a batch is random, so every picture comes in both halves.
        """
        indices = batch_indices(self.settings.seed, self.steps, len(self.pictures), self.batch_size)
        denoised_count = (len(indices) + self.steps % 2) // 2
        means = self.pictures.means[indices]
        deviations = self.pictures.deviations[indices]
        strength = torch.rand((len(means), 1, 1, 1), generator=generator) * self.settings.noise
        noisy = means + deviations * strength * torch.randn(means.shape, generator=generator)
        latents = torch.cat([self.pictures.read_denoised(indices[:denoised_count]), noisy[denoised_count:]])
        side = min(self.settings.crop, latents.size(-1))
        corners = torch.randint(latents.size(-1) - side + 1, (len(indices), 2), generator=generator).numpy()
        crops = torch.stack(
            [row[:, top : top + side, left : left + side] for row, (top, left) in zip(latents, corners, strict=True)]
        )
        images, masks = self.pictures.read_crops(indices, corners, side)
        tensors = (crops, images, 1 + self.settings.subject * masks)
        return DecoderTask(*(copy_to_device(tensor, self.device) for tensor in tensors))

    def _draw_window(self, side: int, generator: torch.Generator) -> tuple[slice, slice]:
        corner = torch.randint(max(1, side - WINDOW + 1), (2,), generator=generator)
        top, left = cast(list[int], corner.tolist())
        return slice(top, top + WINDOW), slice(left, left + WINDOW)

    def _reconstruction_loss(
        self, image: Tensor, task: DecoderTask, offset: tuple[int, int], window: tuple[slice, slice]
    ) -> Tensor:
        settings = self.settings
        target = task.images
        loss = pyramid_loss(image, target, task.weight, PYRAMID_LEVELS) + settings.edges * gradient_loss(image, target)
        if settings.sharpness > 0:
            loss = loss + settings.sharpness * sharpness_loss(image, target)
        if self.perception is None or settings.perceptual <= 0:
            return loss
        small, small_target = (F.avg_pool2d(each, LARGE_FACTOR) for each in (image, target))
        distance = self.perception.distance(small, small_target, offset)
        distance = distance + self.perception.distance(image[..., *window], target[..., *window])
        return loss + settings.perceptual * distance / 2

"""Trains and evaluates the large decoder: L1 on a pyramid, edges, sharpness, a perceptual loss, a discriminator.

A picture is a variant of the built-in artwork at 256 px; its small copy is the mean of each area. Half of each batch is
decoded from latents that a diffusion network denoised, half from the encoder's with a little noise: so the decoder
mends the network's errors, and stays right for pictures that were encoded. All randomness is a function of (seed,
step).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from engine.device.memory import copy_to_device
from engine.models.autoencoder.large_decoder import ADDED_LEVELS, LARGE_FACTOR, LargeDecoder
from engine.models.judge import as_images
from engine.upscaling.super_resolver import SuperResolver
from training.core.checkpoint import copy_common_part
from training.core.learner import batch_indices, mixed_precision, spread_rows, step_generator
from training.core.run import Metrics
from training.gan.autoencoder_trainer import DecoderTask
from training.gan.gan_learner import GanSettings, GanTrainer
from training.gan.latent_coding import decode_all, encode_all
from training.gan.losses import (
    PerceptualLoss,
    draw_offset,
    gradient_energy,
    gradient_loss,
    psnr,
    pyramid_loss,
    sharpness_loss,
)
from training.gan.upscaler_trainer import LARGE_SIDE, MIN_DETAILED_SIDE
from training.pictures.artwork import Artwork
from training.pictures.masked_pictures import ProgressCallback, as_pictures, find_subject, write_picture_sheet
from training.pictures.variants import Variant, render_variant

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


class DecoderTrainer(GanTrainer[LargeDecoder]):
    """Trains a large decoder with a discriminator. `samples` counts crops seen."""

    def __init__(
        self,
        network: LargeDecoder,
        pictures: DecoderPictures,
        settings: DecoderSettings,
        perception: PerceptualLoss | None = None,
    ) -> None:
        self.pictures = pictures
        self.settings = settings
        self.perception = perception
        super().__init__(network, settings, min(settings.batch, len(pictures)))

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
        starts = zip(latents, corners, strict=True)
        crops = torch.stack([row[:, top : top + side, left : left + side] for row, (top, left) in starts])
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


ENCODE_BATCH = 128


@dataclass(frozen=True)
class TwoSizePictures:
    """`large` uint8 [n, 256, 256, 3], `small` uint8 [n, 64, 64, 3], and each picture's caption."""

    large: np.ndarray
    small: np.ndarray
    captions: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.large)


@dataclass(frozen=True)
class DecoderPictures:
    """Large pictures with the latents of their small copies, unscaled as the decoder takes them.

    `means`, `deviations` [n, c, h, w] are the encoder's. `denoised` fp16 [n, c, h, w] has a diffusion network's errors.
    `subject_masks` bool [n, 64, 64].
    """

    large: np.ndarray
    subject_masks: np.ndarray
    means: Tensor
    deviations: Tensor
    denoised: np.ndarray

    def __len__(self) -> int:
        return len(self.large)

    @property
    def scale(self) -> int:
        """Return pixels a latent along a side."""
        return self.large.shape[1] // self.means.size(-1)

    def read_denoised(self, index: np.ndarray) -> Tensor:
        """Return the denoised latents of these pictures, fp32 [n, c, h, w]."""
        return torch.from_numpy(self.denoised[index]).float()

    def read_crops(self, index: np.ndarray, corners: np.ndarray, side: int) -> tuple[Tensor, Tensor]:
        """Return crops of `side` latents from `corners` [n, 2] (top, left, in latents): pictures and subject masks.

        fp32 [n, 3, scale·side, scale·side] from −1 to 1, and [n, 1, scale·side, scale·side] of 0 or 1.
        """
        images = _crop_all(self.large, index, corners, side, self.scale)
        masks = _crop_all(self.subject_masks, index, corners, side, self.scale // LARGE_FACTOR)
        return as_images(images), F.interpolate(torch.from_numpy(masks[:, None]).float(), scale_factor=LARGE_FACTOR)


def render_large_variants(
    drawings: Sequence[Artwork],
    count: int,
    first_number: int,
    seed: int,
    on_progress: ProgressCallback = lambda finished, total: None,
) -> TwoSizePictures:
    """Render `count` variants of the drawings with enough detail, in turn, numbered from `first_number`.

    Raises ValueError if no drawing has enough detail.
    """
    detailed = [drawing for drawing in drawings if max(drawing.pixels.size) >= MIN_DETAILED_SIDE]
    if not detailed:
        raise ValueError(f"no drawing has {MIN_DETAILED_SIDE} pixels a side: there is nothing to learn detail from")
    order = np.random.default_rng([seed, first_number]).permutation(len(detailed))
    variants = list[Variant]()
    for number in range(count):
        drawing = detailed[int(order[number % len(detailed)])]
        variants.append(render_variant(drawing, first_number + number // len(detailed), seed, LARGE_SIDE))
        on_progress(len(variants), count)
    return TwoSizePictures(
        np.stack([variant.pixels for variant in variants]),
        np.stack([shrink_by_area(variant.pixels) for variant in variants]),
        tuple(variant.caption for variant in variants),
    )


def shrink_by_area(picture: np.ndarray) -> np.ndarray:
    """Return a picture uint8 [h, w, 3] at a quarter of its sides, each pixel the mean of its area."""
    return np.asarray(Image.fromarray(picture).reduce(LARGE_FACTOR))


def encode_large_pictures(
    autoencoder: AutoencoderKL, pictures: TwoSizePictures, denoised: np.ndarray
) -> DecoderPictures:
    """Encode the small copies, and add their denoised latents [n, c, h, w]."""
    device = next(autoencoder.parameters()).device
    means = list[Tensor]()
    deviations = list[Tensor]()
    for start in range(0, len(pictures), ENCODE_BATCH):
        posterior = encode_all(autoencoder, as_images(pictures.small[start : start + ENCODE_BATCH]).to(device))
        means.append(posterior.mean.cpu())
        deviations.append(posterior.deviation.cpu())
    masks = np.stack([find_subject(picture) for picture in pictures.small])
    return DecoderPictures(pictures.large, masks, torch.cat(means), torch.cat(deviations), denoised)


def _crop_all(pixels: np.ndarray, index: np.ndarray, corners: np.ndarray, side: int, scale: int) -> np.ndarray:
    crops = list[np.ndarray]()
    for row, (top, left) in zip(index, corners * scale, strict=True):
        crops.append(pixels[row, top : top + side * scale, left : left + side * scale])
    return np.stack(crops)


DECODE_BATCH = 8
Decode = Callable[[Tensor], np.ndarray]  # latents [n, c, h, w] → uint8 [n, 256, 256, 3]


def measure_decoder(decode: Decode, held_out: DecoderPictures) -> Metrics:
    """Return the PSNR of encoded (`psnr`) and denoised latents, and the gradient energies, drawn ÷ real, of these.

    `denoised_gradient_ratio` is measured in the large pictures, `small_gradient_ratio` in their small copies.
    """
    target = as_images(held_out.large)
    encoded = as_images(decode(held_out.means))
    denoised = as_images(decode(held_out.read_denoised(np.arange(len(held_out)))))
    small, small_target = (F.avg_pool2d(images, LARGE_FACTOR) for images in (denoised, target))
    return {
        "psnr": float(psnr(encoded, target).mean()),
        "denoised_psnr": float(psnr(denoised, target).mean()),
        "denoised_gradient_ratio": gradient_energy(denoised) / max(gradient_energy(target), 1e-12),
        "small_gradient_ratio": gradient_energy(small) / max(gradient_energy(small_target), 1e-12),
    }


@torch.inference_mode()
def decode_large(network: LargeDecoder, latents: Tensor) -> np.ndarray:
    """Decode latents [n, c, h, w] to uint8 [n, 256, 256, 3], in fp32."""
    device = next(network.parameters()).device
    return np.concatenate([as_pictures(network(part.to(device))) for part in torch.split(latents, DECODE_BATCH)])


def decode_and_upscale(autoencoder: AutoencoderKL, resolver: SuperResolver, latents: Tensor) -> np.ndarray:
    """Decode latents in two passes, as a model without a large decoder does."""
    device = next(autoencoder.parameters()).device
    small = as_pictures(decode_all(autoencoder, latents.to(device)))
    return np.stack([np.asarray(resolver.upscale(Image.fromarray(picture), LARGE_FACTOR)) for picture in small])


@dataclass(frozen=True)
class DecoderEvaluator:
    """Evaluates the averaged network of `trainer`; `decode_before` decodes in two passes, as before it."""

    trainer: DecoderTrainer
    held_out: DecoderPictures
    decode_before: Decode
    picture_count: int = 12

    def evaluate(self) -> Metrics:
        return measure_decoder(lambda latents: decode_large(self.trainer.average, latents), self.held_out)

    def draw_sheet(self, path: Path) -> None:
        """Write triples from denoised latents: the drawing, decoded in two passes, by the large decoder."""
        index = spread_rows(len(self.held_out), self.picture_count)
        latents = self.held_out.read_denoised(index)
        columns = self.held_out.large[index], self.decode_before(latents), decode_large(self.trainer.average, latents)
        pictures = [picture for triple in zip(*columns, strict=True) for picture in triple]
        write_picture_sheet(path, pictures, columns=6, zoom=1)

"""Evaluates a large decoder on held-out drawings, beside the autoencoder with the super-resolver.

Its results repeat exactly.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from engine.models.autoencoder.large_decoder import LARGE_FACTOR, LargeDecoder
from engine.models.judge import as_images
from engine.upscaling.super_resolver import SuperResolver
from training.core.run import Metrics
from training.gan.decoder_pictures import DecoderPictures
from training.gan.decoder_trainer import DecoderTrainer
from training.gan.latent_coding import decode_all
from training.gan.losses import gradient_energy, psnr
from training.pictures.masked_pictures import as_pictures
from training.pictures.picture_sheet import write_picture_sheet

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
        path.parent.mkdir(parents=True, exist_ok=True)
        index = np.linspace(0, len(self.held_out) - 1, min(self.picture_count, len(self.held_out))).astype(int)
        latents = self.held_out.read_denoised(index)
        columns = self.held_out.large[index], self.decode_before(latents), decode_large(self.trainer.average, latents)
        write_picture_sheet(
            path, [picture for triple in zip(*columns, strict=True) for picture in triple], columns=6, zoom=1
        )

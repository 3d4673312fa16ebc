"""Small pictures, caches, networks and autoencoders for the tests of training."""

from __future__ import annotations

import io
import tarfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from PIL import Image, ImageDraw

from training.diffusion.latent_cache import LatentCache
from training.gan.autoencoder_trainer import build_autoencoder
from training.gan.decoder_trainer import DecoderPictures, encode_large_pictures, render_large_variants
from training.gan.upscaler_trainer import LARGE_SIDE, UpscalerPairs
from training.pictures import artwork
from training.pictures.artwork import Artwork, Package, is_held_out
from training.pictures.captions import clean_description
from training.pictures.masked_pictures import MaskedPictures, mask_pictures

SHAPE: dict[str, Any] = {
    "sample_size": 32,
    "latent_channels": 4,
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "block_out_channels": (8, 8, 16),
    "mid_block_add_attention": False,
    "scaling_factor": 1.0,
    "down_block_types": ("DownEncoderBlock2D",) * 3,
    "up_block_types": ("UpDecoderBlock2D",) * 3,
}


def blobs(count: int, side: int) -> list[np.ndarray]:
    """Squares of one colour on another, at random places."""
    rng = np.random.default_rng(5)
    pictures = []
    for _ in range(count):
        picture = np.empty((side, side, 3), np.uint8)
        picture[:] = rng.integers(0, 256, 3)
        top, left = rng.integers(2, side // 2, 2)
        picture[top : top + side // 3, left : left + side // 3] = rng.integers(0, 256, 3)
        pictures.append(picture)
    return pictures


def pixels() -> MaskedPictures:
    return mask_pictures(blobs(16, 32))


def small_pairs(count: int = 12) -> UpscalerPairs:
    large = np.stack(blobs(count, 64))
    small = large.reshape(count, 16, 4, 16, 4, 3).mean(axis=(2, 4)).astype(np.uint8)
    return UpscalerPairs(large, small, small)


def are_same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def make_network(**fields: Any) -> UNet2DConditionModel:
    torch.manual_seed(2)
    defaults: dict[str, Any] = {
        "sample_size": 16,
        "in_channels": 4,
        "out_channels": 4,
        "block_out_channels": (16, 32),
        "layers_per_block": 1,
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "norm_num_groups": 4,
        "attention_head_dim": 4,
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        "cross_attention_dim": 384,
    }
    return UNet2DConditionModel(**(defaults | fields)).eval()


SCHEDULE = {
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "prediction_type": "v_prediction",
    "rescale_betas_zero_snr": True,
    "timestep_spacing": "trailing",
}


def draw_artwork(
    label: str, *tags: str, colour: str = "red", group: int = 5, key: str = "flat-design/1f697"
) -> Artwork:
    pixels = Image.new("RGBA", (64, 64), (0, 0, 0, 0))
    ImageDraw.Draw(pixels).ellipse((8, 8, 56, 56), fill=colour)
    return Artwork(key, clean_description(label, tags), group, "flat design", "CC-BY-4.0", "somebody", pixels)


def tiny_network(seed: int = 0) -> UNet2DConditionModel:
    torch.manual_seed(seed)
    return UNet2DConditionModel(
        sample_size=4,
        in_channels=4,
        out_channels=4,
        block_out_channels=(16, 32),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=64,
        attention_head_dim=4,
        norm_num_groups=4,
    )


def tiny_cache(count: int = 20) -> LatentCache:
    rng = np.random.default_rng(3)
    latents = rng.normal(size=(count, 4, 4, 4)).astype(np.float16)
    states = rng.normal(size=(count, 6, 64)).astype(np.float16)
    return LatentCache(latents, states, np.zeros((6, 64), np.float32), ("a ball",) * count)


def tiny_autoencoder(latent_channels: int = 4) -> AutoencoderKL:
    torch.manual_seed(0)
    shape = {
        "block_out_channels": (8, 8, 8, 8),
        "down_block_types": ("DownEncoderBlock2D",) * 4,
        "up_block_types": ("UpDecoderBlock2D",) * 4,
    }
    return AutoencoderKL(
        sample_size=32, latent_channels=latent_channels, norm_num_groups=4, scaling_factor=1.0, **shape
    ).eval()


def archive_of(folder: Path, package: Package, members: dict[str, bytes]) -> Package:
    """A package as `npm pack` writes it, with the hash of its bytes."""
    with tarfile.open(folder / package.archive_name, "w:gz") as tar:
        for name, content in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    pinned_package = Package(
        package.name, package.version, "", package.licence, package.credit, package.style, package.folder
    )
    digest = artwork.compute_integrity((folder / package.archive_name).read_bytes())
    return Package(**{**pinned_package.__dict__, "integrity": digest})


def make_autoencoder(**fields: Any) -> AutoencoderKL:
    return build_autoencoder(1, {**SHAPE, "sample_size": 64, **fields}).eval()


def make_drawings() -> list[Artwork]:
    """A few large circles, of which some are held out."""
    keys = [f"flat-design/{code:x}" for code in range(0x1F300, 0x1F308)]
    assert 0 < sum(map(is_held_out, keys)) < len(keys)
    drawings = [draw_artwork("ball", "toy", colour=f"#{30 * n:02x}8020", key=key) for n, key in enumerate(keys)]
    return [replace(drawing, pixels=drawing.pixels.resize((LARGE_SIDE, LARGE_SIDE))) for drawing in drawings]


def make_pictures(count: int = 4) -> DecoderPictures:
    """Pictures whose denoised latents are their number plus 100."""
    pictures = render_large_variants(make_drawings(), count, 0, 0)
    numbers = np.arange(count, dtype=np.float16).reshape(-1, 1, 1, 1) + 100
    return encode_large_pictures(make_autoencoder(), pictures, np.broadcast_to(numbers, (count, 4, 16, 16)))


THINGS = ("apple", "car", "cat", "dog", "ship", "tiger")


WIDTHS = (8, 16, 24)


def drawing(label: str, number: int, style: str = "flat design") -> Artwork:
    """A shape that no other number has."""
    pixels = Image.new("RGBA", (64, 64), (0, 0, 0, 0))
    pen = ImageDraw.Draw(pixels)
    colour = ((number * 97) % 200, (number * 53) % 200, (number * 29) % 200, 255)
    pen.regular_polygon((32, 32, 28), 3 + number % 5, rotation=number * 17, fill=colour)
    pen.rectangle((8 * (number % 6), 20, 8 * (number % 6) + 12, 34), fill=(255 - colour[0], 40, 200, 255))
    return Artwork(f"{style}/{number:x}", clean_description(label, ["thing"]), 5, style, "MIT", "somebody", pixels)


def drawings() -> list[Artwork]:
    return [drawing(label, number) for number, label in enumerate(THINGS)]

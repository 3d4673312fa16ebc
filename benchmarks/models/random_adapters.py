"""Writes an IP-Adapter of real size with random weights, and the picture that both sides refer to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw

from benchmarks.fixtures.small_ip_adapters import (
    ADAPTER_FILE,
    ENCODER_FOLDER,
    AdapterWidths,
    build_image_encoder,
    list_adapter_shapes,
)
from benchmarks.models.random_weights import write_network, write_weights

# The published "plus" adapters have 16 tokens. Their image encoder is ViT-H; ViT-L encodes once, and takes a third.
REAL_WIDTHS = AdapterWidths(encoder=1024, projection=768, hidden=768, tokens=16)
PICTURE_SIDE = 512
SMALL_NETWORK = 10_000_000  # parameters: for a smaller network the adapter is small, too
SCALE = 0.6


def ensure_adapter(folder: Path, unet: Any) -> Path:
    """Write an adapter for a U-Net into `folder`, unless one is there."""
    encoder_folder = folder / ENCODER_FOLDER
    if not (encoder_folder / "model.safetensors").exists():
        is_small = sum(each.numel() for each in unet.parameters()) < SMALL_NETWORK
        widths = AdapterWidths() if is_small else REAL_WIDTHS
        with torch.device("meta"):
            encoder = build_image_encoder(*((32, 8, 3, 4) if is_small else (224, 14, 24, 16)), widths)
        encoder_folder.mkdir(parents=True, exist_ok=True)
        write_weights(dict(list_adapter_shapes(unet, is_plus=True, widths=widths)), folder / ADAPTER_FILE)
        write_network(encoder, encoder_folder)
    return folder


def save_picture(path: Path) -> Path:
    """Save the picture that both sides refer to."""
    picture = Image.new("RGB", (PICTURE_SIDE, PICTURE_SIDE), "teal")
    ImageDraw.Draw(picture).ellipse((90, 60, 420, 390), fill="orange")
    picture.save(path)
    return path

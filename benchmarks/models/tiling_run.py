"""Measures an autoencoder whole and in tiles, in its own process: peak memory and seconds.

python -m benchmarks.models.tiling_run RUN_SPEC.json

It prints one line of JSON for encoding a picture of `side` pixels, and one for decoding it.
"""

from __future__ import annotations

import gc
import json
import sys
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from benchmarks.models.diffusers_run import print_output_line, read_memory, synchronize_gpu
from benchmarks.models.memory_run import reset_peak_memory
from engine.device.memory import choose_device
from engine.models.autoencoder import autoencoder
from engine.models.autoencoder.autoencoder import avoid_overflow
from engine.models.network.network_copies import detach_from_file


def main(run_spec: dict[str, Any]) -> None:
    device = choose_device()
    tile = run_spec["tile"]
    vae = import_module("diffusers").AutoencoderKL.from_pretrained(
        run_spec["folder"], subfolder="vae", dtype=getattr(torch, run_spec["dtype"])
    )
    vae = detach_from_file(vae.to(device))
    factor = autoencoder.get_pixels_per_latent(vae)
    side = run_spec["side"]
    pixels = torch.rand(1, 3, side, side, generator=torch.Generator().manual_seed(0)).to(device, vae.dtype) * 2 - 1
    autoencoder.TILE = tile
    autoencoder.OVERLAP = tile // 4

    def decode(part: torch.Tensor) -> torch.Tensor:
        return vae.decode(part, return_dict=False)[0].float()

    def encode(part: torch.Tensor) -> torch.Tensor:
        return vae.encode(part).latent_dist.mean.float()

    with avoid_overflow(vae):
        pixels = pixels.to(vae.dtype)
        encode(pixels[..., :tile, :tile])  # builds the kernels
        latents = _measure(
            "encode",
            autoencoder.estimate_encode_bytes(vae, pixels),
            lambda: encode(pixels),
            lambda: autoencoder.encode_tiles(encode, pixels, factor),
        ).to(vae.dtype)
        _measure(
            "decode",
            autoencoder.estimate_decode_bytes(vae, latents),
            lambda: decode(latents),
            lambda: autoencoder.decode_tiles(decode, latents, factor),
        )


def _measure(
    name: str, predicted: int, run_whole: Callable[[], torch.Tensor], run_tiles: Callable[[], torch.Tensor]
) -> torch.Tensor:
    """Measure both ways, print the line, and return the whole result."""
    result, whole_seconds, whole_mb = _measure_run(run_whole)
    _, tiled_seconds, tiled_mb = _measure_run(run_tiles)
    print_output_line(
        name=name,
        predicted_mb=predicted / 2**20,
        whole_mb=whole_mb,
        tiled_mb=tiled_mb,
        whole_seconds=whole_seconds,
        tiled_seconds=tiled_seconds,
    )
    return result


def _measure_run(run: Callable[[], torch.Tensor]) -> tuple[torch.Tensor, float, float]:
    """Return the result, the seconds, and the MB that the run took beside what was there before."""
    gc.collect()
    reset_peak_memory()
    keys = ("gpu", "gpu_peak") if torch.cuda.is_available() else ("rest", "peak")
    before = read_memory()[keys[0]]
    started_at = time.perf_counter()
    result = run()
    synchronize_gpu()
    seconds = time.perf_counter() - started_at
    return result, seconds, read_memory()[keys[1]] - before


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    main(json.loads(Path(sys.argv[1]).read_text()))

"""Latents with a diffusion network's errors, on which `darkroom train decoder` learns: computed once, resumable."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from engine.process.model_settings import WEIGHTS_FOLDER
from shared.training_parts import SHAPE, blobs, make_network
from training.commands import builtin_artwork
from training.diffusion import denoised_latents
from training.diffusion.denoised_latents import STEPS, Denoiser, denoise_latents, open_denoised_latents
from training.gan.autoencoder_trainer import build_autoencoder


class TargetNetwork(torch.nn.Module):
    """Predicts the v under which the clean latents are 1 in the first channel and −1 in the others, at any noise."""

    def __init__(self, alphas_cumprod: torch.Tensor) -> None:
        super().__init__()
        self.alphas_cumprod = alphas_cumprod
        self.calls = list[torch.Tensor]()
        self.anchor = torch.nn.Parameter(torch.zeros(1))

    def forward(self, noisy: torch.Tensor, timesteps: torch.Tensor, **_: Any) -> tuple[torch.Tensor]:
        self.calls.append(timesteps)
        alphas = self.alphas_cumprod[timesteps].view(-1, 1, 1, 1)
        target = torch.tensor([1.0, -1, -1, -1]).view(1, 4, 1, 1)
        return ((alphas.sqrt() * noisy - target) / (1 - alphas).sqrt(),)


def make_denoiser(network: Any = None) -> Denoiser:
    alphas_cumprod = builtin_artwork.load_schedule(WEIGHTS_FOLDER).alphas_cumprod

    def encode_captions(captions: Sequence[str]) -> torch.Tensor:
        return torch.stack([torch.full((6, 384), len(caption) / 9) for caption in captions])

    autoencoder = build_autoencoder(1, {**SHAPE, "sample_size": 64, "scaling_factor": 0.5}).eval()
    return Denoiser(network or make_network(), alphas_cumprod, autoencoder, encode_captions)


def test_ddim_ends_at_the_clean_latents_that_the_network_predicts() -> None:
    schedule = builtin_artwork.load_schedule(WEIGHTS_FOLDER)
    network = TargetNetwork(schedule.alphas_cumprod)
    latents = torch.randn(3, 4, 2, 2)
    noise = torch.randn(3, 4, 2, 2)
    levels = torch.tensor([0.2, 0.5, 0.9])
    clean = denoise_latents(make_denoiser(network), latents, torch.zeros(3, 6, 384), levels, noise)
    assert torch.allclose(clean, torch.tensor([1.0, -1, -1, -1]).view(1, 4, 1, 1).expand_as(clean), atol=1e-3)
    assert len(network.calls) == STEPS
    assert network.calls[0].tolist() == [200, 500, 900]
    assert all((later < earlier).all() for earlier, later in zip(network.calls, network.calls[1:], strict=False))


def test_latents_are_denoised_once_and_again_for_anything_else(tmp_path: Path) -> None:
    pictures = np.stack(blobs(5, 64))
    captions = ["a", "bc", "def", "g", "h"]
    loaded = list[int]()

    def load_denoiser() -> Denoiser:
        loaded.append(1)
        return make_denoiser()

    def open_latents(captions: Sequence[str] = captions, seed: int = 0, fingerprint: str = "one") -> np.ndarray:
        return open_denoised_latents(tmp_path, fingerprint, load_denoiser, pictures, captions, seed)

    first = open_latents()
    again = open_latents()
    assert (first.shape, first.dtype, len(loaded)) == ((5, 4, 16, 16), np.float16, 1)
    assert (first == again).all()
    others = [open_latents(seed=1), open_latents(captions=["other", *captions[1:]]), open_latents(fingerprint="two")]
    assert len(loaded) == 4
    assert len(list(tmp_path.iterdir())) == 1
    assert not np.allclose(first, others[0])
    assert (first[1:] == others[1][1:]).all()  # only the first caption changed
    assert (first[0] != others[1][0]).any()
    assert (first == others[2]).all()  # the same network under another name


def test_a_killed_computation_of_the_latents_goes_on_to_the_same_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pictures = np.stack(blobs(5, 64))
    captions = ["a", "bc", "def", "g", "h"]
    progress = list[int]()
    monkeypatch.setattr(denoised_latents, "BATCH", 2)

    def open_latents(folder: Path, kill_at: int = 0) -> np.ndarray:
        def report(done: int, _of: int) -> None:
            progress.append(done)
            if done == kill_at:
                raise KeyboardInterrupt

        folder.mkdir(exist_ok=True)
        return open_denoised_latents(folder, "one", make_denoiser, pictures, captions, 0, report)

    for kill_at in (2, 4, 5):
        with pytest.raises(KeyboardInterrupt):
            open_latents(tmp_path / "killed", kill_at)
    partial_path = next((tmp_path / "killed").iterdir())
    partial_path.write_bytes(partial_path.read_bytes() + b"cut")
    assert np.array_equal(open_latents(tmp_path / "killed"), open_latents(tmp_path / "full"))
    assert progress == [2, 4, 5, 5, 2, 4, 5]
    assert len(list((tmp_path / "killed").iterdir())) == 1

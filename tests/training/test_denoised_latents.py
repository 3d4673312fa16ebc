"""`darkroom train autoencoder --network`: the decoder also learns on latents with a diffusion network's errors."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from PIL import Image
from torch.nn import functional as F

from engine.models.families.embedded import WEIGHTS_FOLDER
from tests.training.test_diffusion_trainer import draw_artwork
from tests.training.test_gan_trainers import SHAPE, are_same, blobs
from training.__main__ import main
from training.commands import builtin_artwork, denoised_artwork
from training.core import checkpoint
from training.diffusion import denoised_latents
from training.diffusion.denoised_latents import STEPS, Denoiser, denoise_latents, open_denoised_latents
from training.gan import autoencoder_trainer
from training.gan.autoencoder_evaluator import AutoencoderEvaluator, measure_autoencoder
from training.gan.autoencoder_shapes import build_autoencoder
from training.gan.latent_coding import decode_all, encode_all
from training.gan.losses import gradient_energy
from training.pictures.artwork import is_held_out
from training.pictures.masked_pictures import MaskedPictures, mask_pictures


def make_network(**fields: Any) -> UNet2DConditionModel:
    torch.manual_seed(2)
    defaults: dict[str, Any] = {
        "sample_size": 16, "in_channels": 4, "out_channels": 4, "block_out_channels": (16, 32), "layers_per_block": 1,
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"), "norm_num_groups": 4, "attention_head_dim": 4,
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"), "cross_attention_dim": 384,
    }  # fmt: skip
    return UNet2DConditionModel(**(defaults | fields)).eval()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny `vae` of 16×16×4 latents and a tiny `unet` that draws them."""
    folder = tmp_path_factory.mktemp("model")
    build_autoencoder(1, {**SHAPE, "sample_size": 64}).save_pretrained(folder / "vae")
    make_network().save_pretrained(folder / "unet")
    return folder


@pytest.fixture
def artwork(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replaces the built-in artwork by a few circles, of which some are held out."""
    keys = [f"flat-design/{code:x}" for code in range(0x1F300, 0x1F308)]
    assert 0 < sum(map(is_held_out, keys)) < len(keys)
    drawings = [draw_artwork("ball", "toy", colour=f"#{30 * n:02x}8020", key=key) for n, key in enumerate(keys)]
    monkeypatch.setattr(builtin_artwork, "load_drawings", lambda *_, **__: drawings)


class TargetNetwork(torch.nn.Module):
    """Predicts the v under which the clean latents are 1 in the first channel and −1 in the others, at any noise."""

    def __init__(self, alphas_cumprod: torch.Tensor) -> None:
        super().__init__()
        self.alphas_cumprod, self.calls = alphas_cumprod, list[torch.Tensor]()
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


def command(model: Path, output_folder: Path, *options: str) -> list[str]:
    words = ["autoencoder", "--from", str(model), "--network", str(model), "--out", str(output_folder), "--batch", "4"]
    return [*words, "--steps", "6", "--threads", "1", *options]


# --- the latents


def test_ddim_ends_at_the_clean_latents_that_the_network_predicts() -> None:
    schedule = builtin_artwork.load_schedule(WEIGHTS_FOLDER)
    network = TargetNetwork(schedule.alphas_cumprod)
    latents, noise = torch.randn(3, 4, 2, 2), torch.randn(3, 4, 2, 2)
    levels = torch.tensor([0.2, 0.5, 0.9])
    clean = denoise_latents(make_denoiser(network), latents, torch.zeros(3, 6, 384), levels, noise)
    assert torch.allclose(clean, torch.tensor([1.0, -1, -1, -1]).view(1, 4, 1, 1).expand_as(clean), atol=1e-3)
    assert len(network.calls) == STEPS
    assert network.calls[0].tolist() == [200, 500, 900]
    assert all((later < earlier).all() for earlier, later in zip(network.calls, network.calls[1:], strict=False))


def test_latents_are_denoised_once_and_again_for_anything_else(tmp_path: Path) -> None:
    pictures, captions, loaded = np.stack(blobs(5, 64)), ["a", "bc", "def", "g", "h"], list[int]()

    def load_denoiser() -> Denoiser:
        loaded.append(1)
        return make_denoiser()

    def open_latents(captions: Sequence[str] = captions, seed: int = 0, fingerprint: str = "one") -> np.ndarray:
        return open_denoised_latents(tmp_path, fingerprint, load_denoiser, pictures, captions, seed)

    first, again = open_latents(), open_latents()
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
    pictures, captions, progress = np.stack(blobs(5, 64)), ["a", "bc", "def", "g", "h"], list[int]()
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


# --- the trainer


def denoised_pictures(count: int = 8, size: int = 32) -> MaskedPictures:
    """Pictures whose denoised latents are their number plus 100."""
    numbers = np.arange(count, dtype=np.float16).reshape(-1, 1, 1, 1)
    latents = np.broadcast_to(numbers + 100, (count, 4, size // 4, size // 4))
    return replace(mask_pictures(blobs(count, size)), denoised_latents=latents)


@pytest.mark.parametrize("batch", [1, 3, 4])
def test_half_of_a_batch_is_denoised_and_half_is_the_encoders(batch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = autoencoder_trainer.AutoencoderSettings(batch=batch, noise=0.0, gan_weight=0.0, perceptual=0.0)
    trainer = autoencoder_trainer.AutoencoderTrainer(build_autoencoder(1, SHAPE), denoised_pictures(), settings)
    inputs, targets = list[torch.Tensor](), list[torch.Tensor]()
    decode, update = autoencoder_trainer.decode_images, trainer.learner.update

    def decode_images(network: Any, latents: torch.Tensor) -> torch.Tensor:
        inputs.append(latents)
        return decode(network, latents)

    def update_learner(output: torch.Tensor, real: torch.Tensor, *others: Any) -> Any:
        targets.append(real)
        return update(output, real, *others)

    monkeypatch.setattr(autoencoder_trainer, "decode_images", decode_images)
    monkeypatch.setattr(trainer.learner, "update", update_learner)
    images, _ = trainer.pixels.read_rows(np.arange(8))
    means = encode_all(trainer.network, images).mean
    for _ in range(8 // batch):  # one epoch
        trainer.step(0.1)
    denoised_rows = [(rows > 50).flatten(1).all(dim=1) for rows in inputs]
    for rows, real, is_denoised in zip(inputs, targets, denoised_rows, strict=True):
        numbers = [int(row[0, 0, 0]) - 100 if chosen else -1 for row, chosen in zip(rows, is_denoised, strict=True)]
        nearest = [int((means - row).abs().sum(dim=(1, 2, 3)).argmin()) for row in rows]
        own = [near if number < 0 else number for number, near in zip(numbers, nearest, strict=True)]
        assert torch.equal(real, images[own])  # a row's target is its own picture
        assert batch == 1 or 0 < int(is_denoised.sum()) < batch
    assert int(torch.cat(denoised_rows).sum()) == sum(map(len, inputs)) // 2


def test_figures_of_denoised_latents_show_errors_and_blur(tmp_path: Path) -> None:
    network, pictures = build_autoencoder(1, SHAPE).eval(), mask_pictures(blobs(4, 32))
    images, _ = pictures.read_rows(np.arange(4))
    exact = replace(pictures, denoised_latents=encode_all(network, images).mean.numpy())
    figures = measure_autoencoder(network, exact)
    assert figures["mended_psnr"] == pytest.approx(figures["masked_psnr"], abs=1e-3)
    decoded_images = decode_all(network, exact.read_denoised_latents(np.arange(4)))  # pyright: ignore[reportArgumentType]
    assert figures["mended_gradient_ratio"] == pytest.approx(gradient_energy(decoded_images) / gradient_energy(images))
    assert gradient_energy(F.avg_pool2d(images, 3, 1, 1)) < 0.7 * gradient_energy(images)
    assert "mended_psnr" not in measure_autoencoder(network, pictures)
    trainer = autoencoder_trainer.AutoencoderTrainer(network, exact, autoencoder_trainer.AutoencoderSettings(batch=2))
    AutoencoderEvaluator(trainer, exact).draw_sheet(tmp_path / "sheet.png")
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.size == (2 * 8 * 32, 2 * 3 * 32)


# --- the command


@pytest.mark.usefixtures("artwork")
def test_a_stopped_run_resumes_bit_for_bit_and_denoises_once(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    step, load, loaded = autoencoder_trainer.AutoencoderTrainer.step, denoised_artwork.load_caption_encoder, list[int]()
    monkeypatch.setattr(denoised_artwork, "load_caption_encoder", lambda: loaded.append(1) or load())
    assert main(command(model, tmp_path / "full")) == 0

    def stop_after_third(trainer: autoencoder_trainer.AutoencoderTrainer, progress: float) -> Any:
        losses = step(trainer, progress)
        if trainer.steps == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return losses

    with monkeypatch.context() as patch:
        patch.setattr(autoencoder_trainer.AutoencoderTrainer, "step", stop_after_third)
        assert main(command(model, tmp_path / "stopped")) == 128 + signal.SIGTERM
    cache = next((tmp_path / "stopped" / "run").glob("denoised-*.npy"))
    before = cache.stat()
    capfd.readouterr()
    assert main(command(model, tmp_path / "stopped")) == 0
    assert "Resuming after 3 steps" in capfd.readouterr().err
    assert (cache.stat().st_ino, cache.stat().st_mtime_ns, len(loaded)) == (before.st_ino, before.st_mtime_ns, 2)
    full, stopped = (
        checkpoint.load(tmp_path / name / "run" / "checkpoint.safetensors")[0] for name in ("full", "stopped")
    )
    assert are_same(full, stopped)
    weights = "diffusion_pytorch_model.safetensors"
    assert (tmp_path / "full" / weights).read_bytes() == (tmp_path / "stopped" / weights).read_bytes()
    report = json.loads((tmp_path / "stopped" / "figures.json").read_text())
    assert report == json.loads((tmp_path / "full" / "figures.json").read_text())
    for figures in (report["before"], report["after"]):
        assert {"mended_psnr", "mended_gradient_ratio"} <= figures.keys()
    other_run = command(model, tmp_path / "stopped")
    del other_run[3:5]  # without --network
    assert main(other_run) == 2
    assert "begun with other starting weights" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--network", "embedded"], "--network needs the autoencoder whose latents it draws: add --from."),
        (["--network", "embedded", "--from", "embedded", "--new-latents"], "leave out --new-latents"),
        (["--network", "embedded", "--from", "embedded", "--data", "."], "leave it out with --data"),
        (["--network", "MODEL", "--from", "embedded"], "draws latents of 16×16×4, and the autoencoder has 8×8×16"),
        (["--network", "MODEL/vae", "--from", "MODEL"], "is no network for the built-in artwork"),
        (["--network", "OTHER", "--from", "MODEL"], "is no network for the built-in artwork"),
        (["--network", "EMPTY", "--from", "MODEL"], "has no config.json that can be read"),
        (["--network", "TORN", "--from", "MODEL"], "holds no weights in safetensors"),
    ],
)
@pytest.mark.usefixtures("artwork")
def test_an_unfit_network_is_refused_with_a_sentence(
    words: list[str], message: str, model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    make_network(cross_attention_dim=64).save_pretrained(tmp_path / "OTHER")
    (tmp_path / "EMPTY").mkdir()
    make_network().save_config(tmp_path / "TORN")
    paths = {name: str(tmp_path / name) for name in ("OTHER", "EMPTY", "TORN")}
    filled_words = [paths.get(word, word.replace("MODEL", str(model))) for word in words]
    assert main(["autoencoder", "--out", str(tmp_path / "out"), "--steps", "1", *filled_words]) == 2
    assert message in capfd.readouterr().err

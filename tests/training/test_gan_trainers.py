"""The two GANs learn, resume exactly, keep frozen parts, and write files that other programs load."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from PIL import Image
from spandrel import ModelLoader

from engine.models.judge import as_images
from shared.training_parts import SHAPE, are_same, blobs, pixels, small_pairs
from training.__main__ import main
from training.core import checkpoint
from training.core.run import Budget, TrainingRun
from training.gan import autoencoder_trainer, upscaler_trainer
from training.gan.gan_learner import Discriminator, picture_gradient
from training.gan.latent_coding import fold_scale, measure_latent_scale, round_trip
from training.gan.losses import overshoot_loss, psnr, ssim
from training.gan.upscaler_trainer import UpscalerPairs, build_pairs, draw_chart
from training.pictures.artwork import Artwork, is_held_out
from training.pictures.captions import clean_description
from training.pictures.masked_pictures import find_subject, mask_pictures, render_artwork

EARLY_GAN = {"batch": 4, "warm": 2, "gan_from": 0.0}
Make = Callable[[], Any]


def make_autoencoder_trainer(*, keep_latents: bool, **fields: Any) -> autoencoder_trainer.AutoencoderTrainer:
    settings = autoencoder_trainer.AutoencoderSettings(
        **{**EARLY_GAN, "rate": 2e-3, "keep_latents": keep_latents, **fields}
    )
    return autoencoder_trainer.AutoencoderTrainer(autoencoder_trainer.build_autoencoder(1, SHAPE), pixels(), settings)


def make_upscaler_trainer(**fields: Any) -> upscaler_trainer.UpscalerTrainer:
    settings = upscaler_trainer.UpscalerSettings(**{**EARLY_GAN, "rate": 3e-3, "crop": 12, **fields})
    return upscaler_trainer.UpscalerTrainer(upscaler_trainer.build_upscaler(1, 8, 2), small_pairs(), settings)


# --- what is held out


def test_the_held_out_drawings_are_the_same_everywhere_and_in_every_style() -> None:
    keys = [f"flat-design/{code:x}" for code in range(0x1F300, 0x1F700)]
    held_out = [key for key in keys if is_held_out(key)]
    assert held_out[:3] == ["flat-design/1f300", "flat-design/1f303", "flat-design/1f30c"]
    assert 0.03 < len(held_out) / len(keys) < 0.07
    assert all(is_held_out(key.replace("flat-design", "3d-render")) for key in held_out)


def test_no_variant_of_a_held_out_drawing_is_trained_on() -> None:
    codes = {code: f"flat-design/{code:x}" for code in range(0x1F300, 0x1F320)}
    drawings = [
        Artwork(
            key,
            clean_description("ball", []),
            5,
            "flat design",
            "MIT",
            "somebody",
            Image.new("RGBA", (32, 32), (code % 256, 0, 9, 255)),
        )
        for code, key in codes.items()
    ]
    train, held_out = render_artwork(drawings, seed=0, per_picture=2)
    count = sum(is_held_out(key) for key in codes.values())
    assert (len(train), len(held_out)) == (2 * (len(codes) - count), count)
    assert count > 0


def test_the_subject_is_what_differs_from_the_border() -> None:
    picture = np.full((16, 16, 3), 200, np.uint8)
    picture[4:8, 4:8] = 10
    picture[0, 0] = 0  # a corner that belongs to something else
    assert find_subject(picture).sum() == 17
    assert find_subject(np.zeros((8, 8, 3), np.uint8)).all()


# --- the measures


def test_overshoot_penalises_ringing_and_not_softness() -> None:
    step = torch.zeros(1, 3, 16, 16)
    step[..., 8:] = 0.5
    soft_edge = step.clone()
    ringing_edge = step.clone()
    soft_edge[..., 7:9] = 0.25
    ringing_edge[..., 9] = 0.6
    assert overshoot_loss(soft_edge, step) == 0
    assert overshoot_loss(ringing_edge, step) == pytest.approx(0.1 / 16)


def test_psnr_and_ssim_distinguish_an_equal_picture_from_a_worse_one() -> None:
    images, subjects = pixels().read_rows(np.arange(4))
    noisy_images = (images + 0.1 * torch.randn(images.shape, generator=torch.Generator().manual_seed(0))).clamp(-1, 1)
    assert (ssim(images, images) > 0.9999).all()
    assert (ssim(noisy_images, images) < 0.99).all()
    assert (psnr(images + 0.2, images.clamp(-1, 0.5)) > 5).all()
    half = torch.where(subjects > 0, images, images * 0.5)  # wrong only outside the subject
    assert (psnr(half, images, subjects) > 90).all()
    assert (psnr(half, images) < 60).all()


def test_the_discriminators_part_of_the_gradient_has_the_requested_length() -> None:
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    discriminator = Discriminator((8, 8, 8)).eval()
    without_discriminator, loss = picture_gradient(images, lambda image: image.square().mean(), None, 0.1)
    with_discriminator, _ = picture_gradient(images, lambda image: image.square().mean(), discriminator, 0.1)
    assert loss == pytest.approx(float(images.square().mean()), rel=1e-5)
    assert float((with_discriminator - without_discriminator).norm() / without_discriminator.norm()) == pytest.approx(
        0.1, rel=1e-3
    )


# --- learning and resuming


def make_noisy_upscaler_trainer() -> upscaler_trainer.UpscalerTrainer:
    """A fresh network repeats pixels, which is hard to beat in a few steps; this one starts worse."""
    trainer = make_upscaler_trainer()
    torch.nn.init.normal_(list(trainer.network.parameters())[-2], std=0.1)
    return trainer


@pytest.mark.sampled
@pytest.mark.parametrize(
    "make",
    [
        lambda: make_autoencoder_trainer(keep_latents=False),
        lambda: make_autoencoder_trainer(keep_latents=True),
        make_noisy_upscaler_trainer,
    ],
)
def test_training_lowers_the_loss(make: Make) -> None:
    trainer = make()
    losses = [trainer.step(0.1) for _ in range(24)]
    first, last = (np.mean([one["loss"] for one in part]) for part in (losses[:4], losses[-4:]))
    assert last < 0.9 * first
    assert all("discriminator" in one for one in losses)
    assert trainer.samples == 96


@pytest.mark.parametrize(
    "make",
    [
        lambda: make_autoencoder_trainer(keep_latents=False),
        lambda: make_autoencoder_trainer(keep_latents=True, muon=False),
        make_upscaler_trainer,
        lambda: make_upscaler_trainer(muon=False),
    ],
)
def test_resuming_is_exact_including_the_discriminator(tmp_path: Path, make: Make) -> None:
    full_run = make()
    stopped_run = make()
    resumed_run = make()
    for number in range(4):
        full_run.step(number / 10)
        if number < 2:
            stopped_run.step(number / 10)
    checkpoint.save(tmp_path / "kept.safetensors", stopped_run.state_tensors(), {})
    resumed_run.restore(checkpoint.load(tmp_path / "kept.safetensors")[0], 2)
    for number in (2, 3):
        resumed_run.step(number / 10)
    tensors = full_run.state_tensors()
    assert are_same(tensors, resumed_run.state_tensors())
    assert any(name.startswith("discriminator:exp_avg") for name in tensors)
    assert resumed_run.rate == full_run.rate > 0


def test_a_run_before_its_first_discriminator_step_resumes_exactly(tmp_path: Path) -> None:
    one = make_upscaler_trainer(gan_from=0.9)
    other = make_upscaler_trainer(gan_from=0.9)
    one.step(0.0)
    checkpoint.save(tmp_path / "kept.safetensors", one.state_tensors(), {})
    other.restore(checkpoint.load(tmp_path / "kept.safetensors")[0], 1)
    one.step(0.95)
    other.step(0.95)
    assert are_same(one.state_tensors(), other.state_tensors())


def test_a_non_finite_loss_ends_the_run() -> None:
    trainer = make_upscaler_trainer()
    torch.nn.init.constant_(next(trainer.network.parameters()), float("nan"))
    with pytest.raises(ValueError, match="lower the learning rate"):
        trainer.step(0.0)


@pytest.mark.parametrize("keep_latents", [True, False])
def test_with_kept_latents_only_the_decoder_changes(keep_latents: bool) -> None:
    trainer = make_autoencoder_trainer(keep_latents=keep_latents)
    before = {name: one.clone() for name, one in trainer.network.state_dict().items()}
    for _ in range(3):
        trainer.step(0.1)
    changed_tensors = {
        name
        for part in (trainer.network, trainer.average)
        for name, one in part.state_dict().items()
        if not torch.equal(one, before[name])
    }
    frozen = {name for name in before if name.startswith(("encoder.", "quant_conv."))}
    assert changed_tensors == set(before) - (frozen if keep_latents else set())


def test_a_run_logs_its_figures_writes_a_sheet_and_ends(tmp_path: Path) -> None:
    trainer = make_autoencoder_trainer(keep_latents=True)
    judge = autoencoder_trainer.AutoencoderEvaluator(trainer, mask_pictures(blobs(3, 32)))
    TrainingRun(tmp_path, trainer, judge, Budget(samples=8), start_time=0.0).train_until(
        lambda: 0.0, lambda: False, lambda losses: None, 60
    )
    line = json.loads((tmp_path / "log.jsonl").read_text())
    assert {"masked_psnr", "ssim", "loss", "discriminator"} <= line.keys()
    with Image.open(tmp_path / "sheets" / "000000008.png") as sheet:
        assert sheet.size == (2 * 8 * 32, 2 * 2 * 32)


# --- results


def test_folded_latents_have_mean_0_and_deviation_1_and_keep_the_pictures() -> None:
    network = autoencoder_trainer.build_autoencoder(1, SHAPE).eval()
    data = pixels()
    images, _ = data.read_rows(np.arange(len(data)))
    before = round_trip(network, images)
    posterior = network.encode(images, return_dict=False)[0]
    noise = posterior.std / posterior.mean.std(dim=(0, 2, 3), keepdim=True)
    fold_scale(network, *measure_latent_scale(network, data))
    posterior = network.encode(images, return_dict=False)[0]
    mean, deviation = measure_latent_scale(network, data)
    assert torch.allclose(mean, torch.zeros(4), atol=1e-4)
    assert torch.allclose(deviation, torch.ones(4), atol=1e-4)
    assert torch.allclose(posterior.std, noise, rtol=1e-2)
    assert torch.allclose(round_trip(network, images), before, atol=1e-4)


def test_an_exported_super_resolver_loads_in_spandrel_and_in_training(tmp_path: Path) -> None:
    trainer = make_upscaler_trainer()
    trainer.step(0.1)
    upscaler_trainer.export_upscaler(trainer.average, tmp_path / "model.safetensors")
    descriptor = ModelLoader().load_from_file(tmp_path / "model.safetensors")
    assert (descriptor.architecture.name, descriptor.scale, descriptor.input_channels) == ("RealESRGAN Compact", 4, 3)
    grey = torch.full((1, 3, 12, 12), 0.5)
    assert torch.allclose(descriptor.model.eval()(grey), trainer.average(grey), atol=1e-2)
    reloaded = upscaler_trainer.load_upscaler(tmp_path / "model.safetensors")
    assert all(one.dtype == torch.float32 for one in reloaded.parameters())
    with pytest.raises(ValueError, match="no super-resolver"):
        upscaler_trainer.load_upscaler(tmp_path / "nothing.safetensors")


def test_a_fresh_network_repeats_pixels_and_does_not_ring() -> None:
    network = upscaler_trainer.build_upscaler(0, 8, 2)
    small = small_pairs(2).clean
    assert (upscaler_trainer.upscale_batch(network, small) == small.repeat(4, axis=1).repeat(4, axis=2)).all()
    assert upscaler_trainer.measure_ringing(network) == 0


def test_charts_and_pairs_are_the_same_for_a_seed() -> None:
    def make_pairs() -> UpscalerPairs:
        pictures = iter(blobs(8, 256))
        return build_pairs(pictures, 6, None, seed=3, chart_share=0.5)

    one = make_pairs()
    other = make_pairs()
    assert (one.large == other.large).all()
    assert (one.decoded == other.decoded).all()
    assert one.clean.shape == (6, 64, 64, 3)
    rng = np.random.default_rng(0)
    drawn_charts = [draw_chart(rng, 64) for _ in range(30)]
    assert {one.shape for one in drawn_charts} == {(64, 64, 3)}
    assert abs(as_images(np.stack(drawn_charts))).max() <= 1


@pytest.mark.slow
@pytest.mark.parametrize("command", ["autoencoder", "upscaler"])
def test_training_on_any_folder_gives_a_loadable_result(command: str, tmp_path: Path) -> None:
    pictures = tmp_path / "mine"
    output_folder = tmp_path / "out"
    pictures.mkdir()
    for number, picture in enumerate(blobs(6, 256)):
        Image.fromarray(picture).save(pictures / f"{number}.png")
    (pictures / "torn.png").write_bytes(b"\x89PNG")
    words = [
        command,
        "--data",
        str(pictures),
        "--out",
        str(output_folder),
        "--steps",
        "2",
        "--batch",
        "2",
        "--threads",
        "1",
    ]
    words += ["--from", "embedded"] if command == "autoencoder" else ["--pictures", "8"]
    assert main(words) == 0
    assert (output_folder / "run" / "skipped.txt").read_text().startswith("torn.png")
    if command == "autoencoder":
        assert AutoencoderKL.from_pretrained(output_folder).config["latent_channels"] == 8
    else:
        assert ModelLoader().load_from_file(output_folder / "model.safetensors").scale == 4
    assert json.loads((output_folder / "figures.json").read_text())["samples"] == 4


def test_keep_latents_without_a_model_to_start_from_is_refused(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["autoencoder", "--out", str(tmp_path), "--steps", "1", "--keep-latents"]) == 2
    assert "add --from embedded" in capfd.readouterr().err

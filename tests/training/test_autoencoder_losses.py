"""The autoencoder's losses beyond pixels: a target noise-to-signal ratio, every pose, and perceptual loss."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from engine.models.judge import JudgeNetwork
from shared.training_parts import SHAPE, are_same, blobs, pixels
from training.__main__ import main
from training.commands.run_pixel_networks import load_perceptual_loss
from training.core import checkpoint
from training.gan import autoencoder_trainer
from training.gan.autoencoder_trainer import (
    ADAPTATION_RATE,
    AUTOENCODER_SHAPES,
    MAX_LOG_WEIGHT,
    MIN_LOG_WEIGHT,
    Pose,
    adapt_log_weight,
    apply_pose,
    build_autoencoder,
    draw_pose,
    measure_autoencoder,
)
from training.gan.latent_coding import Posterior, decode_all, encode_all
from training.gan.losses import PerceptualLoss, draw_offset
from training.pictures.masked_pictures import mask_pictures

MEBIBYTE = 1 << 20


def make_perceptual_loss() -> PerceptualLoss:
    torch.manual_seed(3)
    return PerceptualLoss(JudgeNetwork(5, (8, 16)).stages)


def make_trainer(
    perceptual_loss: PerceptualLoss | None = None, **fields: Any
) -> autoencoder_trainer.AutoencoderTrainer:
    terms = {"batch": 4, "warm": 2, "rate": 2e-3, "keep_latents": False, "gan_weight": 0.0, **fields}
    return autoencoder_trainer.AutoencoderTrainer(
        build_autoencoder(1, SHAPE), pixels(), autoencoder_trainer.AutoencoderSettings(**terms), perceptual_loss
    )


# --- noise and signal


@given(st.floats(MIN_LOG_WEIGHT, MAX_LOG_WEIGHT), st.floats(0, 1e6), st.floats(1e-3, 10))
def test_the_kl_weight_moves_towards_the_target_noise_within_bounds(before: float, ratio: float, target: float) -> None:
    after = adapt_log_weight(before, ratio, target)
    assert MIN_LOG_WEIGHT <= after <= MAX_LOG_WEIGHT
    assert abs(after - before) <= ADAPTATION_RATE * 1.001
    assert (after - before) * (target - ratio) >= 0
    assert adapt_log_weight(before, ratio, 0) == before


@given(st.floats(1e-4, 1.0), st.floats(0.02, 0.5), st.floats(0.3, 1.0))
def test_the_noise_settles_at_its_target_although_it_lags(gain: float, target: float, power: float) -> None:
    log = math.log(1e-4)
    ratio = 1.0
    for _ in range(6000):
        next_ratio = min(2.0, gain * 50 * math.exp(log) ** (power / 2))  # more weight, more noise
        ratio *= (next_ratio / ratio) ** 0.02  # a fiftieth of the way for each step
        log = adapt_log_weight(log, ratio, target)
    assert ratio == pytest.approx(target, rel=0.15) or log in (MIN_LOG_WEIGHT, MAX_LOG_WEIGHT)


def test_noise_and_signal_are_measured_on_the_latents() -> None:
    mean = torch.tensor([1.0, -1.0]).view(2, 1, 1, 1) * torch.tensor([2.0, 6.0]).view(1, 2, 1, 1) + 100
    posterior = Posterior(mean.expand(2, 2, 50, 50), torch.full((2, 2, 50, 50), 0.5))
    assert posterior.signal == pytest.approx(4, rel=1e-3)  # a channel's mean is no signal
    assert posterior.noise == 0.5
    assert posterior.noise_to_signal == pytest.approx(0.125, rel=1e-3)


@pytest.mark.parametrize(("target", "sign"), [(1e-3, -1), (1e3, 1)])
def test_a_step_moves_the_kl_weight_and_reports_it(target: float, sign: int) -> None:
    trainer = make_trainer(noise_to_signal=target)
    before = trainer.log_kl
    losses = trainer.step(0.1)
    assert trainer.log_kl == pytest.approx(before + sign * ADAPTATION_RATE)
    assert losses["log10_kl"] == pytest.approx(trainer.log_kl / math.log(10))
    assert losses["noise_to_signal"] > 0


@pytest.mark.slow
def test_a_larger_kl_weight_makes_more_noise() -> None:
    def noise(kl: float) -> float:
        trainer = make_trainer(kl=kl, noise_to_signal=0.0)
        for _ in range(40):
            trainer.step(0.1)
        images, _ = trainer.pixels.read_rows(np.arange(16))
        return encode_all(trainer.network, images).noise_to_signal

    assert noise(0.1) > 2 * noise(1e-6)


def test_figures_report_noise_signal_and_the_psnr_of_disturbed_latents() -> None:
    before = measure_autoencoder(make_trainer().network, pixels())
    assert before["noise_to_signal"] == pytest.approx(before["noise"] / before["signal"])
    assert before["disturbed_psnr"] <= before["masked_psnr"] + 0.5
    assert before == measure_autoencoder(make_trainer().network, pixels())


# --- poses


@given(st.integers(0, 2**31), st.integers(2, 16))
def test_a_pose_fits_the_latents_and_depends_only_on_its_seed(seed: int, side: int) -> None:
    one, other = (draw_pose(side, torch.Generator().manual_seed(seed)) for _ in range(2))
    assert one == other
    assert side / 2 - 0.5 <= one.side <= side
    assert 0 <= one.quarter_turns < 4


def test_every_pose_is_drawn() -> None:
    generator = torch.Generator().manual_seed(0)
    poses = {draw_pose(8, generator) for _ in range(600)}
    assert len(poses) == 5 * 4 * 2


@given(st.integers(0, 3), st.booleans())
def test_a_pose_turns_pictures_and_latents_alike(quarter_turns: int, is_mirrored: bool) -> None:
    latents = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(1))
    picture = latents.repeat_interleave(8, 2).repeat_interleave(8, 3)
    pose = Pose(4, quarter_turns, is_mirrored)
    posed_latents = apply_pose(pose, latents)
    assert torch.equal(apply_pose(pose, picture, 8), posed_latents.repeat_interleave(8, 2).repeat_interleave(8, 3))
    restored = torch.rot90(posed_latents, -quarter_turns, (-2, -1))
    assert torch.equal(restored.flip(-1) if is_mirrored else restored, latents)


def test_a_smaller_pose_keeps_the_layout() -> None:
    ramp = torch.linspace(-1, 1, 64).expand(1, 1, 64, 64)
    small = apply_pose(Pose(4, 0, False), ramp, 8)
    assert small.shape == (1, 1, 32, 32)
    assert torch.allclose(small, torch.linspace(-1, 1, 32).expand_as(small), atol=0.05)


@pytest.mark.slow
def test_a_decoder_trained_on_poses_decodes_posed_latents_better() -> None:
    levels = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    shape = {**SHAPE, **levels, "sample_size": 16, "block_out_channels": (16, 16)}

    def loss_by_poses(equivariance: float) -> float:
        """How much worse half-size latents decode than plain ones."""
        terms = autoencoder_trainer.AutoencoderSettings(
            batch=8, warm=2, rate=5e-3, keep_latents=False, gan_weight=0.0, muon=False, equivariance=equivariance
        )
        trainer = autoencoder_trainer.AutoencoderTrainer(
            build_autoencoder(1, shape), mask_pictures(blobs(16, 16)), terms
        )
        for _ in range(200):
            trainer.step(0.1)
        images, _ = trainer.pixels.read_rows(np.arange(16))
        mean = encode_all(trainer.network, images).mean
        errors = list[float]()
        for pose in (Pose(8, 0, False), Pose(4, 1, True)):
            decoded_pictures = decode_all(trainer.network, apply_pose(pose, mean))
            errors.append(float((decoded_pictures - apply_pose(pose, images, 2)).abs().mean()))
        return errors[1] - errors[0]

    assert loss_by_poses(0.7) < 0.5 * loss_by_poses(0.0)


def test_kept_latents_are_never_posed() -> None:
    one, other = (make_trainer(keep_latents=True, equivariance=equivariance) for equivariance in (0.0, 1.0))
    assert one.step(0.1) == other.step(0.1)
    assert are_same(one.state_tensors(), other.state_tensors())


# --- perception


def test_perceptual_distance_is_zero_for_equal_pictures_and_grows_with_noise() -> None:
    images, _ = pixels().read_rows(np.arange(4))
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    perceptual_loss = make_perceptual_loss()
    same_one, near_distance, far_distance = (
        float(perceptual_loss.distance(images + offset * noise, images)) for offset in (0, 0.05, 0.5)
    )
    assert same_one == 0 < near_distance < far_distance
    assert float(perceptual_loss.distance(images + noise, images, (1, 2))) != float(
        perceptual_loss.distance(images + noise, images)
    )


def test_the_perceptual_gradient_improves_the_picture_and_keeps_its_network() -> None:
    perceptual_loss = make_perceptual_loss()
    target, _ = pixels().read_rows(np.arange(2))
    noise = torch.randn(target.shape, generator=torch.Generator().manual_seed(0))
    prediction = (target + 0.5 * noise).requires_grad_()
    before = [one.clone() for stage in perceptual_loss.stages for one in stage.state_dict().values()]
    first = perceptual_loss.distance(prediction, target)
    (loss_gradient,) = torch.autograd.grad(first, prediction)
    better_prediction = prediction.detach() - 0.2 * loss_gradient / loss_gradient.norm()
    assert float(perceptual_loss.distance(better_prediction, target)) < float(first.detach())
    assert all(
        torch.equal(one, other)
        for one, other in zip(before, (t for s in perceptual_loss.stages for t in s.state_dict().values()), strict=True)
    )


def test_the_loss_includes_the_perceptual_distance() -> None:
    without_perceptual_loss = make_trainer(perceptual=1.0).step(0.1)
    with_perceptual_loss = make_trainer(make_perceptual_loss(), perceptual=1.0).step(0.1)
    assert with_perceptual_loss["loss"] > without_perceptual_loss["loss"] + 0.01
    assert make_trainer(make_perceptual_loss(), perceptual=0.0).step(0.1) == without_perceptual_loss


def test_the_offset_is_less_than_the_first_layers_stride() -> None:
    generator = torch.Generator().manual_seed(0)
    assert {draw_offset(generator) for _ in range(300)} == {(top, left) for top in range(4) for left in range(4)}


def test_the_judges_stages_are_its_convolutions() -> None:
    images = torch.zeros(1, 3, 64, 64)
    sizes = []
    for stage in load_perceptual_loss().stages:
        images = stage(images)
        sizes.append(tuple(images.shape[1:]))
    assert sizes == [(64, 16, 16), (128, 8, 8), (256, 4, 4)]


# --- all together


def test_resuming_is_exact_with_every_loss(tmp_path: Path) -> None:
    def make() -> autoencoder_trainer.AutoencoderTrainer:
        return make_trainer(make_perceptual_loss(), equivariance=0.5, gan_from=0.0, gan_weight=0.1)

    full_run = make()
    stopped_run = make()
    resumed_run = make()
    for number in range(6):
        full_run.step(number / 10)
        if number < 3:
            stopped_run.step(number / 10)
    checkpoint.save(tmp_path / "kept.safetensors", stopped_run.state_tensors(), {})
    resumed_run.restore(checkpoint.load(tmp_path / "kept.safetensors")[0], 3)
    for number in (3, 4, 5):
        resumed_run.step(number / 10)
    assert are_same(full_run.state_tensors(), resumed_run.state_tensors())
    assert full_run.log_kl == resumed_run.log_kl != math.log(full_run.settings.kl)


@pytest.mark.parametrize(("name", "latents"), [("compact", (16, 8, 8)), ("deep", (32, 8, 8)), ("wide", (8, 16, 16))])
def test_a_named_shape_has_its_latent_size_and_stays_small(name: str, latents: tuple[int, ...]) -> None:
    network = build_autoencoder(0, AUTOENCODER_SHAPES[name])
    assert encode_all(network, torch.zeros(1, 3, 64, 64)).mean.shape[1:] == latents
    assert sum(2 * one.numel() for one in network.parameters()) < 25 * MEBIBYTE


@pytest.mark.slow
def test_a_run_from_scratch_uses_the_chosen_shape(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    pictures = tmp_path / "mine"
    output_folder = tmp_path / "out"
    pictures.mkdir()
    for number, picture in enumerate(blobs(4, 64)):
        Image.fromarray(picture).save(pictures / f"{number}.png")
    words = [
        "autoencoder",
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
    assert main([*words, "--shape", "wide", "--noise-to-signal", "0.2"]) == 0
    assert AutoencoderKL.from_pretrained(output_folder).config["latent_channels"] == 8
    after = json.loads((output_folder / "figures.json").read_text())["after"]
    assert {"noise", "signal", "noise_to_signal", "disturbed_psnr"} <= after.keys()
    assert main([*words, "--shape", "deep"]) == 2
    assert "begun with --shape wide, not deep" in capfd.readouterr().err
    assert main(words) == 0  # it keeps the shape of its first run


@pytest.mark.slow
def test_a_run_from_an_autoencoder_resumes_without_a_named_shape(tmp_path: Path) -> None:
    pictures = tmp_path / "mine"
    output_folder = tmp_path / "out"
    pictures.mkdir()
    for number, picture in enumerate(blobs(3, 64)):
        Image.fromarray(picture).save(pictures / f"{number}.png")
    words = ["autoencoder", "--from", "embedded", "--data", str(pictures), "--out", str(output_folder), "--batch", "2"]
    assert main([*words, "--threads", "1", "--steps", "1"]) == 0
    assert main([*words, "--steps", "2"]) == 0
    assert json.loads((output_folder / "figures.json").read_text())["samples"] == 4


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--shape", "round"], "--shape takes compact, deep, wide, and 'round' is none of them."),
        (["--shape", "deep", "--from", "embedded"], "leave out --from, or --shape"),
        (["--equivariance", "0.5", "--from", "embedded"], "--equivariance needs latents that change"),
        (["--variants", "8", "--data", "."], "--variants is only for the built-in artwork"),
    ],
)
def test_unfit_options_are_refused_with_a_sentence(
    words: list[str], message: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["autoencoder", "--out", str(tmp_path / "out"), "--steps", "1", *words]) == 2
    assert message in capfd.readouterr().err

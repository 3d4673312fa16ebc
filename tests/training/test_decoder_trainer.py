"""`darkroom train decoder`: a decoder of 256 pixels learns on latents with a diffusion network's errors."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter

from engine.models.autoencoder.large_decoder import LargeDecoder
from engine.models.judge import as_images
from shared.training_parts import (
    are_same,
    blobs,
    draw_artwork,
    make_autoencoder,
    make_drawings,
    make_network,
    make_pictures,
)
from training.__main__ import main
from training.commands import builtin_artwork, run_decoder
from training.core import checkpoint
from training.core.run import Budget, TrainingRun
from training.diffusion.models import load_model, read_dtypes, write_model
from training.gan.decoder_trainer import (
    DecoderEvaluator,
    DecoderSettings,
    DecoderTrainer,
    build_large_decoder,
    fit_output_layer,
    measure_decoder,
    parse_widths,
    render_large_variants,
    shrink_by_area,
)
from training.gan.losses import gradient_energy, sharpness_loss
from training.gan.upscaler_trainer import LARGE_SIDE
from training.pictures.variants import render_variant

WEIGHTS = "diffusion_pytorch_model.safetensors"


def make_trainer(**fields: Any) -> DecoderTrainer:
    defaults: dict[str, Any] = {"batch": 2, "warm": 2, "crop": 4, "gan_from": 0.0, "widths": "4,4", "rate": 2e-3}
    settings = DecoderSettings(**(defaults | fields))
    autoencoder = make_autoencoder()
    network = build_large_decoder(autoencoder, parse_widths(settings.widths, autoencoder), 1)
    return DecoderTrainer(network, make_pictures(), settings)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny `vae` of 16×16×4 latents and a tiny `unet` that draws them."""
    folder = tmp_path_factory.mktemp("model")
    make_autoencoder().save_pretrained(folder / "vae")
    make_network().save_pretrained(folder / "unet")
    return folder


@pytest.fixture
def artwork(monkeypatch: pytest.MonkeyPatch) -> None:
    drawings = make_drawings()
    monkeypatch.setattr(builtin_artwork, "load_drawings", lambda *_, **__: drawings)


def command(model: Path, output_folder: Path, *options: str) -> list[str]:
    words = ["decoder", "--from", str(model), "--out", str(output_folder), "--batch", "2", "--crop", "4"]
    return [*words, "--widths", "4,4", "--pictures", "8", "--steps", "6", "--threads", "1", *options]


# --- the pictures


def test_a_large_variant_is_composed_like_the_small_one() -> None:
    drawing = make_drawings()[1]
    for number in range(8):
        small, large = (render_variant(drawing, number, 0, side) for side in (64, LARGE_SIDE))
        assert large.caption == small.caption
        difference = shrink_by_area(large.pixels).astype(int) - small.pixels
        assert abs(difference).mean() < 5


def test_drawings_without_detail_are_refused() -> None:
    with pytest.raises(ValueError, match="no drawing has 192 pixels a side"):
        render_large_variants([draw_artwork("ball")], 2, 0, 0)


def test_crops_of_pictures_lie_where_the_crops_of_latents_do() -> None:
    pictures = make_pictures()
    images, masks = pictures.read_crops(np.array([2]), np.array([[3, 5]]), 4)
    assert torch.equal(images, as_images(pictures.large[2:3, 48:112, 80:144]))
    expected = pictures.subject_masks[2, 12:28, 20:36].repeat(4, axis=0).repeat(4, axis=1)
    assert torch.equal(masks[0, 0], torch.from_numpy(expected).float())


# --- the trainer


def test_shared_levels_begin_with_the_autoencoders_weights() -> None:
    autoencoder = make_autoencoder()
    network = build_large_decoder(autoencoder, parse_widths("4,4", autoencoder), 1).eval()
    latents = torch.randn(2, 4, 8, 8)
    features = list[torch.Tensor]()
    for decoder in (autoencoder.decoder, network.decoder):
        last_layer = cast(Any, decoder.up_blocks[2]).resnets[-1]
        last_layer.register_forward_hook(lambda _module, _inputs, output: features.append(output))
    with torch.inference_mode():
        autoencoder.decode(latents, return_dict=False)  # pyright: ignore[reportArgumentType]
        picture = network(latents)
    assert torch.equal(*features)
    assert picture.shape == (2, 3, 8 * 16, 8 * 16)


def test_a_fitted_last_layer_draws_the_pictures_at_once() -> None:
    autoencoder = make_autoencoder()
    pictures = make_pictures()
    network = build_large_decoder(autoencoder, parse_widths("4,4", autoencoder), 1)
    images = as_images(pictures.large)
    before = {name: each.clone() for name, each in network.state_dict().items()}

    def measure_error() -> float:
        with torch.no_grad():
            return float((network(pictures.means) - images).square().mean())

    old_error = measure_error()
    fit_output_layer(network, pictures.means, images)
    new_error = measure_error()
    assert new_error < 0.7 * old_error
    assert new_error < float((images - images.mean(dim=(0, 2, 3), keepdim=True)).square().mean())
    changed = {name for name, tensor in network.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed == {"decoder.conv_out.weight", "decoder.conv_out.bias"}


def test_widths_of_all_levels_make_a_smaller_decoder() -> None:
    autoencoder = make_autoencoder()
    assert parse_widths("4,8", autoencoder) == [4, 8, 8, 8, 16]
    assert parse_widths("", autoencoder) == [8, 8, 8, 8, 16]
    narrow = build_large_decoder(autoencoder, parse_widths("4,4,8,8,12", autoencoder), 1)
    assert narrow(torch.zeros(1, 4, 4, 4)).shape == (1, 3, 64, 64)
    assert narrow.decoder.conv_in.weight.equal(autoencoder.decoder.conv_in.weight[:12])
    for widths in ("4", "4,4,8", "4,x", "4,6", "4,2048"):
        with pytest.raises(ValueError, match="--widths takes"):
            parse_widths(widths, autoencoder)


@pytest.mark.parametrize("batch", [1, 3, 4])
def test_half_of_a_batch_is_denoised_and_half_is_the_encoders(batch: int) -> None:
    trainer = make_trainer(batch=batch, noise=0.0, crop=16)
    denoised_count = 0
    total = 0
    for trainer.steps in range(8):
        task = trainer._draw_task(torch.Generator().manual_seed(0))
        for latents, image in zip(task.latents, task.images, strict=True):
            is_denoised = bool((latents > 50).all())
            total = total + 1
            distances = (trainer.pictures.means - latents).abs().sum(dim=(1, 2, 3))
            number = int(latents[0, 0, 0]) - 100 if is_denoised else int(distances.argmin())
            assert torch.equal(image, as_images(trainer.pictures.large[[number]])[0])  # a row's target is its picture
            denoised_count += is_denoised
    assert denoised_count == total // 2


def test_training_lowers_the_loss() -> None:
    trainer = make_trainer(gan_weight=0.0)
    losses = [trainer.step(0.0)["loss"] for _ in range(30)]
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])


def test_resuming_is_exact_including_the_discriminator(tmp_path: Path) -> None:
    full = make_trainer()
    resumed = make_trainer()
    for step in range(6):
        full.step(step / 6)
    first = make_trainer()
    for step in range(3):
        first.step(step / 6)
    resumed.restore(first.state_tensors(), 3)
    for step in range(3, 6):
        resumed.step(step / 6)
    assert are_same(full.state_tensors(), resumed.state_tensors())
    assert full.samples == resumed.samples == 12
    assert any(name.startswith("discriminator") for name in full.state_tensors())


def test_blur_costs_sharpness_and_a_shifted_edge_does_not() -> None:
    picture = Image.fromarray(blobs(1, 64)[0])
    blurred = picture.filter(ImageFilter.GaussianBlur(2))
    shifted = picture.rotate(0, translate=(1, 1), fillcolor=None)
    target, soft, moved = (as_images(np.array(each)[None]) for each in (picture, blurred, shifted))
    inner = np.s_[..., 4:, 4:]  # the shift fills the border with black
    assert sharpness_loss(target, target) == 0
    assert sharpness_loss(moved[inner], target[inner]) < 0.5 * sharpness_loss(soft[inner], target[inner])


def test_figures_and_the_sheet_compare_both_ways_with_the_drawings(tmp_path: Path) -> None:
    trainer = make_trainer()
    held_out = trainer.pictures

    def blur(_latents: torch.Tensor) -> np.ndarray:
        pictures = [Image.fromarray(each).filter(ImageFilter.GaussianBlur(4)) for each in held_out.large]
        return np.stack([np.asarray(each) for each in pictures])

    exact = measure_decoder(lambda _latents: held_out.large, held_out)
    assert exact["denoised_psnr"] == exact["psnr"] > 60
    assert exact["denoised_gradient_ratio"] == exact["small_gradient_ratio"] == 1
    figures = measure_decoder(blur, held_out)
    ratio = gradient_energy(as_images(blur(held_out.means))) / gradient_energy(as_images(held_out.large))
    assert figures["denoised_gradient_ratio"] == pytest.approx(ratio)
    assert ratio < figures["small_gradient_ratio"] < 0.9
    evaluator = DecoderEvaluator(trainer, held_out, lambda latents: held_out.large[: len(latents)])
    run = TrainingRun(tmp_path, trainer, evaluator, Budget(steps=1), start_time=0.0)
    run.save_checkpoint(0.0, {}, evaluate=True)
    with Image.open(next((tmp_path / "sheets").iterdir())) as sheet:
        assert sheet.size == (6 * LARGE_SIDE, 2 * LARGE_SIDE)


# --- the command


@pytest.mark.slow
@pytest.mark.usefixtures("artwork")
def test_a_stopped_run_resumes_bit_for_bit_and_denoises_once(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    step = DecoderTrainer.step
    load = run_decoder.load_caption_encoder
    loaded = list[int]()
    monkeypatch.setattr(run_decoder, "load_caption_encoder", lambda: loaded.append(1) or load())
    monkeypatch.setattr("training.commands.run_decoder.HELD_OUT_PICTURES", 2)
    assert main(command(model, tmp_path / "full")) == 0

    def stop_after_third(trainer: DecoderTrainer, progress: float) -> Any:
        losses = step(trainer, progress)
        if trainer.steps == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return losses

    with monkeypatch.context() as patch:
        patch.setattr(DecoderTrainer, "step", stop_after_third)
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
    results = [tmp_path / name / "decoder" / WEIGHTS for name in ("full", "stopped")]
    assert results[0].read_bytes() == results[1].read_bytes()
    report = json.loads((tmp_path / "stopped" / "figures.json").read_text())
    assert report == json.loads((tmp_path / "full" / "figures.json").read_text())
    for figures in (report["before"], report["after"]):
        assert {"denoised_psnr", "denoised_gradient_ratio", "small_gradient_ratio"} <= figures.keys()
    assert LargeDecoder.load(tmp_path / "full", make_autoencoder()) is not None  # as a model's folder would hold it
    assert main(command(model, tmp_path / "stopped", "--gan-weight", "2")) == 2
    assert "was begun with --gan-weight 0.5, not 2" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("MODEL/vae", "has no diffusion network: --from takes a model with unet and vae."),
        ("OTHER", "has no network for the built-in artwork"),
        ("UNFIT", "draws latents of 8×8×4, and the autoencoder has 16×16×4"),
        ("LARGE", "is not for 64 pixels: only such models are trained here"),
        ("EMPTY", "has no config.json that can be read"),
        ("TORN", "holds no weights in safetensors"),
    ],
)
@pytest.mark.usefixtures("artwork")
def test_an_unfit_model_is_refused_with_a_sentence(
    name: str, message: str, model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    for folder in ("OTHER", "UNFIT", "LARGE", "EMPTY", "TORN"):
        make_autoencoder(sample_size=128 if folder == "LARGE" else 64).save_pretrained(tmp_path / folder / "vae")
        (tmp_path / folder / "unet").mkdir()
    make_network(cross_attention_dim=64).save_pretrained(tmp_path / "OTHER" / "unet")
    make_network(sample_size=8).save_pretrained(tmp_path / "UNFIT" / "unet")
    make_network().save_pretrained(tmp_path / "LARGE" / "unet")
    make_network().save_config(tmp_path / "TORN" / "unet")
    path = Path(name.replace("MODEL", str(model))) if name.startswith("MODEL") else tmp_path / name
    assert main(command(path, tmp_path / "out")) == 2
    assert message in capfd.readouterr().err


def test_a_trained_model_takes_its_large_decoder_along(small_folder: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    shutil.copytree(small_folder, source)
    (source / "decoder").mkdir()
    (source / "decoder" / "config.json").write_text("{}")
    model = load_model(str(source))
    for name, source_folder in (("with", source), ("without", None)):
        write_model(model.pipeline, read_dtypes(source), tmp_path / name, tmp_path / "staging", source_folder)
    assert (tmp_path / "with" / "decoder" / "config.json").read_text() == "{}"
    assert not (tmp_path / "without" / "decoder").exists()

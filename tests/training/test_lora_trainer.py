"""LoRA training on a small Stable Diffusion folder: it resumes bit for bit, loads in diffusers and merges."""

from __future__ import annotations

import json
import shutil
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from PIL import Image
from safetensors import safe_open

from engine.models import load_model
from training.__main__ import main
from training.diffusion.latent_cache import LatentCache
from training.diffusion.lora_trainer import LoraSettings, LoraTrainer


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    for number, (word, colour) in enumerate(
        {"red": (220, 20, 20), "sky": (40, 90, 220), "leaf": (20, 180, 60)}.items()
    ):
        Image.new("RGB", (40, 32), colour).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(word)
    return folder


def open_pipeline(folder: Path) -> Any:
    pipeline = import_module("diffusers").StableDiffusionPipeline.from_pretrained(folder, safety_checker=None)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def draw_latents(pipeline: Any) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return pipeline("red", num_inference_steps=3, generator=generator, output_type="latent").images


def train(small: Path, pictures: Path, output_folder: Path, *options: str) -> int:
    words = [
        "lora",
        "--model",
        small,
        "--data",
        pictures,
        "--out",
        output_folder,
        "--threads",
        "1",
        "--precision",
        "fp32",
        *options,
    ]
    return main([str(word) for word in words])


def build_trainer(prediction: Any, steps: int = 0, precision: str = "fp32") -> LoraTrainer:
    torch.manual_seed(1)
    network: Any = import_module("diffusers").UNet2DConditionModel(
        sample_size=4,
        in_channels=4,
        out_channels=4,
        block_out_channels=(16, 32),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=8,
        attention_head_dim=4,
        norm_num_groups=4,
    )
    rng = np.random.default_rng(0)
    latents = rng.normal(size=(10, 4, 4, 4))
    states = rng.normal(size=(10, 6, 8))
    cache = LatentCache(
        latents.astype(np.float16), states.astype(np.float16), np.zeros((6, 8), np.float32), ("x",) * 10
    )
    scheduler = DDIMScheduler(prediction_type=prediction, beta_schedule="scaled_linear")
    trainer = LoraTrainer(network, cache, scheduler, LoraSettings(32, rank=4, batch=5, rate=1e-2, precision=precision))
    for number in range(steps):
        trainer.step(number / 10)
    return trainer


@pytest.mark.slow
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_training_lowers_the_loss_for_each_prediction_type(prediction: str) -> None:
    trainer = build_trainer(prediction)
    before = trainer.mean_loss(trainer.cache)
    for _ in range(40):
        trainer.step(0.0)
    assert trainer.mean_loss(trainer.cache) < 0.95 * before


def test_half_precision_trains_and_unknown_prediction_types_are_refused() -> None:
    assert 0 < build_trainer("epsilon", 2, precision="bf16").step(0.5)["loss"] < 10
    with pytest.raises(ValueError, match="neither noise nor v"):
        build_trainer("sample")


def test_a_lora_resumes_bit_for_bit_and_saves_only_its_own_weights() -> None:
    full_trainer = build_trainer("epsilon", 6)
    half = build_trainer("epsilon", 3)
    other = build_trainer("epsilon")
    saved_tensors = {name: tensor.clone() for name, tensor in half.state_tensors().items()}
    assert all("lora_" in name or name == "lora:moves" for name in saved_tensors)
    other.restore(saved_tensors, 3)
    for number in range(3, 6):
        other.step(number / 10)
    one = full_trainer.state_tensors()
    resumed_tensors = other.state_tensors()
    assert one.keys() == resumed_tensors.keys()
    assert all(torch.equal(one[name], resumed_tensors[name]) for name in one)


@pytest.mark.slow
def test_diffusers_loads_the_lora_and_the_engine_loads_the_merged_model(
    small_folder: Path, pictures: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    output_folder = tmp_path / "lora"
    merged = tmp_path / "merged"
    options = ["--steps", "6", "--rank", "2", "--alpha", "6", "--rate", "0.02", "--merge", str(merged)]
    assert train(small_folder, pictures, output_folder, *options) == 0
    with safe_open(output_folder / "pytorch_lora_weights.safetensors", framework="pt") as file:
        header = json.loads(file.metadata()["lora_adapter_metadata"])
    assert (header["unet.r"], header["unet.lora_alpha"]) == (2, 6.0)
    plain_pipeline = open_pipeline(small_folder)
    pipeline_with_lora = open_pipeline(small_folder)
    pipeline_with_lora.load_lora_weights(str(output_folder))
    config = pipeline_with_lora.unet.peft_config["default_0"]
    assert (config.r, config.lora_alpha) == (2, 6.0)
    assert (draw_latents(pipeline_with_lora) - draw_latents(plain_pipeline)).abs().max() > 1e-3
    assert torch.allclose(draw_latents(open_pipeline(merged)), draw_latents(pipeline_with_lora), atol=1e-4)
    assert load_model(str(merged), tmp_path).size == 32
    assert str(tmp_path) not in (merged / "unet" / "config.json").read_text()
    capfd.readouterr()
    assert train(small_folder, pictures, output_folder, *options) == 0
    assert "already" in capfd.readouterr().err


def test_options_that_do_not_fit_the_model_are_refused(
    small_folder: Path, pictures: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    output_folder = tmp_path / "lora"
    for options, sentence in (
        (["--merge", str(small_folder)], "--merge takes a new folder"),
        (["--size", "30"], "--size 30 does not suit this model: it takes multiples of 4"),
        (["--batch", "60000", "--size", "2048"], "This training needs about"),
    ):
        assert train(small_folder, pictures, output_folder, "--steps", "1", *options) == 2
        assert sentence in capfd.readouterr().err.splitlines()[-1]
    other = tmp_path / "other"
    shutil.copytree(small_folder, other)
    shutil.rmtree(other / "vae")
    assert train(other, pictures, output_folder, "--steps", "1") == 2
    assert "the weights of its vae not at all" in capfd.readouterr().err

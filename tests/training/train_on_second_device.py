"""Runs every trainer on the processor and on the second device, and compares: `python -m` this module.

Without autocast, which each device does in its own way, both must agree. It ends with an error for tensors of two
devices in one operation, and for other numbers.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler

from tests.training.second_device import NAME, autocast_devices

# It goes before whatever decorates its functions by `torch`.
# isort: split
from engine.models.judge import JudgeNetwork
from engine.process.model_settings import WEIGHTS_FOLDER
from tests.shared.training_parts import (
    SCHEDULE,
    SHAPE,
    THINGS,
    WIDTHS,
    blobs,
    drawings,
    make_network,
    pixels,
    small_pairs,
    tiny_autoencoder,
    tiny_cache,
    tiny_network,
)
from tests.shared.training_parts import make_pictures as make_decoder_pictures
from training.commands.run_decoder import NetworkSource, load_denoiser
from training.diffusion.denoised_latents import open_denoised_latents
from training.diffusion.diffusion_trainer import DiffusionEvaluator, DiffusionSettings, DiffusionTrainer
from training.diffusion.latent_cache import encode_latents, load_caption_encoder
from training.diffusion.lora_trainer import LoraEvaluator, LoraSettings, LoraTrainer
from training.diffusion.turbo_trainer import TurboEvaluator, TurboSettings, TurboTrainer
from training.evaluation.judge_trainer import JudgeEvaluator, JudgeSettings, JudgeTrainer, held_back_pairs
from training.gan.autoencoder_trainer import (
    AutoencoderEvaluator,
    AutoencoderSettings,
    AutoencoderTrainer,
    build_autoencoder,
)
from training.gan.decoder_trainer import DecoderEvaluator, DecoderSettings, DecoderTrainer, build_large_decoder
from training.gan.latent_coding import fold_scale, measure_latent_scale
from training.gan.losses import PerceptualLoss
from training.gan.upscaler_trainer import (
    UpscalerEvaluator,
    UpscalerSettings,
    UpscalerTrainer,
    build_pairs,
    build_upscaler,
)

SAMPLED_STEPS = 5  # an evaluator takes up to fifty, which are all alike
Parts = tuple[Any, Any]  # a trainer and its evaluator
EARLY_GAN: dict[str, Any] = {"batch": 4, "warm": 2, "gan_from": 0.0}


class ShortScheduler(DDIMScheduler):
    def set_timesteps(self, num_inference_steps: int, device: Any = None) -> None:
        super().set_timesteps(min(num_inference_steps, SAMPLED_STEPS), device)


def move(network: torch.nn.Module, device: torch.device) -> Any:
    return torch.nn.Module.to(network, device)


def make_autoencoder_parts(device: torch.device, *, keep_latents: bool) -> Parts:
    settings = AutoencoderSettings(**EARLY_GAN, keep_latents=keep_latents, equivariance=0.5)
    network = move(build_autoencoder(1, SHAPE), device)
    torch.manual_seed(3)
    perception = PerceptualLoss(JudgeNetwork(5, (8, 16)).to(device).stages)
    trainer = AutoencoderTrainer(network, pixels(), settings, perception)
    return trainer, AutoencoderEvaluator(trainer, pixels())


def make_large_decoder_parts(device: torch.device) -> Parts:
    torch.manual_seed(3)
    perception = PerceptualLoss(JudgeNetwork(5, (8, 16)).to(device).stages)
    pictures = make_decoder_pictures()
    settings = DecoderSettings(**{**EARLY_GAN, "batch": 2}, crop=4)
    network = move(build_large_decoder(build_autoencoder(1, {**SHAPE, "sample_size": 64}), [4, 4, 8, 8, 16], 1), device)
    trainer = DecoderTrainer(network, pictures, settings, perception)
    return trainer, DecoderEvaluator(trainer, pictures, lambda latents: pictures.large[: len(latents)])


def make_upscaler_parts(device: torch.device) -> Parts:
    settings = UpscalerSettings(**EARLY_GAN, crop=12)
    trainer = UpscalerTrainer(move(build_upscaler(1, 8, 2), device), small_pairs(), settings)
    return trainer, UpscalerEvaluator(trainer, small_pairs(4))


def make_diffusion_parts(device: torch.device) -> Parts:
    scheduler = ShortScheduler(**SCHEDULE)
    settings = DiffusionSettings(batch=8, warm=2, rate=1e-3)
    trainer = DiffusionTrainer(move(tiny_network(), device), tiny_cache(), scheduler.alphas_cumprod, settings)
    prompts = torch.zeros(2, 6, 64)
    autoencoder = move(tiny_autoencoder(), device)
    return trainer, DiffusionEvaluator(trainer, tiny_cache(8), prompts, autoencoder, scheduler)


def make_lora_parts(device: torch.device) -> Parts:
    scheduler = ShortScheduler(prediction_type="epsilon")
    trainer = LoraTrainer(move(tiny_network(), device), tiny_cache(), scheduler, LoraSettings(32, rank=4))
    return trainer, LoraEvaluator(trainer, tiny_cache(8), torch.zeros(2, 6, 64), tiny_autoencoder(), scheduler)


def make_turbo_parts(device: torch.device) -> Parts:
    scheduler = ShortScheduler(**SCHEDULE)
    settings = TurboSettings(rank=4, batch=8, interval="0.3-0.8")
    trainer = TurboTrainer(move(tiny_network(), device), tiny_cache(), scheduler, settings)
    return trainer, TurboEvaluator(trainer, tiny_cache(8), torch.ones(2, 6, 64), tiny_autoencoder(), scheduler)


def make_judge_parts(device: torch.device) -> Parts:
    torch.manual_seed(1)
    vectors = torch.nn.functional.normalize(torch.randn(len(THINGS), 384), dim=1)
    trainer = JudgeTrainer(
        drawings(), vectors, JudgeSettings(batch=6, warm=2, widths=",".join(map(str, WIDTHS))), device=device
    )
    return trainer, JudgeEvaluator(trainer, held_back_pairs(trainer.pictures, 1, 0))


PARTS: dict[str, Callable[[torch.device], Parts]] = {
    "decoder": lambda device: make_autoencoder_parts(device, keep_latents=True),
    "autoencoder": lambda device: make_autoencoder_parts(device, keep_latents=False),
    "large decoder": make_large_decoder_parts,
    "upscaler": make_upscaler_parts,
    "diffusion": make_diffusion_parts,
    "lora": make_lora_parts,
    "turbo": make_turbo_parts,
    "judge": make_judge_parts,
}


def run_trainer(make_parts: Callable[[torch.device], Parts], device: torch.device, sheet: Path) -> list[float]:
    """Train, evaluate, draw, and continue from a saved state; return all numbers."""
    trainer, evaluator = make_parts(device)
    autocast_devices.clear()
    assert {tensor.device.type for tensor in trainer.network.parameters()} == {device.type}
    numbers = [loss for progress in (0.5, 0.6) for loss in trainer.step(progress).values()]
    numbers += evaluator.evaluate().values()
    evaluator.draw_sheet(sheet)
    resumed, _ = make_parts(device)
    resumed.restore({name: tensor.detach().cpu().clone() for name, tensor in trainer.state_tensors().items()}, 2)
    last_losses = [list(one.step(0.7).values()) for one in (trainer, resumed)]
    assert last_losses[0] == last_losses[1]
    assert autocast_devices == {device.type}
    return [*numbers, *last_losses[0]]


def encode_pictures(device: torch.device) -> list[float]:
    """Return numbers of all that a network encodes before a training, and of the fold of its latents' scale."""
    autoencoder = move(tiny_autoencoder(), device)
    captions = load_caption_encoder()
    move(captions.encoder, device)
    pairs = build_pairs(iter(np.repeat(small_pairs(4).large, 4, axis=1).repeat(4, axis=2)), 4, autoencoder, 3, 0.0)
    latents = encode_latents(autoencoder, pixels().pictures)
    states = captions(["a red ball"])
    fold_scale(autoencoder, *measure_latent_scale(autoencoder, pixels()))
    folded = encode_latents(autoencoder, pixels().pictures)
    return [float(array.mean()) for array in (pairs.decoded, latents.numpy(), states.numpy(), folded.std().numpy())]


def denoise(device: torch.device, folder: Path) -> list[float]:
    """Return numbers of the latents of `train decoder`, from a network on disk."""
    torch.manual_seed(2)
    make_network().save_pretrained(folder / "network")
    autoencoder = move(build_autoencoder(1, {**SHAPE, "sample_size": 64}).eval(), device)
    denoiser = load_denoiser(NetworkSource("tiny", folder / "network", WEIGHTS_FOLDER), autoencoder, device)
    assert next(denoiser.network.parameters()).device == device
    autocast_devices.clear()
    pictures = np.stack(blobs(2, 64))
    captions = ["a red ball", "a dog"]
    latents = open_denoised_latents(folder, device.type, lambda: denoiser, pictures, captions, 0)
    assert autocast_devices == {device.type}
    return latents.astype(np.float32).flatten().tolist()


def main() -> None:
    torch.set_num_threads(1)
    devices = torch.device("cpu"), torch.device(NAME, 0)
    with tempfile.TemporaryDirectory() as folder:
        for name, make_parts in PARTS.items():
            results = [run_trainer(make_parts, device, Path(folder) / "sheet.png") for device in devices]
            np.testing.assert_allclose(*results, rtol=1e-3, err_msg=name)
        np.testing.assert_allclose(*(denoise(device, Path(folder)) for device in devices), rtol=1e-2, atol=1e-2)
    np.testing.assert_allclose(*map(encode_pictures, devices), rtol=1e-3, atol=1e-5)


if __name__ == "__main__":
    sys.exit(main())

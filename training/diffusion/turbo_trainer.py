"""Distils a Stable Diffusion network into a turbo LoRA, with which it draws in four steps and without guidance.

The teacher is the frozen network with guidance, the student the same network with the LoRA. From any point of a path,
the student learns to predict the latents at which the teacher's path ends. So it never learns from itself: consistency
distillation, where the next point's prediction is the target, drifted into noise within 8,000 pictures. It is
independent of files and clocks. All randomness is a function of (seed, step).

Luhman 2021 (knowledge distillation of a path's end); Luo 2023 (latent consistency models: the sampler, LCM-LoRA);
Song & Dhariwal 2023 (pseudo-Huber loss); Kynkäänniemi 2024 (guidance interval).
"""

from __future__ import annotations

import re
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from torch import Tensor

from engine.contract import TURBO_STEPS, is_in_interval
from engine.models.judge import as_images
from engine.sampling.samplers import build_scheduler
from training.core.learner import (
    BatchTrainer,
    Learner,
    batch_indices,
    cosine_decay,
    mixed_precision,
    step_generator,
    stratified_uniforms,
    warmup_factor,
)
from training.core.run import Metrics
from training.diffusion.latent_cache import LatentCache
from training.diffusion.lora_trainer import TARGET_MODULES, add_lora
from training.diffusion.sampling import (
    add_noise,
    decode_latents,
    measure_mean_loss,
    read_rows,
    sample_latents,
    seed_generators,
)
from training.gan.losses import gradient_energy
from training.pictures.masked_pictures import write_picture_sheet

# steps of the teacher's path; original_inference_steps of diffusers' LCMScheduler
GRID_STEPS = 50
# of the same
TIMESTEP_SCALING = 10.0
SIGMA_DATA = 0.5
HUBER_CONSTANT = 1e-3
TURBO_TEXT = (
    "proj_in proj_out ff.net.0.proj ff.net.2 conv1 conv2 conv_shortcut downsamplers.0.conv upsamplers.0.conv "
    "time_emb_proj"
)
TURBO_MODULES = [*TARGET_MODULES, *TURBO_TEXT.split()]
_INTERVAL = re.compile(r"([0-9.]{1,8})-([0-9.]{1,8})")


@dataclass(frozen=True)
class TurboSettings:
    """The settings that stay the same for a whole run; `interval` is a text that `parse_interval` reads.

    One step of the teacher spans `skip` of its fifty, so that its path has at most 50 ÷ `skip` steps.
    """

    guidance: float = 4.0
    interval: str = "0-1"
    skip: int = 5
    rank: int = 32
    rate: float = 2e-4
    batch: int = 16
    warm: int = 10
    decay: float = 0.0
    seed: int = 0


def parse_interval(text: str) -> tuple[float, float]:
    """Return where guidance begins and ends, as fractions of the steps. Raises ValueError."""
    match = _INTERVAL.fullmatch(text)
    try:
        start, stop = (float(match[1]), float(match[2])) if match else (0.0, 0.0)
    except ValueError:  # two points in one number
        start = 0.0
        stop = 0.0
    if not 0 <= start < stop <= 1:
        raise ValueError(f"--interval takes two fractions of the steps, like 0.3-0.8, not {text[:40]!r}.")
    return start, stop


def boundary_scaling(timesteps: Tensor) -> tuple[Tensor, Tensor]:
    """Return c_skip and c_out, float [n, 1, 1, 1]: 1 and 0 at timestep 0, so that clean latents stay as they are."""
    scaled = TIMESTEP_SCALING * timesteps.float().view(-1, 1, 1, 1)
    total = scaled**2 + SIGMA_DATA**2
    return SIGMA_DATA**2 / total, scaled / total.sqrt()


def pseudo_huber(output: Tensor, target: Tensor) -> Tensor:
    """Return the mean pseudo-Huber loss: nearly the absolute error, but smooth at zero."""
    return ((output - target).square() + HUBER_CONSTANT**2).sqrt().mean() - HUBER_CONSTANT


@dataclass(frozen=True)
class NoiseSchedule:
    """A network's noise levels: `alphas` is ᾱ of each timestep. Timesteps are long [n], latents [n, c, h, w]."""

    alphas: Tensor
    predicts_noise: bool

    @property
    def grid(self) -> Tensor:
        """Return the timesteps of the path, long [GRID_STEPS], from little noise to much."""
        return torch.arange(1, GRID_STEPS + 1, device=self.alphas.device) * (len(self.alphas) // GRID_STEPS) - 1

    def split(self, prediction: Tensor, noisy: Tensor, timesteps: Tensor) -> tuple[Tensor, Tensor]:
        """Return the clean latents and the noise that a prediction means."""
        signal, sigma = self._levels(timesteps)
        if self.predicts_noise:
            return (noisy - sigma * prediction) / signal, prediction
        return signal * noisy - sigma * prediction, signal * prediction + sigma * noisy

    def ddim_step(self, prediction: Tensor, noisy: Tensor, timesteps: Tensor, next_timesteps: Tensor) -> Tensor:
        """Return the latents at `next_timesteps`, by one step of DDIM without new noise (Song 2021, eq. 12)."""
        clean, noise = self.split(prediction, noisy, timesteps)
        signal, sigma = self._levels(next_timesteps)
        return signal * clean + sigma * noise

    def _levels(self, timesteps: Tensor) -> tuple[Tensor, Tensor]:
        alphas = self.alphas[timesteps].view(-1, 1, 1, 1)
        return alphas.sqrt(), (1 - alphas).sqrt()


class TurboTrainer(BatchTrainer[Learner]):
    """Trains a turbo LoRA on `network`; `scheduler` says how noise is added and what is predicted."""

    def __init__(self, network: Any, cache: LatentCache, scheduler: DDIMScheduler, settings: TurboSettings) -> None:
        self.network = network.requires_grad_(False).train()
        self.cache = cache
        self.settings = settings
        if scheduler.config["prediction_type"] not in ("epsilon", "v_prediction"):
            raise ValueError("This model predicts neither noise nor v, and only such models can be distilled.")
        if len(scheduler.alphas_cumprod) < GRID_STEPS:
            raise ValueError(f"This model has fewer than {GRID_STEPS} timesteps, too few for the teacher's steps.")
        self.device = next(network.parameters()).device
        predicts_noise = scheduler.config["prediction_type"] == "epsilon"
        self.schedule = NoiseSchedule(scheduler.alphas_cumprod.to(self.device), predicts_noise)
        self.interval = parse_interval(settings.interval)
        steps = range(GRID_STEPS - 1, -1, -1)  # the grid begins where the path ends
        self.is_guided = torch.tensor([is_in_interval(self.interval, step, GRID_STEPS) for step in steps])
        lora = add_lora(network, TURBO_MODULES, settings.rank, settings.rank, settings.seed)
        super().__init__(Learner("lora", lora, weight_decay=settings.decay), min(settings.batch, len(cache)))
        self.empty_states = torch.from_numpy(cache.empty_states).float()

    def step(self, progress: float) -> Metrics:
        """Train one batch. Raises ValueError if the loss is not a number."""
        indices = np.sort(batch_indices(self.settings.seed, self.steps, len(self.cache), self.batch_size))
        loss = self._loss(*read_rows(self.cache, indices), step_generator(self.settings.seed, self.steps))
        self.refuse_bad_loss(loss)
        loss.backward()
        rate = self.settings.rate * warmup_factor(self.steps, self.settings.warm) * cosine_decay(progress)
        self.learner.update(rate)
        self.steps += 1
        return {"loss": float(loss.detach())}

    def mean_loss(self, cache: LatentCache) -> float:
        return measure_mean_loss(cache, self.batch_size, self._loss)

    @contextmanager
    def without_lora(self) -> Generator[None]:
        """Turn the LoRA off: the network is the teacher."""
        self.network.disable_adapters()
        try:
            yield
        finally:
            self.network.enable_adapters()

    def predict_clean(self, noisy: Tensor, timesteps: Tensor, states: Tensor) -> Tensor:
        """Return the finished latents that the student predicts, as LCMScheduler computes them."""
        c_skip, c_out = boundary_scaling(timesteps)
        clean, _ = self.schedule.split(self._predict(noisy, timesteps, states), noisy, timesteps)
        return c_skip * noisy + c_out * clean

    def _loss(self, clean: Tensor, states: Tensor, generator: torch.Generator) -> Tensor:
        indices = (stratified_uniforms(len(clean), generator) * GRID_STEPS).long().clamp_(max=GRID_STEPS - 1)
        noise = torch.randn(clean.shape, generator=generator).to(self.device)
        clean = clean.to(self.device)
        states = states.to(self.device)
        grid = self.schedule.grid
        timesteps = grid[indices.to(self.device)]
        noisy, _ = add_noise(clean, noise, self.schedule.alphas[timesteps])
        target = self.run_teacher(noisy, indices, states)
        return pseudo_huber(self.predict_clean(noisy, timesteps, states), target)

    @torch.no_grad()
    def run_teacher(self, noisy: Tensor, indices: Tensor, states: Tensor) -> Tensor:
        """Return the ends of the teacher's paths that begin at `indices` of the grid, long [n], on the host."""
        latents = noisy.clone()
        indices = indices.clone()
        with self.without_lora():
            while len(going := (indices >= 0).nonzero().flatten()):
                rows = going.to(self.device)
                at = indices[going]
                timesteps = self.schedule.grid[at.to(self.device)]
                span = self.settings.skip * (len(self.schedule.alphas) // GRID_STEPS)
                prediction = self._predict_guided(latents[rows], timesteps, states[rows], self.is_guided[at])
                next_timesteps = (timesteps - span).clamp(min=0)
                latents[rows] = self.schedule.ddim_step(prediction, latents[rows], timesteps, next_timesteps)
                indices[going] = at - self.settings.skip
        return latents

    def _predict_guided(self, noisy: Tensor, timesteps: Tensor, states: Tensor, is_guided: Tensor) -> Tensor:
        """Predict with classifier-free guidance in the rows of `is_guided`, bool [n]; in one forward."""
        rows = is_guided.nonzero().flatten().to(self.device)
        empty_states = self.empty_states.to(self.device).expand(len(rows), -1, -1)
        doubled = (torch.cat([noisy, noisy[rows]]), torch.cat([timesteps, timesteps[rows]]))
        predictions = self._predict(*doubled, torch.cat([states, empty_states]))
        conditional, unconditional = predictions[: len(noisy)], predictions[len(noisy) :]
        guided = unconditional + self.settings.guidance * (conditional[rows] - unconditional)
        return conditional.index_copy(0, rows, guided)

    def _predict(self, noisy: Tensor, timesteps: Tensor, states: Tensor) -> Tensor:
        with mixed_precision(self.device):
            return self.network(noisy, timesteps, encoder_hidden_states=states, return_dict=False)[0].float()


@torch.inference_mode()
def sample_turbo(network: Any, states: Tensor, scheduler: DDIMScheduler, *, steps: int = TURBO_STEPS) -> Tensor:
    """Sample latents by LCM without guidance; row i uses seed i, as `sample_latents` does."""
    latents, generators = seed_generators(network.config, len(states))
    latents = latents.to(states.device)
    lcm_scheduler = build_scheduler(scheduler.config, "lcm")
    lcm_scheduler.set_timesteps(steps)
    for timestep in lcm_scheduler.timesteps:
        with mixed_precision(states.device):
            prediction = network(latents, timestep, encoder_hidden_states=states, return_dict=False)[0]
        latents = lcm_scheduler.step(prediction.float(), int(timestep), latents, generators, return_dict=False)[0]
    return cast(Tensor, latents)


def relative_distance(latents: Tensor, reference: Tensor) -> float:
    """Return the root mean square of the difference, as a share of the reference's."""
    return float(((latents - reference).square().mean() / reference.square().mean()).sqrt())


@dataclass(frozen=True)
class TurboEvaluator:
    """Compares the student's steps with the teacher's fifty, for the same prompts and the same first noise."""

    trainer: TurboTrainer
    held_out_cache: LatentCache
    prompt_states: Tensor
    autoencoder: Any
    scheduler: DDIMScheduler

    @cached_property
    def teacher_latents(self) -> Tensor:
        """Return the teacher's latents for the prompts; they never change in a run."""
        trainer = self.trainer
        with trainer.without_lora():
            return sample_latents(
                trainer.network,
                self.prompt_states.to(trainer.device),
                trainer.empty_states.to(trainer.device),
                self.scheduler,
                steps=GRID_STEPS,
                guidance=trainer.settings.guidance,
                interval=trainer.interval,
            )

    def sample_student(self, steps: int = TURBO_STEPS) -> Tensor:
        prompt_states = self.prompt_states.to(self.trainer.device)
        return sample_turbo(self.trainer.network, prompt_states, self.scheduler, steps=steps)

    def evaluate(self) -> Metrics:
        """Return the loss, two distances from the teacher's latents, and how sharp the pictures of four steps are.

        A distance is 0 for the same latents and 1 for zeros. Only one step can reach 0: LCM adds new noise to others.
        The ratio is of gradient energies, 1 for pictures as sharp as the teacher's.
        """
        student = self.sample_student()
        teacher = self.teacher_latents
        images = [as_images(decode_latents(self.autoencoder, latents)) for latents in (student, teacher)]
        student_energy, teacher_energy = map(gradient_energy, images)
        return {
            "held_out_loss": self.trainer.mean_loss(self.held_out_cache),
            "one_step_distance": relative_distance(self.sample_student(1), teacher),
            "four_step_distance": relative_distance(student, teacher),
            "gradient_ratio": student_energy / max(teacher_energy, 1e-9),
        }

    def draw_sheet(self, path: Path) -> None:
        """Draw each prompt twice: by four steps with the LoRA, and beside that by the teacher."""
        sides = (self.sample_student(), self.teacher_latents)
        pictures = [decode_latents(self.autoencoder, latents) for latents in sides]
        write_picture_sheet(path, [picture for pair in zip(*pictures, strict=True) for picture in pair])

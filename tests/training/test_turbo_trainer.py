"""Distillation into a turbo LoRA: the same mathematics as diffusers, exact resumption, a file that diffusers loads."""

from __future__ import annotations

import json
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_lcm import LCMScheduler
from PIL import Image
from safetensors import safe_open

from engine.contract import FULL_INTERVAL
from engine.models.lora_files import find_lora, is_compatible
from shared.training_parts import SCHEDULE, tiny_cache, tiny_network
from training.__main__ import main
from training.commands.run_lora import _make_turbo_settings
from training.diffusion.sampling import sample_latents
from training.diffusion.turbo_trainer import (
    GRID_STEPS,
    TURBO_STEPS,
    NoiseSchedule,
    TurboSettings,
    TurboTrainer,
    boundary_scaling,
    parse_interval,
    pseudo_huber,
    sample_turbo,
)

PREDICTIONS = ["epsilon", "v_prediction"]


def build_scheduler(prediction: str, **overrides: Any) -> DDIMScheduler:
    is_zero_snr = prediction == "v_prediction"
    return DDIMScheduler(
        **{**SCHEDULE, "prediction_type": prediction, "rescale_betas_zero_snr": is_zero_snr, "clip_sample": False}
        | overrides
    )


def build_trainer(prediction: str = "v_prediction", steps: int = 0, **overrides: Any) -> TurboTrainer:
    settings = TurboSettings(**{"rank": 4, "batch": 5, "rate": 1e-2, "interval": "0.3-0.8"} | overrides)
    trainer = TurboTrainer(tiny_network(), tiny_cache(), build_scheduler(prediction), settings)
    for number in range(steps):
        trainer.step(number / 10)
    return trainer


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def make_schedule(scheduler: Any) -> NoiseSchedule:
    return NoiseSchedule(scheduler.alphas_cumprod, scheduler.config.prediction_type == "epsilon")


def test_the_boundary_scaling_and_the_grid_are_those_of_the_lcm_scheduler() -> None:
    scheduler = LCMScheduler()
    timesteps = torch.tensor([0, 1, 19, 500, 999])
    expected = [scheduler.get_scalings_for_boundary_condition_discrete(int(timestep)) for timestep in timesteps]
    assert torch.allclose(torch.stack(boundary_scaling(timesteps), dim=1).view(-1, 2), torch.tensor(expected))
    grid = make_schedule(scheduler).grid.tolist()
    scheduler.set_timesteps(GRID_STEPS)
    assert grid == scheduler.timesteps.tolist()[::-1]
    scheduler.set_timesteps(TURBO_STEPS)
    assert set(scheduler.timesteps.tolist()) <= set(grid)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_a_step_of_the_teacher_is_a_step_of_the_ddim_scheduler(prediction: str) -> None:
    scheduler = build_scheduler(prediction, set_alpha_to_one=False)
    schedule, (noisy, output) = make_schedule(scheduler), (draw(1, 4, 4, 4), draw(1, 4, 4, 4, seed=1))
    scheduler.set_timesteps(GRID_STEPS)
    assert schedule.grid.tolist() == scheduler.timesteps.tolist()[::-1]
    for timestep in (999, 499, 19):  # after the last step diffusers takes timestep 0
        moved = schedule.ddim_step(output, noisy, torch.tensor([timestep]), torch.tensor([max(timestep - 20, 0)]))
        expected = scheduler.step(output, timestep, noisy, return_dict=False)[0]
        assert torch.allclose(moved, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_the_student_predicts_what_the_lcm_scheduler_computes(prediction: str, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer, (noisy, output) = build_trainer(prediction), (draw(1, 4, 4, 4), draw(1, 4, 4, 4, seed=1))
    monkeypatch.setattr(trainer, "_predict", lambda *_: output)
    scheduler: Any = LCMScheduler.from_config(build_scheduler(prediction).config)
    scheduler.set_timesteps(TURBO_STEPS)
    for timestep in scheduler.timesteps:
        clean = trainer.predict_clean(noisy, timestep.view(1), draw(1, 6, 64))
        assert torch.allclose(clean, scheduler.step(output, int(timestep), noisy).denoised, rtol=1e-4, atol=1e-5)
    assert torch.equal(trainer.predict_clean(noisy, torch.tensor([0]), draw(1, 6, 64)), noisy)


def test_the_loss_is_the_absolute_error_far_from_zero_and_smooth_at_zero() -> None:
    assert float(pseudo_huber(torch.full((2,), 3.0), torch.ones(2))) == pytest.approx(2.0, abs=2e-3)
    assert float(pseudo_huber(torch.ones(2), torch.ones(2))) == 0


def test_guidance_holds_in_the_rows_of_the_interval_only(monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = build_trainer(guidance=3.0)
    states = torch.ones(3, 6, 64)

    def predict_mean_state(noisy: torch.Tensor, _timesteps: torch.Tensor, states: torch.Tensor) -> torch.Tensor:
        return states.mean(dim=(1, 2)).view(-1, 1, 1, 1).expand_as(noisy)

    monkeypatch.setattr(trainer, "_predict", predict_mean_state)
    prediction = trainer._predict_guided(
        draw(3, 4, 4, 4), torch.zeros(3).long(), states, torch.tensor([True, False, True])
    )
    assert prediction.mean(dim=(1, 2, 3)).tolist() == [3.0, 1.0, 3.0]  # the empty states are zeros
    guided_indices = trainer.is_guided.nonzero().flatten().tolist()
    assert guided_indices == list(range(10, 35))  # steps 15 to 39 of 50, counted from the noise


def test_the_teachers_pictures_are_guided_in_the_interval_only() -> None:
    network = tiny_network()
    scheduler = build_scheduler("v_prediction")
    states = draw(2, 6, 64)

    def sample(empty_states: torch.Tensor, interval: tuple[float, float]) -> torch.Tensor:
        return sample_latents(network, states, empty_states, scheduler, steps=4, interval=interval)

    one = torch.zeros(6, 64)
    other = draw(6, 64, seed=2)
    assert not torch.equal(sample(one, FULL_INTERVAL), sample(other, FULL_INTERVAL))
    assert not torch.equal(sample(one, FULL_INTERVAL), sample(one, (0.5, 1.0)))
    assert torch.equal(sample(one, (0.0, 0.1)), sample(other, (0.0, 0.1)))  # no step of four begins there


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_before_training_the_student_is_the_teacher(prediction: str) -> None:
    network = tiny_network()
    trainer = build_trainer(prediction)
    inputs = draw(2, 4, 4, 4), torch.tensor([19, 999]), draw(2, 6, 64)

    @torch.no_grad()
    def predict() -> torch.Tensor:
        return trainer._predict(*inputs)

    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        expected = network(*inputs, return_dict=False)[0].float()
    assert torch.equal(predict(), expected)
    trainer.step(0.0)
    assert not torch.equal(predict(), expected)
    with trainer.without_lora():
        assert torch.equal(predict(), expected)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_the_target_is_where_the_teachers_path_ends(prediction: str) -> None:
    """Each row has its own path; the last step ends at timestep 0."""
    trainer = build_trainer(prediction, skip=5)
    trainer.is_guided[:] = False
    noisy = draw(3, 4, 4, 4)
    states = draw(3, 6, 64)
    indices = torch.tensor([49, 2, 12])
    trainer.step(0.0)  # the LoRA is no longer zero
    ends = trainer.run_teacher(noisy, indices, states)
    with torch.no_grad(), trainer.without_lora():
        for row, timesteps in enumerate(((999, 899, 799, 699, 599, 499, 399, 299, 199, 99), (59,), (259, 159, 59))):
            expected = noisy[row : row + 1]
            for timestep in timesteps:
                output = trainer._predict(expected, torch.tensor([timestep]), states[row : row + 1])
                next_timestep = torch.tensor([max(timestep - 100, 0)])
                expected = trainer.schedule.ddim_step(output, expected, torch.tensor([timestep]), next_timestep)
            assert torch.allclose(ends[row : row + 1], expected, rtol=1e-2, atol=1e-2)  # bf16, in other batches
    assert indices.tolist() == [49, 2, 12]


def test_the_targets_of_a_batch_are_of_the_whole_path(monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = build_trainer(batch=20)
    seen_indices = list[torch.Tensor]()
    run_teacher = trainer.run_teacher

    def record(noisy: torch.Tensor, indices: torch.Tensor, states: torch.Tensor) -> torch.Tensor:
        seen_indices.append(indices)
        return run_teacher(noisy, indices, states)

    monkeypatch.setattr(trainer, "run_teacher", record)
    trainer.step(0.0)
    (indices,) = seen_indices
    assert 0 <= indices.min() < 5 < 44 < indices.max() < GRID_STEPS


@pytest.mark.slow
@pytest.mark.parametrize(("prediction", "rate"), [("epsilon", 1e-3), ("v_prediction", 5e-3)])
def test_training_lowers_the_loss_for_each_prediction_type(prediction: str, rate: float) -> None:
    trainer = build_trainer(prediction, rate=rate, batch=10)
    before = trainer.mean_loss(trainer.cache)
    for _ in range(60):
        trainer.step(0.0)
    assert trainer.mean_loss(trainer.cache) < 0.9 * before


@pytest.mark.slow
def test_a_turbo_lora_resumes_bit_for_bit_and_saves_only_its_own_weights() -> None:
    full_trainer = build_trainer(steps=4)
    half = build_trainer(steps=2)
    other = build_trainer()
    saved_tensors = {name: tensor.clone() for name, tensor in half.state_tensors().items()}
    assert all("lora_" in name or name == "lora:moves" for name in saved_tensors)
    other.restore(saved_tensors, 2)
    for number in range(2, 4):
        other.step(number / 10)
    one = full_trainer.state_tensors()
    resumed_tensors = other.state_tensors()
    assert one.keys() == resumed_tensors.keys()
    assert all(torch.equal(one[name], resumed_tensors[name]) for name in one)


def test_four_steps_are_those_of_the_lcm_scheduler() -> None:
    trainer = build_trainer(steps=1)
    scheduler = build_scheduler("v_prediction")
    states = draw(2, 6, 64)
    generators = [torch.Generator().manual_seed(seed) for seed in range(2)]
    latents = torch.stack([torch.randn(4, 4, 4, generator=generator) for generator in generators])
    lcm_scheduler: Any = LCMScheduler.from_config(scheduler.config)
    lcm_scheduler.set_timesteps(TURBO_STEPS)
    for timestep in lcm_scheduler.timesteps:
        with torch.no_grad():
            prediction = trainer._predict(latents, timestep.expand(2), states)
        latents = lcm_scheduler.step(prediction, timestep, latents, generator=generators).prev_sample
    assert torch.allclose(sample_turbo(trainer.network, states, scheduler), latents, atol=1e-5)


def test_networks_that_cannot_be_distilled_are_refused() -> None:
    for overrides, sentence in (
        ({"prediction_type": "sample"}, "predicts neither noise nor v"),
        ({"num_train_timesteps": 40}, "fewer than 50 timesteps"),
    ):
        with pytest.raises(ValueError, match=sentence):
            TurboTrainer(tiny_network(), tiny_cache(), build_scheduler("epsilon", **overrides), TurboSettings())


def test_a_loss_that_is_no_number_stops_the_training() -> None:
    trainer = build_trainer()
    trainer.cache.latents[:] = float("nan")
    with pytest.raises(ValueError, match="lower the learning rate"):
        trainer.step(0.0)


def test_the_guidance_interval_is_the_embedded_models_own_by_default() -> None:
    assert parse_interval(_make_turbo_settings("embedded", {}).interval) == (0.3, 0.8)
    assert parse_interval(_make_turbo_settings("other", {}).interval) == FULL_INTERVAL
    assert parse_interval(_make_turbo_settings("embedded", {"interval": "0.1-1"}).interval) == (0.1, 1.0)
    for text in ("", "0.3", "0.8-0.3", "0-1.5", "a-b", "1..2-3", "0-0"):
        with pytest.raises(ValueError, match="--interval takes two fractions"):
            parse_interval(text)


def test_the_built_in_artwork_is_refused_for_models_of_another_kind(
    small_folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    words = ["turbo", "--model", str(small_folder), "--out", str(tmp_path / "out"), "--steps", "1"]
    assert main(words) == 2
    assert "give this one captioned pictures with --data" in capfd.readouterr().err


@pytest.mark.slow
def test_diffusers_loads_the_turbo_lora_of_a_folder_of_pictures(
    small_folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    pictures = tmp_path / "pictures"
    output_folder = tmp_path / "turbo"
    pictures.mkdir()
    Image.new("RGB", (40, 32), (220, 20, 20)).save(pictures / "0.png")
    (pictures / "0.txt").write_text("red")
    words = ["turbo", "--model", small_folder, "--data", pictures, "--out", output_folder, "--steps", "6"]
    options = ["--rank", "2", "--rate", "0.05", "--batch", "4", "--threads", "1"]
    assert main([*map(str, words), *options]) == 0
    assert "to the folder turbo of the model" in capfd.readouterr().err
    with safe_open(output_folder / "pytorch_lora_weights.safetensors", framework="pt") as file:
        assert json.loads(file.metadata()["lora_adapter_metadata"])["unet.r"] == 2
        assert {file.get_tensor(name).dtype for name in file.keys()} == {torch.float16}  # noqa: SIM118
        assert any("conv1" in name for name in file.keys())  # noqa: SIM118
    pipeline: Any = import_module("diffusers").StableDiffusionPipeline.from_pretrained(
        small_folder, safety_checker=None
    )
    pipeline.scheduler = LCMScheduler.from_config(pipeline.scheduler.config)
    assert is_compatible(pipeline, "unet", find_lora(tmp_path, "turbo"))
    plain = draw_latents(pipeline)
    pipeline.load_lora_weights(str(output_folder))
    assert (draw_latents(pipeline) - plain).abs().max() > 1e-3
    log = [json.loads(line) for line in (output_folder / "run" / "log.jsonl").read_text().splitlines()]
    assert {"held_out_loss", "one_step_distance", "four_step_distance", "gradient_ratio"} <= log[0].keys()
    assert list((output_folder / "run" / "sheets").glob("*.png"))


def draw_latents(pipeline: Any) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return pipeline("red", num_inference_steps=4, guidance_scale=1.0, generator=generator, output_type="latent").images

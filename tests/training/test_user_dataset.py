"""`darkroom train diffusion --data`: after a kill it resumes bit for bit; the result is a complete model."""

from __future__ import annotations

import json
import shutil
import signal
import struct
import subprocess
import sys
import time
from importlib import import_module
from pathlib import Path

import pytest
import torch
from PIL import Image

from bot.app.settings import load_settings as settings
from bot.cli.imagine.job_inputs import ImagineRequest
from bot.cli.imagine.runner import run_imagine
from engine.models import load_model
from engine.models.families.stable_diffusion import StableDiffusion
from engine.models.files.model_source import fingerprint_folder
from engine.models.text_embedder import load_text_encoder
from engine.output.previewer import Previewer
from training.__main__ import main
from training.commands.builtin_artwork import find_weights
from training.core import checkpoint, memory_estimate
from training.core.learner import is_hidden_matrix
from training.core.run import CHECKPOINT_FILE
from training.diffusion.models import hash_contents

ROOT = Path(__file__).parents[2]
STEPS = 24
AVERAGE = "network:average."


@pytest.fixture(scope="module")
def user_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`pictures/` with three captioned pictures, and `model/`: tiny parts of our kind, but wide enough for Muon."""
    from transformers.models.bert.configuration_bert import BertConfig
    from transformers.models.bert.modeling_bert import BertModel

    folder = tmp_path_factory.mktemp("own")
    diffusers = import_module("diffusers")
    (folder / "pictures").mkdir()
    for name, colour in {"red": (220, 20, 20), "blue": (40, 90, 220), "green": (20, 180, 60)}.items():
        Image.new("RGB", (40, 32), colour).save(folder / "pictures" / f"{name}.png")
        (folder / "pictures" / f"{name}.txt").write_text(f"a {name} ball")
    torch.manual_seed(0)
    tokenizer, _ = load_text_encoder()
    text = BertConfig(hidden_size=64, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32)
    text.use_attention_mask = True
    pipeline = diffusers.StableDiffusionPipeline(
        vae=diffusers.AutoencoderKL(
            block_out_channels=(8, 8),
            down_block_types=("DownEncoderBlock2D",) * 2,
            latent_channels=4,
            up_block_types=("UpDecoderBlock2D",) * 2,
            norm_num_groups=4,
            sample_size=16,
            scaling_factor=1.0,
        ),
        unet=diffusers.UNet2DConditionModel(
            sample_size=8,
            in_channels=4,
            out_channels=4,
            block_out_channels=(16, 64),
            layers_per_block=1,
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            norm_num_groups=4,
            attention_head_dim=8,
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            cross_attention_dim=64,
        ),
        scheduler=diffusers.DDPMScheduler(
            prediction_type="v_prediction",
            rescale_betas_zero_snr=True,
            clip_sample=False,
            steps_offset=1,
            timestep_spacing="trailing",
        ),
        text_encoder=BertModel(text),
        tokenizer=tokenizer,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(folder / "model")
    return folder


def arguments(user_data: Path, output_folder: Path, *options: str) -> list[str]:
    command = [
        "diffusion",
        "--from",
        user_data / "model",
        "--data",
        user_data / "pictures",
        "--out",
        output_folder,
        "--steps",
        STEPS,
    ]
    return [*map(str, command), "--threads", "1", "--minutes", "0.015", *options]


@pytest.fixture(scope="module")
def finished_run(user_data: Path) -> Path:
    """A run without an interruption."""
    assert main(arguments(user_data, user_data / "whole")) == 0
    return user_data / "whole"


def load_checkpoint(output_folder: Path) -> dict[str, torch.Tensor]:
    return checkpoint.load(output_folder / "run" / CHECKPOINT_FILE)[0]


@pytest.mark.slow
def test_a_killed_run_resumes_bit_for_bit(
    user_data: Path, finished_run: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    output_folder = user_data / "killed"
    child = subprocess.Popen([sys.executable, "-m", "training", *arguments(user_data, output_folder)], cwd=ROOT)
    path = output_folder / "run" / CHECKPOINT_FILE
    end = time.monotonic() + 200
    while not path.exists() or checkpoint.read_position(path)["steps"] < 1:
        assert child.poll() is None
        assert time.monotonic() < end
        time.sleep(0.01)
    child.kill()
    assert child.wait() == -signal.SIGKILL
    done_steps = checkpoint.read_position(path)["steps"]
    assert 0 < done_steps < STEPS
    capfd.readouterr()
    assert main(arguments(user_data, output_folder)) == 0
    assert f"Resuming after {done_steps} step" in capfd.readouterr().err
    one = load_checkpoint(finished_run)
    resumed_tensors = load_checkpoint(output_folder)
    assert any(name.startswith("network:momentum.") for name in one)  # Muon's
    assert one.keys() == resumed_tensors.keys()
    assert all(torch.equal(one[name], resumed_tensors[name]) for name in one)
    weights = "unet/diffusion_pytorch_model.safetensors"
    assert (finished_run / weights).read_bytes() == (output_folder / weights).read_bytes()
    lines = [json.loads(line)["samples"] for line in (output_folder / "run" / "log.jsonl").read_text().splitlines()]
    assert lines == sorted(lines)


@pytest.mark.slow
def test_diffusers_and_the_engine_load_the_trained_model(finished_run: Path, tmp_path: Path) -> None:
    pipeline = import_module("diffusers").StableDiffusionPipeline.from_pretrained(finished_run)
    pipeline.set_progress_bar_config(disable=True)
    family = load_model(str(finished_run), tmp_path)
    assert isinstance(family, StableDiffusion)
    assert (family.guidance, family.tokens, family.size) == (4.0, 24, 16)
    assert torch.equal(family.encode_text("a red ball"), pipeline.encode_prompt("a red ball", "cpu", 1, False)[0][0])
    average = {n.removeprefix(AVERAGE): t for n, t in load_checkpoint(finished_run).items() if n.startswith(AVERAGE)}
    for name, parameter in pipeline.unet.named_parameters():
        assert torch.equal(parameter, average[name].half().float())
    assert any(is_hidden_matrix(name, parameter) for name, parameter in pipeline.unet.named_parameters())
    assert Previewer(family).is_fitted, "the model brings its preview map along"
    assert not [path for path in finished_run.glob("*/config.json") if "_name_or_path" in path.read_text()]
    sheets = list((finished_run / "run" / "sheets").iterdir())
    assert sheets
    with Image.open(sheets[0]) as sheet:
        assert sheet.size == (3 * 16 * 2, 16 * 2)


@pytest.mark.slow
def test_another_autoencoder_becomes_part_of_the_model(
    user_data: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The network learns its latents, twice as large here, and the result carries both."""
    diffusers = import_module("diffusers")
    torch.manual_seed(1)
    diffusers.AutoencoderKL(block_out_channels=(8,), latent_channels=3, norm_num_groups=4).save_pretrained(
        user_data / "autoencoder"
    )
    other = ("--autoencoder", str(user_data / "autoencoder"))
    assert main(arguments(user_data, tmp_path / "larger", *other)) == 0
    pipeline = diffusers.StableDiffusionPipeline.from_pretrained(tmp_path / "larger")
    assert (pipeline.unet.config.sample_size, pipeline.unet.config.in_channels) == (16, 3)
    assert load_model(str(tmp_path / "larger"), tmp_path).size == 16  # pixels, as before
    assert main(arguments(user_data, tmp_path / "larger")) == 2
    assert "was begun with other starting weights" in capfd.readouterr().err


def test_an_autoencoder_that_does_not_fit_is_refused_before_any_picture_is_read(
    user_data: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    small = {"block_out_channels": (8, 8, 8), "latent_channels": 3, "norm_num_groups": 4}
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 3, "up_block_types": ("UpDecoderBlock2D",) * 3}
    import_module("diffusers").AutoencoderKL(**small, **blocks).save_pretrained(tmp_path / "smaller")
    (tmp_path / "empty").mkdir()
    for name, sentence in (
        ("smaller", "The autoencoder's latents have 4×4 values, and this network can only learn to draw 8×8"),
        ("empty", "has no config.json that can be read"),
    ):
        assert main(arguments(user_data, tmp_path / "out", "--autoencoder", str(tmp_path / name))) == 2
        output = capfd.readouterr().err
        assert sentence in output
        assert "picture" not in output.replace(sentence, "")


@pytest.mark.slow
def test_imagine_draws_with_the_trained_model(
    finished_run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    options: dict[str, object] = {"model": str(finished_run), "steps": 2, "count": 1, "seed": 7}
    request = ImagineRequest("a red ball", options, tmp_path / "out", with_film=False, as_json=True)
    assert run_imagine(request, settings(data=tmp_path)) == 0
    output = capfd.readouterr()
    assert f"{finished_run} is loaded here" in output.err
    with Image.open(json.loads(output.out)["pictures"][0]) as picture:
        assert picture.width in (16, 64)  # 64 if a super-resolver is installed


@pytest.mark.slow
def test_imagine_interpolates_with_the_trained_model(
    finished_run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Both ends are the plain pictures. A film is written beside the pictures."""
    pictures: dict[str, list[bytes]] = {}
    for name, extra_options in (("walk", {"walk": "a blue ball", "frames": 5}), ("plain", {"count": 4})):
        options: dict[str, object] = {"model": str(finished_run), "steps": 2, "seed": 7, **extra_options}
        assert (
            run_imagine(
                ImagineRequest("a red ball", options, tmp_path / name, with_film=False, as_json=True),
                settings(data=tmp_path),
            )
            == 0
        )
        result = json.loads(capfd.readouterr().out)
        pictures[name] = [Image.open(path).tobytes() for path in result["pictures"]]
        if name == "walk":
            with Image.open(result["film"]) as film:
                assert film.format == "WEBP"
                assert getattr(film, "n_frames", 1) >= 5  # the encoder merges frames that look alike
    assert len(pictures["walk"]) == 5
    assert pictures["walk"][0] == pictures["plain"][0]
    assert len(set(pictures["walk"])) == 5


def test_the_fingerprint_of_a_model_ignores_its_run_folder(finished_run: Path) -> None:
    before = fingerprint_folder(finished_run)
    (finished_run / "run" / "more.safetensors").write_bytes(b"x")
    assert fingerprint_folder(finished_run) == before


def test_a_finished_run_says_so_and_refuses_other_options(
    user_data: Path, finished_run: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments(user_data, finished_run)) == 0
    assert "was finished already: 24 steps" in capfd.readouterr().err
    assert main(arguments(user_data, finished_run, "--batch", "3")) == 2
    assert "was begun with --batch 16, not 3" in capfd.readouterr().err
    assert main(arguments(user_data, finished_run, "--flip")) == 2
    assert "was begun with other --flip" in capfd.readouterr().err
    inner_arguments = arguments(user_data, user_data / "pictures" / "out")
    assert main(inner_arguments) == 2
    assert "inside the other" in capfd.readouterr().err


def test_a_model_too_large_for_memory_is_refused_by_its_headers(user_data: Path, tmp_path: Path) -> None:
    model = user_data / "model"
    network = import_module("diffusers").UNet2DConditionModel.from_pretrained(model / "unet")
    assert memory_estimate.count_parameters(model / "unet") == sum(one.numel() for one in network.parameters())
    assert (
        0
        < memory_estimate.estimate_lora(model, 4, 8).total
        < memory_estimate.estimate_diffusion(model, 4).total
        < memory_estimate.free_bytes()
    )
    with pytest.raises(
        ValueError, match=r"needs about .* GB of memory .* are free: try a smaller --batch, or `darkroom"
    ):
        memory_estimate.check_fits(memory_estimate.estimate_diffusion(model, 10**7))
    (tmp_path / "a.safetensors").write_bytes(b"\xff" * 64)
    with pytest.raises(ValueError, match="is no safetensors file"):
        memory_estimate.count_parameters(tmp_path)


@pytest.mark.parametrize(
    ("config_text", "expected_message"),
    [
        ("{}", "does not say how large"),
        ("[]", "does not say how large"),
        ('{"block_out_channels": ["8"], "sample_size": 8}', "does not say how large"),
        ('{"block_out_channels": [8], "sample_size": "8"}', "does not say how large"),
        ("{", "no config.json that can be read"),
    ],
)
def test_a_hostile_config_is_refused_in_one_sentence(
    config_text: str, expected_message: str, user_data: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(user_data / "model", tmp_path / "model")
    (tmp_path / "model" / "unet" / "config.json").write_text(config_text)
    for command, option in (("diffusion", "--from"), ("lora", "--model")):
        command_line = [
            command,
            option,
            tmp_path / "model",
            "--data",
            user_data / "pictures",
            "--out",
            tmp_path / command,
        ]
        assert main([*map(str, command_line), "--steps", "1"]) == 2
        assert expected_message in capfd.readouterr().err


def test_hostile_headers_and_pickles_are_refused(user_data: Path, tmp_path: Path) -> None:
    header = b'{"a": {"dtype": "F32", "shape": ["9"], "data_offsets": [0, 0]}}'
    (tmp_path / "a.safetensors").write_bytes(struct.pack("<Q", len(header)) + header)
    with pytest.raises(ValueError, match="is no safetensors file"):
        memory_estimate.count_parameters(tmp_path)
    shutil.copytree(user_data / "model", tmp_path / "model")
    weights = tmp_path / "model" / "unet" / "diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_suffix(".bin"))
    with pytest.raises(ValueError, match="has no safetensors for its unet, and other formats"):
        find_weights(str(tmp_path / "model"))


def test_weights_are_identified_by_their_bytes_not_their_folder(user_data: Path, tmp_path: Path) -> None:
    shutil.copytree(user_data / "model" / "unet", tmp_path / "moved")
    assert hash_contents(tmp_path / "moved") == hash_contents(user_data / "model" / "unet")
    with (tmp_path / "moved" / "diffusion_pytorch_model.safetensors").open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\x7f")
    assert hash_contents(tmp_path / "moved") != hash_contents(user_data / "model" / "unet")

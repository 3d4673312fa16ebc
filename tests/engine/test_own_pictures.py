"""`darkroom train diffusion --data`: killed at any moment, it goes on to the bit; the end is a whole model."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from bot.cli.terminal import Wish, run
from bot.config import load as settings
from engine.families import load
from engine.families.embedded import load_text_encoder
from engine.families.stable_diffusion import fingerprint
from engine.training import checkpoint, memory
from engine.training.__main__ import main
from engine.training.commands.board import board
from engine.training.commands.options import Course
from engine.training.commands.session import open_session
from engine.training.diffusion import Settings
from engine.training.muon import suits
from engine.training.run import CHECKPOINT

ROOT = Path(__file__).parents[2]
STEPS = 24


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`pictures/` with three captioned pictures and `model/`: our kind of parts, tiny, yet wide enough for Muon."""
    from transformers import BertConfig, BertModel

    folder, diffusers = tmp_path_factory.mktemp("own"), import_module("diffusers")
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
            block_out_channels=(8, 8), down_block_types=("DownEncoderBlock2D",) * 2, latent_channels=4,
            up_block_types=("UpDecoderBlock2D",) * 2, norm_num_groups=4, sample_size=16, scaling_factor=1.0,
        ),
        unet=diffusers.UNet2DConditionModel(
            sample_size=8, in_channels=4, out_channels=4, block_out_channels=(16, 64), layers_per_block=1,
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), norm_num_groups=4, attention_head_dim=8,
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"), cross_attention_dim=64,
        ),
        scheduler=diffusers.DDPMScheduler(
            prediction_type="v_prediction", rescale_betas_zero_snr=True, clip_sample=False, steps_offset=1,
            timestep_spacing="trailing",
        ),
        text_encoder=BertModel(text), tokenizer=tokenizer, safety_checker=None, feature_extractor=None,
        requires_safety_checker=False,
    )  # fmt: skip
    pipeline.save_pretrained(folder / "model")
    return folder


def words(own: Path, out: Path, *more: str) -> list[str]:
    given = ["diffusion", "--from", own / "model", "--data", own / "pictures", "--out", out, "--steps", STEPS]
    return [*map(str, given), "--threads", "1", "--minutes", "0.015", *more]


@pytest.fixture(scope="module")
def whole(own: Path) -> Path:
    """A run that nothing has interrupted."""
    assert main(words(own, own / "whole")) == 0
    return own / "whole"


def kept(out: Path) -> dict[str, torch.Tensor]:
    return checkpoint.load(out / "run" / CHECKPOINT)[0]


def test_a_run_that_was_killed_goes_on_to_the_bit(own: Path, whole: Path, capfd: pytest.CaptureFixture[str]) -> None:
    out = own / "killed"
    child = subprocess.Popen([sys.executable, "-m", "engine.training", *words(own, out)], cwd=ROOT)
    path, end = out / "run" / CHECKPOINT, time.monotonic() + 200
    while not path.exists() or checkpoint.position(path)["steps"] < 1:
        assert child.poll() is None
        assert time.monotonic() < end
        time.sleep(0.01)
    child.kill()
    assert child.wait() == -signal.SIGKILL
    done = checkpoint.position(path)["steps"]
    assert 0 < done < STEPS
    capfd.readouterr()
    assert main(words(own, out)) == 0
    assert f"Going on after {done} steps" in capfd.readouterr().err
    one, again = kept(whole), kept(out)
    assert any(name.startswith("momentum.") for name in one)  # Muon's
    assert one.keys() == again.keys()
    assert all(torch.equal(one[name], again[name]) for name in one)
    weights = "unet/diffusion_pytorch_model.safetensors"
    assert (whole / weights).read_bytes() == (out / weights).read_bytes()
    lines = [json.loads(line)["samples"] for line in (out / "run" / "log.jsonl").read_text().splitlines()]
    assert lines == sorted(lines)


def test_the_result_is_a_whole_model_for_diffusers_and_for_us(whole: Path, tmp_path: Path) -> None:
    theirs = import_module("diffusers").StableDiffusionPipeline.from_pretrained(whole)
    theirs.set_progress_bar_config(disable=True)
    ours = load(str(whole), tmp_path)
    assert (ours.guidance, ours.tokens, ours.size) == (3.5, 24, 16)
    assert torch.equal(ours.encode("a red ball"), theirs.encode_prompt("a red ball", "cpu", 1, False)[0][0])
    average = {n.removeprefix("average."): t for n, t in kept(whole).items() if n.startswith("average.")}
    for name, parameter in theirs.unet.named_parameters():
        assert torch.equal(parameter, average[name].half().float())
    assert any(suits(name, parameter) for name, parameter in theirs.unet.named_parameters())
    assert not [path for path in whole.glob("*/config.json") if "_name_or_path" in path.read_text()]
    sheets = list((whole / "run" / "sheets").iterdir())
    assert sheets
    with Image.open(sheets[0]) as sheet:
        assert sheet.size == (8 * 16 * 2, 16 * 2)


def test_imagine_draws_with_it(whole: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    options: dict[str, object] = {"model": str(whole), "steps": 2, "count": 1, "seed": 7}
    wish = Wish("a red ball", options, tmp_path / "out", film=False, as_json=True)
    assert run(wish, settings(data=tmp_path)) == 0
    said = capfd.readouterr()
    assert f"{whole} is loaded here" in said.err
    with Image.open(json.loads(said.out)["pictures"][0]) as drawn:
        assert drawn.width in (16, 64)  # 64 where a super-resolver is at hand


def test_the_run_inside_a_model_is_no_part_of_its_fingerprint(whole: Path) -> None:
    before = fingerprint(whole)
    (whole / "run" / "more.safetensors").write_bytes(b"x")
    assert fingerprint(whole) == before


def test_a_finished_run_says_so_and_refuses_what_it_did_not_begin_with(
    own: Path, whole: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(words(own, whole)) == 0
    assert "was finished already: 24 steps" in capfd.readouterr().err
    assert main(words(own, whole, "--batch", "3")) == 2
    assert "was begun with --batch 16, not 3" in capfd.readouterr().err
    assert main(words(own, whole, "--flip")) == 2
    assert "was begun with other --flip" in capfd.readouterr().err
    inside = words(own, own / "pictures" / "out")
    assert main(inside) == 2
    assert "lie in each other" in capfd.readouterr().err


class Counting:
    """The least that can be trained: it counts, and is told to stop by a signal like any process."""

    settings = Settings()
    steps, rate = 0, 0.1

    @property
    def samples(self) -> int:
        return self.steps

    def step(self, share: float) -> dict[str, float]:
        self.steps += 1
        if self.steps == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return {"loss": 1.0}

    def tensors(self) -> dict[str, torch.Tensor]:
        return {"steps": torch.tensor(self.steps)}

    def restore(self, tensors: Any, steps: int) -> None:
        self.steps = steps

    def figures(self) -> dict[str, float]:
        return {"seen": 1.0}

    def sheet(self, path: Path) -> None:
        path.parent.mkdir(exist_ok=True)
        path.touch()


def test_a_signal_keeps_a_checkpoint_and_says_how_to_go_on(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    course, made, written = Course(tmp_path, steps=5), Counting(), []
    before = signal.getsignal(signal.SIGTERM)
    with open_session("counting", course) as session:
        assert session.train(made, made, lambda: written.append(1)) == 128 + signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) == before
    assert "Stopped after 3 steps; the same command goes on" in capfd.readouterr().err
    assert written == []
    with open_session("counting", course) as session:
        assert session.train(made, made, lambda: written.append(1)) == 0
    assert (written, made.steps) == ([1], 5)


def test_what_a_run_began_with_is_in_its_checkpoint_and_its_end_by_the_clock_stays(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    made, course = Counting(), Course(tmp_path, steps=3, threads=1)
    with open_session("counting", course) as session:
        session.belongs({"pictures": "one"})
        session.train(made, made, lambda: None)
    path = tmp_path / "run" / CHECKPOINT
    tensors, position = checkpoint.load(path)
    assert position["origin"] == {"kind": "counting", "threads": 1, "pictures": "one"}
    with open_session("counting", course) as session, pytest.raises(ValueError, match="one then, two now"):
        session.belongs({"pictures": "two"})
    checkpoint.save(path, tensors, {**position, "until": "00:01", "ending": time.time() - 60})
    (tmp_path / "run" / "finished.json").write_text('{"ste')  # as a kill left it
    with open_session("counting", Course(tmp_path, until="00:01")) as session:
        assert session.train(made, made, lambda: None) == 0
    assert "is finished: 3 steps" in capfd.readouterr().err
    checkpoint.save(path, tensors, {name: said for name, said in position.items() if name != "origin"})
    with open_session("counting", course) as session, pytest.raises(ValueError, match="does not say any more"):
        session.belongs({"pictures": "one"})


def test_a_checkpoint_of_something_else_is_said_plainly(tmp_path: Path) -> None:
    position = {"steps": 1, "started": 0.0, "kept": 1, "settings": {}}
    made, path = Counting(), tmp_path / "run" / CHECKPOINT
    with open_session("counting", Course(tmp_path, steps=9)):
        checkpoint.save(path, {}, position)

    def restore(tensors: Any, steps: int) -> None:
        made.steps = int(tensors["steps"])

    made.restore = restore
    with open_session("counting", Course(tmp_path, steps=9)) as session, pytest.raises(ValueError, match="of another"):
        session.train(made, made, lambda: None)
    for wrong in ({}, {**position, "settings": []}, {**position, "steps": "1"}):
        checkpoint.save(path, {}, wrong)
        with pytest.raises(ValueError, match="not a whole"), open_session("counting", Course(tmp_path, steps=9)):
            pass


def test_a_disk_that_takes_no_more_is_no_traceback_and_keeps_the_old_checkpoint(
    tmp_path: Path,
) -> None:
    path = tmp_path / "kept.safetensors"
    checkpoint.save(path, {"a": torch.zeros(1)}, {})
    before = path.read_bytes()
    (tmp_path / "kept.safetensors.fresh").mkdir()
    with pytest.raises(OSError, match="kept"):
        checkpoint.save(path, {"a": torch.ones(1)}, {})
    with pytest.raises(OSError, match="could not be written"), checkpoint.writing(path):
        save_file({"a": torch.zeros(1)}, tmp_path / "no" / "where")
    assert path.read_bytes() == before


def test_without_tensorboard_training_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    with board(tmp_path / "there", 0) as writer:
        assert writer is not None
        writer.add_scalar("loss", 1.0, 1)
    assert list((tmp_path / "there").glob("events.out.tfevents.*"))
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with board(tmp_path / "missing", 0) as writer:
        assert writer is None
    assert "TensorBoard is not installed" in capfd.readouterr().err


def test_what_cannot_fit_into_memory_is_refused_from_the_headers_alone(own: Path, tmp_path: Path) -> None:
    model = own / "model"
    network = import_module("diffusers").UNet2DConditionModel.from_pretrained(model / "unet")
    assert memory.parameters(model / "unet") == sum(one.numel() for one in network.parameters())
    assert 0 < memory.of_lora(model, 4, 8).total < memory.of_diffusion(model, 4).total < memory.available()
    with pytest.raises(
        ValueError, match=r"needs about .* GB of memory .* are free: try a smaller --batch, or `darkroom"
    ):
        memory.check(memory.of_diffusion(model, 10**7))
    (tmp_path / "a.safetensors").write_bytes(b"\xff" * 64)
    with pytest.raises(ValueError, match="is no safetensors file"):
        memory.parameters(tmp_path)

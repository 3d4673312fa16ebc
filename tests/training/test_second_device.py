"""Every trainer works with its network on another device; no tensor stays behind on the processor."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

import training
from training.__main__ import main
from training.core.learner import mixed_precision, open_device


@pytest.mark.slow
def test_every_trainer_gives_the_same_numbers_on_another_device() -> None:
    command = [sys.executable, "-m", "tests.training.train_on_second_device"]
    result = subprocess.run(
        command, cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=110, check=False
    )
    assert (result.returncode, result.stderr[-2000:]) == (0, "")


OWN_DEVICE_CHOICES = {
    "core/learner.py": "the home of both rules",
    "lab/__main__.py": "the lab trains nothing and takes no --device",
    "diffusion/lora_trainer.py": "--precision names the format",
}


def test_only_one_module_chooses_the_device_and_the_number_format() -> None:
    sources = Path(training.__path__[0])
    choosers = {
        path.relative_to(sources).as_posix()
        for path in sources.rglob("*.py")
        if any(word in path.read_text() for word in ("choose_device", "torch.autocast("))
    }
    assert choosers == OWN_DEVICE_CHOICES.keys()


@pytest.mark.parametrize("name", ["cuda", "mps"])
def test_a_device_that_is_not_there_is_refused(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(ValueError, match=f"--device {name}: torch finds no such device"):
        open_device(name)
    assert main(["judge", "--out", str(tmp_path / "out"), "--steps", "1", "--device", name]) == 2
    assert capfd.readouterr().err.startswith(f"darkroom train: --device {name}: torch finds no such device")
    assert not (tmp_path / "out").exists()
    assert open_device(None) == open_device("cpu") == torch.device("cpu")


def test_without_a_name_a_gpu_is_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert open_device(None) == torch.device("cuda")


@pytest.mark.parametrize(
    ("has_bf16", "device", "is_enabled"), [(True, "cuda", True), (False, "cuda", False), (False, "cpu", True)]
)
def test_a_gpu_without_bf16_computes_in_fp32(
    has_bf16: bool, device: str, is_enabled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: has_bf16 or including_emulation)
    monkeypatch.setattr(torch, "autocast", lambda device_type, dtype, enabled: (device_type, dtype, enabled))
    assert mixed_precision(torch.device(device)) == (device, torch.bfloat16, is_enabled)

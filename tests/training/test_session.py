"""A run across processes: signals, its origin, its end by the clock, bad checkpoints and a full disk."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from training.commands.options import TrainOptions
from training.commands.session import open_session, open_tensorboard
from training.core import checkpoint
from training.core.run import CHECKPOINT_FILE
from training.diffusion.diffusion_trainer import DiffusionSettings


class CountingTrainer:
    """A minimal trainer: it counts its steps, and its third step sends the process a signal to stop."""

    settings = DiffusionSettings()
    steps = 0
    rate = 0.1

    @property
    def samples(self) -> int:
        return self.steps

    def step(self, progress: float) -> dict[str, float]:
        self.steps += 1
        if self.steps == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return {"loss": 1.0}

    def state_tensors(self) -> dict[str, torch.Tensor]:
        return {"steps": torch.tensor(self.steps)}

    def restore(self, tensors: Any, steps: int) -> None:
        self.steps = steps

    def evaluate(self) -> dict[str, float]:
        return {"seen": 1.0}

    def draw_sheet(self, path: Path) -> None:
        path.parent.mkdir(exist_ok=True)
        path.touch()


def test_a_signal_saves_a_checkpoint_and_says_how_to_resume(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    options = TrainOptions(tmp_path, steps=5)
    trainer = CountingTrainer()
    records = []
    before = signal.getsignal(signal.SIGTERM)
    with open_session("counting", options) as session:
        assert session.train(trainer, trainer, lambda: records.append(1)) == 128 + signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) == before
    assert "Stopped after 3 steps; the same command resumes it" in capfd.readouterr().err
    assert records == []
    with open_session("counting", options) as session:
        assert session.train(trainer, trainer, lambda: records.append(1)) == 0
    assert (records, trainer.steps) == ([1], 5)


def test_a_checkpoint_keeps_the_origin_and_the_end_time_of_its_run(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    trainer = CountingTrainer()
    options = TrainOptions(tmp_path, steps=3, threads=1)
    with open_session("counting", options) as session:
        session.bind_origin({"pictures": "one"})
        session.train(trainer, trainer, lambda: None)
    path = tmp_path / "run" / CHECKPOINT_FILE
    tensors, position = checkpoint.load(path)
    assert position["origin"] == {"kind": "counting", "threads": 1, "pictures": "one"}
    with open_session("counting", options) as session, pytest.raises(ValueError, match="one then, two now"):
        session.bind_origin({"pictures": "two"})
    checkpoint.save(path, tensors, {**position, "until": "00:01", "ending": time.time() - 60})
    (tmp_path / "run" / "finished.json").write_text('{"ste')  # truncated, as after a kill
    with open_session("counting", TrainOptions(tmp_path, until="00:01")) as session:
        assert session.train(trainer, trainer, lambda: None) == 0
    assert "is finished: 3 steps. Another --until continues it" in capfd.readouterr().err


def test_a_foreign_or_incomplete_checkpoint_is_refused(tmp_path: Path) -> None:
    position = {"steps": 1, "started": 0.0, "kept": 1, "settings": {}, "origin": {}}
    trainer = CountingTrainer()
    path = tmp_path / "run" / CHECKPOINT_FILE
    with open_session("counting", TrainOptions(tmp_path, steps=9)):
        checkpoint.save(path, {}, position)

    def restore(tensors: Any, steps: int) -> None:
        trainer.steps = int(tensors["steps"])

    trainer.restore = restore
    with (
        open_session("counting", TrainOptions(tmp_path, steps=9)) as session,
        pytest.raises(ValueError, match="of another"),
    ):
        session.train(trainer, trainer, lambda: None)
    without_origin = {name: value for name, value in position.items() if name != "origin"}
    for invalid_position in ({}, without_origin, {**position, "settings": []}, {**position, "steps": "1"}):
        checkpoint.save(path, {}, invalid_position)
        with (
            pytest.raises(ValueError, match="not a complete"),
            open_session("counting", TrainOptions(tmp_path, steps=9)),
        ):
            pass


def test_a_failed_write_raises_os_error_and_keeps_the_old_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "kept.safetensors"
    checkpoint.save(path, {"a": torch.zeros(1)}, {})
    before = path.read_bytes()
    (tmp_path / "kept.safetensors.fresh").mkdir()
    with pytest.raises(OSError, match="kept"):
        checkpoint.save(path, {"a": torch.ones(1)}, {})
    with pytest.raises(OSError, match="could not be written"), checkpoint.translate_write_errors(path):
        save_file({"a": torch.zeros(1)}, tmp_path / "no" / "where")
    assert path.read_bytes() == before


def test_training_continues_without_tensorboard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    with open_tensorboard(tmp_path / "there", 0) as writer:
        assert writer is not None
        writer.add_scalar("loss", 1.0, 1)
    assert list((tmp_path / "there").glob("events.out.tfevents.*"))
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with open_tensorboard(tmp_path / "missing", 0) as writer:
        assert writer is None
    assert "TensorBoard is not installed" in capfd.readouterr().err

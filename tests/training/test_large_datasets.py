"""Many or large pictures and captions: each is read once, one at a time, after a memory check."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from training.__main__ import main
from training.commands.run_pixel_networks import decode_in_turn
from training.gan import upscaler_trainer
from training.pictures.dataset import read_captions, read_folder


def test_reading_captions_takes_linear_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [tmp_path / f"{number}.txt" for number in range(60)]
    for path in texts:
        path.write_text("alone")
    hashed_files: list[Path] = []
    usual_hash = Path.__hash__
    monkeypatch.setattr(Path, "__hash__", lambda path: hashed_files.append(path) or usual_hash(path))
    captions = read_captions(tmp_path, texts, texts)
    assert len(captions.skipped) == 60  # no caption has a picture
    assert len(hashed_files) < 60 * 10


def test_user_pictures_are_decoded_one_at_a_time_after_a_memory_check(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine").mkdir()
    for number in range(3):
        Image.fromarray(np.full((64, 64, 3), number, np.uint8)).save(tmp_path / "mine" / f"{number}.png")
    pictures = read_folder(tmp_path / "mine", require_captions=False).pictures
    decoded = decode_in_turn(pictures, 4)
    assert [picture.size for picture in decoded] == [(64, 64)] * 4
    assert next(decoded, None) is None  # it decodes on demand, and keeps none
    for command in ("upscaler", "autoencoder"):
        words = [command, "--data", str(tmp_path / "mine"), "--out", str(tmp_path / command), "--steps", "1"]
        assert main([*words, "--batch", "65536"]) == 2
        assert "of memory" in capfd.readouterr().err.splitlines()[-1]


def test_an_upscaler_loads_only_from_safetensors(tmp_path: Path) -> None:
    upscaler_trainer.export_upscaler(upscaler_trainer.build_upscaler(1, 8, 2), tmp_path / "kept.pth")
    with pytest.raises(ValueError, match=r"is no super-resolver in safetensors"):
        upscaler_trainer.load_upscaler(tmp_path / "kept.pth")

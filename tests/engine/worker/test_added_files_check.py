"""`darkroom doctor` on added files: what fits no model is named with the reason."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import torch
from safetensors.torch import save_file

from engine.calibration.calibration import Calibration
from engine.model_cache.catalog_file import CalibratedModel, write_entries
from engine.models import load_folder
from engine.worker.doctor import check_added_files

CALIBRATION = Calibration("float32", 4, 10, "ddim", 1.0, 1.0, 1.0, {1: 1.0}, {"float32": 1.0})


def test_what_fits_no_model_is_named_with_the_reason(small_folder: Path, tmp_path: Path) -> None:
    """`wide` fits a model that was offered here before, by its catalogue."""
    family: Any = load_folder(str(small_folder), "small")
    family.use_data_folder(tmp_path)
    for name, width in (("fits", 32), ("wide", 768), ("other", 1024)):
        (tmp_path / "embeddings").mkdir(exist_ok=True)
        save_file({"emb": torch.zeros(1, width)}, tmp_path / "embeddings" / f"{name}.safetensors")
    (tmp_path / "vaes").mkdir()
    (tmp_path / "vaes" / "spoilt.safetensors").write_bytes(b"rubbish")
    (tmp_path / "controlnets").mkdir()
    save_file({"lora_A": torch.zeros(2)}, tmp_path / "controlnets" / "wrong.safetensors")
    profile = CALIBRATION.to_model_profile(family)
    assert [part.name for part in profile.embeddings] == ["fits"]
    wide = next(part for part in _list_parts(tmp_path) if part.name == "wide")
    former = msgspec.structs.replace(profile, name="former", embeddings=(wide,))
    write_entries(tmp_path, {"former": CalibratedModel(former, CALIBRATION, 1)})
    reason = "its vectors have 1024 numbers, and those of small have 32"
    remedy = "Take it away, or offer a model that it fits and start it once."
    *findings, control, autoencoder = check_added_files(tmp_path, family, profile)
    assert control[2].startswith("the control network wrong fits none of small, former: ")
    assert findings == [
        ("embedding", False, f"the textual inversion other fits none of small, former: {reason}", remedy),
        ("embedding", True, "2 fit: fits, wide", ""),
    ]
    assert autoencoder == (
        "vae",
        False,
        "The autoencoder spoilt cannot be read as safetensors",
        "Replace it, or take it away.",
    )


def _list_parts(data: Path) -> list[Any]:
    from engine.contract import ModelPart
    from engine.models.embedding_files import find_embeddings

    return [ModelPart(file.name, file.revision) for file in find_embeddings(data / "embeddings")]

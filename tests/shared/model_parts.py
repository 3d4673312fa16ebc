"""A simulated model with control networks, a reference adapter and further parts."""

from __future__ import annotations

from typing import Any

from engine.contract import ControlModel, ModelPart

MODEL_PARTS: dict[str, Any] = {
    "controls": (ControlModel("canny", "c1", "canny"), ControlModel("tile", "t1")),
    "preprocessors": ("none", "canny"),
    "references": (ControlModel("face", "f1"),),
    "embeddings": (ModelPart("moebius", "m1"),),
    "quantization": "int8",
    "autoencoders": (ModelPart("mse", "v1"),),
    "max_clip_skip": 2,
}

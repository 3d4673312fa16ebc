"""What a worker announces of a backend's models."""

from __future__ import annotations

import hashlib

from engine.backend.drawing import BackendModel
from engine.contract import Feature, ModelProfile
from engine.picture_files.decoding import MAX_PIXELS

# What no server's API can say: each model adds what its own server cannot.
NO_SERVER_FEATURES: tuple[Feature, ...] = (
    "weights",
    "interval",
    "variation",
    "blend",
    "branch",
    "stop",
    "mix",
    "walk",
    "amendments",
    "evaluations",
)
MAX_TOKENS = 4096  # texts go on as they are: only the backend knows where it stops reading


def make_profile(model: BackendModel, kind: str) -> ModelProfile:
    """Return a model's announcement, without its times. Two backends with the same model and workflow share it."""
    revision = hashlib.sha256(f"{kind}\0{model.title}\0{model.version}".encode()).hexdigest()[:16]
    return ModelProfile(
        name=model.name,
        revision=revision,
        dtype="float16",
        size=model.size,
        multiple=model.multiple,
        max_pixels=min(model.max_pixels, MAX_PIXELS),
        tokens=MAX_TOKENS,
        steps=model.steps,
        sampler=model.samplers[0],
        guidance=model.guidance,
        row_ms=0.0,
        encode_ms=0.0,
        decode_ms=0.0,
        samplers=model.samplers,
        loras=model.loras,
        max_clip_skip=model.max_clip_skip,
        edits=model.edits,
        required="picture" if model.needs_picture else "",
        lacks=(*NO_SERVER_FEATURES, *model.lacks),
    )

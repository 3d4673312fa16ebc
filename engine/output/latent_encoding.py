"""Latents as bytes, and keyframes that carry them. Deterministic."""

from __future__ import annotations

import torch

from engine.batching.trajectory import LatentKeyframe
from engine.contract import MAX_ESTIMATE_BYTES, Keyframe


def encode_latents(latents: torch.Tensor | None) -> bytes | None:
    """Return the latents as float32, C-order."""
    return None if latents is None else latents.to("cpu", torch.float32).contiguous().numpy().tobytes()


def encode_latents_half(latents: torch.Tensor) -> bytes | None:
    """Return the latents as float16, C-order; None if they are larger than a keyframe may carry."""
    if 2 * latents.numel() > MAX_ESTIMATE_BYTES:
        return None
    return latents.to("cpu", torch.float16).contiguous().numpy().tobytes()


def encode_keyframe(keyframe: LatentKeyframe, thumbnail_jpeg: bytes, is_mapped: bool) -> Keyframe:
    """Return the wire form. `is_mapped`: a linear map made the thumbnail, so keep x0 to decode it on request."""
    history = None if keyframe.latents is None else encode_latents(keyframe.x0)
    estimate = encode_latents_half(keyframe.x0) if is_mapped else None
    return Keyframe(
        keyframe.step, thumbnail_jpeg, encode_latents(keyframe.latents), history, keyframe.draw_count, estimate
    )

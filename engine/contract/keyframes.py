"""The stored states of an image: the keyframes of a finished one, the snapshot of an unfinished one."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, Struct

from engine.contract.amendments import Amendment, AmendmentNumber
from engine.contract.fields import (
    MAX_AMENDMENTS,
    MAX_ESTIMATE_BYTES,
    MAX_FRAME_BYTES,
    MAX_KEYFRAMES,
    MAX_STEPS,
    CandidateIndex,
    Epoch,
    Id,
    Index,
    LatentBytes,
    Step,
    TensorSide,
    VersionedValue,
)


class Keyframe(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """One keyframe: an x0 thumbnail (JPEG, WebP); at every fourth also the latents to continue from (fp32, C-order).

    A stopped picture also keeps latents at its last keyframe. With latents come `history`, x0 as latents, and
    `draw_count`: how many noise draws came before. `estimate`: x0 in float16 where a linear map made the thumbnail, to
    decode it on request.
    """

    step: Step
    thumbnail: Annotated[bytes, Meta(max_length=MAX_FRAME_BYTES)]
    latent: Annotated[bytes, Meta(max_length=4 * 1024 * 1024)] | None = None
    history: Annotated[bytes, Meta(max_length=4 * 1024 * 1024)] | None = None
    draw_count: Annotated[int, Meta(ge=1, le=2 * MAX_STEPS)] | None = None
    estimate: Annotated[bytes, Meta(max_length=MAX_ESTIMATE_BYTES)] | None = None


class Ladder(VersionedValue, frozen=True, kw_only=True):
    """All keyframes of one image: at most 48, evenly spaced in log-SNR; deterministic, part of the result."""

    job: Id
    image: Index
    total_steps: Step
    shape: Annotated[tuple[TensorSide, ...], Meta(max_length=4)]
    keyframes: Annotated[tuple[Keyframe, ...], Meta(max_length=MAX_KEYFRAMES)]


class Snapshot(VersionedValue, frozen=True, kw_only=True):
    """An unfinished image, enough to continue elsewhere: its next step, latents `x` and history (fp32, C-order).

    It holds no noise: that is a function of the recipe and the step. `keyframes` holds the x0 latents (fp32) of the
    keyframes so far, each with its step. `split_step`: the step of the split that made the image, if one did.
    `followed_changes`: the number and the step of each change of the recipe that its steps followed.
    """

    job: Id
    image: CandidateIndex
    epoch: Epoch
    next_step: Step
    shape: Annotated[tuple[TensorSide, ...], Meta(max_length=4)]
    x: LatentBytes
    history: LatentBytes
    keyframes: Annotated[tuple[tuple[Step, LatentBytes], ...], Meta(max_length=MAX_KEYFRAMES)] = ()
    split_step: Step | None = None
    followed_changes: Annotated[tuple[tuple[AmendmentNumber, Step], ...], Meta(max_length=MAX_AMENDMENTS)] = ()


class AmendmentLog(VersionedValue, frozen=True, kw_only=True):
    """What has been changed about an unfinished job, for the next worker: written before a change is acknowledged.

    `last_number`: the last change that was answered; those up to there that are not in `amendments` were refused.
    """

    job: Id
    epoch: Epoch
    last_number: AmendmentNumber
    amendments: Annotated[tuple[Amendment, ...], Meta(max_length=MAX_AMENDMENTS)] = ()

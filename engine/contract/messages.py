"""The messages about one job: previews, results, and what its worker is told while it runs."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta, Struct

from engine.contract.amendments import Amendment, AmendmentNumber, Change
from engine.contract.fields import (
    MAX_AMENDMENTS,
    MAX_COUNT,
    MAX_FRAME_BYTES,
    Blame,
    CandidateIndex,
    Epoch,
    Fraction,
    Id,
    Index,
    Milliseconds,
    Name,
    Seconds,
    Sentence,
    Sha256,
    Side,
    Step,
    UpscaleMethod,
    Verdict,
    VersionedValue,
)

MAX_AMENDMENTS_AT_ONCE = 16  # in one message
MAX_PACE_SECONDS = 60.0  # from step to step


class Frame(VersionedValue, frozen=True, kw_only=True):
    """A live preview of one image: the model's x0 at step `step` of `total_steps`."""

    job: Id
    image: Index
    epoch: Epoch
    step: Step
    total_steps: Step
    picture: Annotated[bytes, Meta(max_length=MAX_FRAME_BYTES)]  # JPEG
    seconds_left: Seconds
    verdict: Verdict = "unchecked"  # of the image's single early check, not of this frame


class PictureReady(VersionedValue, frozen=True, kw_only=True):
    """One finished output, one message each. Its bytes lie in the blob bucket under `sha256`.

    `width` and `height` are the picture's own: `ModelProfile.upscale_factor` times its recipe's. For a ladder they are
    the recipe's. `verdict` is about the finished picture; a ladder has none. `method` is the one that an `UpscaleTask`
    really used.
    """

    job: Id
    image: Index
    epoch: Epoch
    kind: Literal["image", "ladder"]
    sha256: Sha256
    bytes: Annotated[int, Meta(ge=1, le=256 * 1024 * 1024)]
    width: Side
    height: Side
    verdict: Verdict = "unchecked"
    method: UpscaleMethod | None = None


class JobStarted(VersionedValue, frozen=True, kw_only=True):
    """A worker claimed the job and begins, or continues, at `step`. The epoch is the claim's revision."""

    job: Id
    epoch: Epoch
    worker: Name
    step: Step = 0


class JobModelLoading(VersionedValue, frozen=True, kw_only=True):
    """A worker loads the job's model into memory: how far it is. Published now and then while loading lasts."""

    job: Id
    epoch: Epoch
    model: Name
    loaded_share: Fraction


class ControlMessage(VersionedValue, frozen=True, kw_only=True):
    """A control message to the worker that runs a job. It is not stored, and losing one does no harm.

    A paused job resumes by itself after a while. A job that moves to another worker is neither paused, weighted nor
    paced there. `weight`: the job gets so many times the rows of its user's other jobs of weight 1. `pace`: its steps
    begin at least so many seconds apart, and it takes no rows between them.
    """

    job: Id
    action: Literal["pause", "resume", "weigh", "pace"]
    weight: Annotated[float, Meta(gt=0, le=1000)] = 1.0
    pace: Annotated[float, Meta(ge=0, le=MAX_PACE_SECONDS)] = 0.0


class AmendmentRequest(Struct, frozen=True, forbid_unknown_fields=True):
    """A change that somebody asks for while a job runs; the worker decides from which step on it holds."""

    number: AmendmentNumber
    change: Change


class AmendJob(VersionedValue, frozen=True, kw_only=True):
    """All changes of a job that no worker has answered yet, in order, to the holder of the claim `epoch`.

    It is not stored: the bot repeats it until a `JobAmended` answers each change. A repeated change changes nothing.
    """

    job: Id
    epoch: Epoch
    requests: Annotated[tuple[AmendmentRequest, ...], Meta(min_length=1, max_length=MAX_AMENDMENTS_AT_ONCE)]


class JobAmended(VersionedValue, frozen=True, kw_only=True):
    """The answer to one change: it holds from `step` on, and no lost worker undoes it. `step` None: it was refused."""

    job: Id
    epoch: Epoch
    number: AmendmentNumber
    step: Step | None = None
    reason: Sentence = ""


class JobFinished(VersionedValue, frozen=True, kw_only=True):
    """The job is done; all of its pictures were published before. `cost` is its admission cost in device-seconds.

    `chosen_candidates`: the candidate that each picture is, where the judge chose. `amendments`: all that hold in the
    finished pictures.
    """

    job: Id
    epoch: Epoch
    cost: Seconds
    seconds: Seconds
    ms_per_step: Milliseconds
    chosen_candidates: Annotated[tuple[CandidateIndex, ...], Meta(max_length=MAX_COUNT)] = ()
    amendments: Annotated[tuple[Amendment, ...], Meta(max_length=MAX_AMENDMENTS)] = ()


class JobFailed(VersionedValue, frozen=True, kw_only=True):
    """The job failed. `blame` decides the refund and the sentence: only a member's fault is charged."""

    job: Id
    epoch: Epoch
    reason: Sentence
    blame: Blame
    retry: bool = False  # True: this worker could not, another may


class JobCancelled(VersionedValue, frozen=True, kw_only=True):
    """The job was cancelled and its rows are free. `steps` ran and are charged."""

    job: Id
    epoch: Epoch
    steps: Step
    cost: Seconds


class JobHandedBack(VersionedValue, frozen=True, kw_only=True):
    """The worker shuts down in order and hands the job back, for another to continue. No attempt is counted."""

    job: Id
    epoch: Epoch


Result = JobStarted | PictureReady | JobAmended | JobFinished | JobFailed | JobCancelled | JobHandedBack

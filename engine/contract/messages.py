"""Jobs, all that is said of them while they run, what keeps their progress, and requests without a job."""

from __future__ import annotations

import threading
from typing import Annotated, Any, Literal, TypeVar

import msgspec
from msgspec import Meta, Struct
from msgspec.msgpack import Decoder

from engine.contract.fields import (
    MAX_AMENDMENTS,
    MAX_CANDIDATES,
    MAX_COUNT,
    MAX_ESTIMATE_BYTES,
    MAX_FRAME_BYTES,
    MAX_KEYFRAMES,
    MAX_NOISINGS,
    MAX_STEPS,
    MAX_THUMBNAIL_BYTES,
    VERSION,
    AccountName,
    Blame,
    CandidateIndex,
    CandidateText,
    Coordinate,
    Epoch,
    Fraction,
    Id,
    Index,
    LatentBytes,
    Milliseconds,
    Name,
    Seconds,
    Sentence,
    Sha256,
    Side,
    SquaredError,
    Step,
    TensorSide,
    Text,
    UnixSeconds,
    UpscaleMethod,
    Verdict,
    VersionedValue,
)
from engine.contract.recipe import Amendment, AmendmentNumber, Change, Recipe

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


class UpscaleTask(VersionedValue, frozen=True, kw_only=True):
    """Upscale one finished picture, named by its SHA-256 in the blob bucket.

    A worker without a super-resolver uses Lanczos where "gan" is requested; its `PictureReady` says which one it
    used.
    """

    source: Sha256
    factor: Annotated[int, Meta(ge=2, le=8)] = 4
    method: UpscaleMethod = "lanczos"


Task = Recipe | UpscaleTask


def required_blobs(task: Task) -> tuple[str, ...]:
    """Return the SHA-256 of each blob that a worker needs for the task."""
    return (task.source,) if isinstance(task, UpscaleTask) else task.required_blobs


class BillingKey(Struct, frozen=True, forbid_unknown_fields=True):
    """Who a job's cost is charged to. The same four fields decide the fair order in the queue and in the batch."""

    tier: AccountName
    guild: AccountName
    user: AccountName
    weight: Annotated[float, Meta(gt=0, le=1000)] = 1.0


class Job(VersionedValue, frozen=True, kw_only=True):
    """A task with an id and an owner. `cost` is in calibrated device-seconds, `deadline` in seconds since 1970.

    `check`: a worker with a picture check classifies the finished pictures, and previews once they show enough.
    """

    id: Id
    task: Task
    billing_key: BillingKey
    cost: Seconds
    pool: Name = "default"
    attempt: Annotated[int, Meta(ge=1, le=1_000_000)] = 1
    deadline: UnixSeconds
    ladder: bool = True
    check: bool = False


class EmbedRequest(VersionedValue, frozen=True, kw_only=True):
    """Ask for the embedding of each text."""

    texts: Annotated[tuple[Text, ...], Meta(min_length=1, max_length=64)]


class EmbedReply(VersionedValue, frozen=True, kw_only=True):
    """Unit vectors, one per text (mean-pooled, L2-normalised), or the reason why there are none."""

    vectors: Annotated[tuple[Annotated[tuple[Coordinate, ...], Meta(max_length=4096)], ...], Meta(max_length=64)] = ()
    error: Sentence = ""


class DescribeRequest(VersionedValue, frozen=True, kw_only=True):
    """Ask how well a model predicts an image's noise under each text (Li et al. 2023, arXiv 2303.16203).

    `revision`: the model's; empty: the one that the worker has, as in a recipe. `picture`: a PNG; the model sees its
    middle square at the native size. Each text is tried with the same `draws` noisings, from number `first` on of one
    fixed sequence.
    """

    model: Name
    revision: Annotated[str, Meta(max_length=64)] = ""
    picture: Annotated[bytes, Meta(min_length=1, max_length=MAX_FRAME_BYTES)]
    texts: Annotated[tuple[CandidateText, ...], Meta(min_length=1, max_length=MAX_CANDIDATES)]
    first: Annotated[int, Meta(ge=0, le=1000)] = 0
    draws: Annotated[int, Meta(ge=1, le=MAX_NOISINGS)] = 1


class DescribeReply(VersionedValue, frozen=True, kw_only=True):
    """For each text the mean squared error of the noise at each draw, or the reason why there is none.

    `may_retry_elsewhere`: this worker cannot answer now, another may.
    """

    errors: Annotated[
        tuple[Annotated[tuple[SquaredError, ...], Meta(max_length=MAX_NOISINGS)], ...], Meta(max_length=MAX_CANDIDATES)
    ] = ()
    error: Sentence = ""
    may_retry_elsewhere: bool = False


class DecodeRequest(VersionedValue, frozen=True, kw_only=True):
    """Decode the x0 of a ladder's keyframes into thumbnails, with the model revision that made them.

    `width`, `height` and `tile` are the recipe's. Each of `latents` is float16, C-order, in the shape that follows from
    them.
    """

    model: Name
    revision: Annotated[str, Meta(min_length=1, max_length=64)]
    width: Side
    height: Side
    tile: bool = False
    latents: Annotated[
        tuple[Annotated[bytes, Meta(min_length=2, max_length=MAX_ESTIMATE_BYTES)], ...],
        Meta(min_length=1, max_length=MAX_KEYFRAMES),
    ]


class DecodeReply(VersionedValue, frozen=True, kw_only=True):
    """One JPEG for each of the latents, or the reason why there are none."""

    thumbnails: Annotated[
        tuple[Annotated[bytes, Meta(min_length=1, max_length=MAX_THUMBNAIL_BYTES)], ...], Meta(max_length=MAX_KEYFRAMES)
    ] = ()
    error: Sentence = ""


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


class MalformedMessage(ValueError):
    """Bytes from outside break the contract; the text names the first violation."""


class OtherVersion(MalformedMessage):
    """The writer has another version of the contract: the text says which of the two needs an update.

    `is_newer`: the writer's is newer, so this program will read the message once it is updated.
    """

    def __init__(self, text: str, *, is_newer: bool) -> None:
        super().__init__(text)
        self.is_newer = is_newer


class _VersionHeader(Struct):
    """The fields that are read from bytes that this process cannot decode."""

    v: int = VERSION
    worker: str = ""
    task: _VersionHeader | None = None


T = TypeVar("T")
_LEARNING = threading.Lock()
_DECODERS = dict[Any, Decoder[Any]]()


def encode(value: object) -> bytes:
    """Return a contract value as MessagePack."""
    return msgspec.msgpack.encode(value)


def learn_type(message_type: type[T]) -> Decoder[T]:
    """Return the decoder of a type, which msgspec learns at its first use: here in one thread at a time.

    A second thread that reads a type meanwhile finds its fields empty, and the process dies (msgspec 0.22). So every
    type that several threads read comes through here first.
    """
    decoder = _DECODERS.get(message_type)
    if decoder is None:
        with _LEARNING:
            decoder = _DECODERS[message_type] = Decoder(message_type, strict=True)
    return decoder


def convert(value: object, value_type: type[T], *, strict: bool = True) -> T:
    """Return plain values, as JSON has them, as a value of this type; without `strict`, texts too.

    Raises `msgspec.ValidationError`.
    """
    learn_type(value_type)
    return msgspec.convert(value, value_type, strict=strict)


def decode_json(content: bytes | bytearray, value_type: type[T]) -> T:
    """Return JSON as a value of this type. Raises `msgspec.MsgspecError`, `UnicodeDecodeError` or `RecursionError`."""
    learn_type(value_type)
    return msgspec.json.decode(content, type=value_type)


def decode(payload: bytes, message_type: type[T]) -> T:
    """Return bytes as a value of this type (a struct or a union of structs).

    Raises `MalformedMessage`, which `OtherVersion` is too, and nothing else.
    """
    try:
        return learn_type(message_type).decode(payload)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise _decode_error(payload, str(error)) from error


def _decode_error(payload: bytes, reason: str) -> MalformedMessage:
    try:
        header = learn_type(_VersionHeader).decode(payload)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError):
        return MalformedMessage(reason)
    versions = {header.v, header.task.v if header.task else VERSION} - {VERSION}
    if not versions:
        return MalformedMessage(reason)
    version = versions.pop()
    sender = f"the worker {header.worker[:64]!r}" if header.worker else "its sender"
    is_newer = version > VERSION
    return OtherVersion(
        f"{sender} has version {version} of the contract, and this program {VERSION}: "
        f"update {'this program' if is_newer else sender}",
        is_newer=is_newer,
    )

"""The wire contract: every value that crosses a process boundary.

It defines how a value looks and how large it may be, and imports neither NATS, torch, SQL nor Discord. Every value is
frozen, tagged (`type`), versioned (`v`) and strict: unknown fields are refused. Every string, list and number is
bounded: bytes from another process are untrusted until `decode` has accepted them.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Annotated, Literal, TypeVar

import msgspec
from msgspec import Meta, Struct

# The versions that introduced the picture check, the super-resolver, other models, init images, and x0 estimates in
# every keyframe.
PICTURE_CHECK_VERSION, SUPER_RESOLVER_VERSION, MODELS_VERSION, INIT_IMAGES_VERSION, X0_ESTIMATES_VERSION = 2, 3, 4, 5, 6
VERSION = X0_ESTIMATES_VERSION
MAX_STEPS = 1000
MAX_COUNT = 4
MAX_CONCEPTS = 8
MAX_FRAME_BYTES = 256 * 1024
MAX_KEYFRAMES = 48
MAX_ESTIMATE_BYTES = 128 * 1024  # a keyframe: 4 × 128 × 128 half floats, SDXL's at 1024 × 1024
MAX_THUMBNAIL_BYTES = 64 * 1024  # a keyframe that is decoded on request
MAX_LORAS = 4
MAX_INIT_IMAGES = 5
MAX_INTERPOLATION_FRAMES = 16  # an interpolation, over as many jobs as it needs
MAX_ROWS = 1024  # a worker at once: four times the most that calibration tries
MAX_CANDIDATES = 64  # texts that one request scores against an image
MAX_NOISINGS = 16  # noisings of the image that each text is tried with

# \Z, not $, which would allow a trailing newline in a subject or a file name.
Id = Annotated[str, Meta(pattern=r"^[0-9A-HJKMNP-TV-Z]{26}\Z")]  # a ULID (github.com/ulid/spec)
Sha256 = Annotated[str, Meta(pattern=r"^[0-9a-f]{64}\Z")]
Name = Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}\Z")]  # safe as a file name; `subjects.token`
Text = Annotated[str, Meta(max_length=2000)]
Sentence = Annotated[str, Meta(max_length=500)]
Index = Annotated[int, Meta(ge=0, lt=MAX_COUNT)]
Step = Annotated[int, Meta(ge=0, le=MAX_STEPS)]
Seed = Annotated[int, Meta(ge=0, lt=2**32)]
# A lower bound refuses NaN, an upper bound infinity: so every float here has both.
Seconds = Annotated[float, Meta(ge=0, le=1e9)]
Milliseconds = Annotated[float, Meta(ge=0, le=1e9)]
UnixSeconds = Annotated[float, Meta(ge=0, le=1e12)]  # seconds since 1970
Coordinate = Annotated[float, Meta(ge=-1.01, le=1.01)]  # of a unit vector
CandidateText = Annotated[str, Meta(max_length=200)]  # a text that may describe a picture
SquaredError = Annotated[float, Meta(ge=0, le=1e9)]  # a mean squared error
LatentBytes = Annotated[bytes, Meta(max_length=8 * 1024 * 1024)]
TensorSide = Annotated[int, Meta(ge=1, le=65_536)]  # one dimension of a tensor
Side = Annotated[int, Meta(ge=16, le=4096)]
Epoch = Annotated[int, Meta(ge=0, le=2**62)]
Account = Annotated[str, Meta(max_length=64)]
Version = Annotated[int, Meta(ge=1, le=VERSION)]
Fraction = Annotated[float, Meta(ge=0, le=1)]
ByteCount = Annotated[int, Meta(ge=0, le=10**15)]

Dtype = Literal["float32", "bfloat16", "float16"]
Sampler = Literal[
    "ddpm", "ddim", "euler", "euler_karras", "euler_ancestral", "dpmpp_2m", "dpmpp_2m_karras", "dpmpp_2m_sde", "lcm",
    "heun", "unipc", "kdpm2", "dpmpp_3m", "native",
]  # fmt: skip
VERSION_1_SAMPLERS: tuple[Sampler, ...] = (
    "ddpm",
    "ddim",
    "euler",
    "dpmpp_2m",
)  # all that workers before version 4 have
# These take more than one linear evaluation a step, or use the model's own scheduler. The image runs through the
# unmodified pipeline; it shares forwards but cannot move to another worker midway.
PIPELINE_SAMPLERS: tuple[Sampler, ...] = ("heun", "unipc", "kdpm2", "dpmpp_3m", "native")
# As AUTOMATIC1111's web UI writes them, where it has them: pictures carry their recipe in that format.
SAMPLER_TITLES: Mapping[Sampler, str] = MappingProxyType(
    {
        "ddpm": "DDPM",
        "ddim": "DDIM",
        "euler": "Euler",
        "euler_karras": "Euler Karras",
        "euler_ancestral": "Euler a",
        "dpmpp_2m": "DPM++ 2M",
        "dpmpp_2m_karras": "DPM++ 2M Karras",
        "dpmpp_2m_sde": "DPM++ 2M SDE",
        "lcm": "LCM",
        "heun": "Heun",
        "unipc": "UniPC",
        "kdpm2": "DPM2",
        "dpmpp_3m": "DPM++ 3M",
        "native": "the model's own scheduler",
    }
)
FULL_INTERVAL = (0.0, 1.0)  # interval in which guidance holds at every step
GuidanceKind = Literal["rows", "network"]  # guidance by an extra unconditional row, or as an input of the network
Blame = Literal["member", "model", "worker", "us"]
UpscaleMethod = Literal["gan", "lanczos"]  # upscaling by the super-resolver, or without new detail
Verdict = Literal["unchecked", "passed", "flagged"]  # of the picture check; also unchecked where the check failed


class _Value(Struct, frozen=True, kw_only=True, tag=True, forbid_unknown_fields=True):
    """A versioned value. A reader accepts every version up to its own: a later field has a default and raised
    `VERSION`.

    `v` is the version in which this kind last changed, not the writer's. So an older reader still accepts what it
    understands. Only `Presence` always carries `VERSION`: it tells the bot what its worker can read.
    """

    v: Version = 1


class Concept(Struct, frozen=True, forbid_unknown_fields=True):
    """One weighted part of a prompt. A negative weight steers away (Liu et al. 2022, composable diffusion)."""

    text: Text
    weight: Annotated[float, Meta(ge=-10, le=10)] = 1.0


class NoiseAncestor(Struct, frozen=True, forbid_unknown_fields=True):
    """A noise stream that a variation started from; `strength` is how far the next generation moves away from it."""

    seed: Seed
    index: Index
    strength: Fraction


class Lora(Struct, frozen=True, forbid_unknown_fields=True):
    """A low-rank addition to a model's weights (Hu et al. 2021): its name on the workers and its strength.

    `revision` changes with its weights. Empty: the one that the worker has.
    """

    name: Name
    weight: Annotated[float, Meta(ge=-4, le=4)] = 1.0
    revision: Annotated[str, Meta(max_length=64)] = ""


class InitImage(Struct, frozen=True, forbid_unknown_fields=True):
    """An init image: its SHA-256 in the blob bucket, and its weight among several."""

    sha256: Sha256
    weight: Annotated[float, Meta(gt=0, le=100)] = 1.0


class ImageToImage(Struct, frozen=True, tag="Forward", forbid_unknown_fields=True):
    """Start from init images, noised part of the way: x = alpha·z + sigma·noise (Ho et al. 2020, equation 4).

    z is the autoencoder's mean of the image; for several images, their spherical interpolation by weight. `strength` is
    the fraction of the steps still to run, as in diffusers' image-to-image pipelines: 1 keeps nothing. `mask` is a grey
    PNG of any size: white is painted anew, black is restored after every step (Lugmayr et al. 2022).
    """

    pictures: Annotated[tuple[InitImage, ...], Meta(min_length=1, max_length=MAX_INIT_IMAGES)]
    strength: Annotated[float, Meta(gt=0, le=1)]
    mask: Sha256 | None = None


class Branch(Struct, frozen=True, tag=True, forbid_unknown_fields=True):
    """Continue from a keyframe of another image, whose latents are in a `Ladder` (named by its SHA-256).

    `step` counts the recipe's steps. `rung` counts the ladder's steps where their number differs (`onto`). The noise of
    the following steps is the recipe's own. `fresh` also draws the noise within the latents anew, x = alpha·x0 +
    sigma·noise, since many samplers draw none in their steps.
    """

    ladder: Sha256
    step: Annotated[int, Meta(ge=1, lt=MAX_STEPS)]
    fresh: bool = False
    rung: Annotated[int, Meta(ge=1, lt=MAX_STEPS)] | None = None

    @property
    def keyframe_step(self) -> int:
        """The keyframe's step, counted in the steps of the image that the branch leaves."""
        return self.step if self.rung is None else self.rung


class Interpolation(Struct, frozen=True, forbid_unknown_fields=True):
    """Interpolation: image `i` is frame `first + i` of `of` evenly spaced frames (`of_image`).

    With `to`, the frames go from the recipe's prompt to this one, between their embeddings. With `noises`, they go from
    seed to seed, along an arc between neighbours. Without `noises`, all frames share the recipe's noise.
    """

    to: Text | None
    first: Annotated[int, Meta(ge=0, lt=MAX_INTERPOLATION_FRAMES)]
    of: Annotated[int, Meta(ge=2, le=MAX_INTERPOLATION_FRAMES)]
    noises: Annotated[tuple[Seed, ...], Meta(max_length=MAX_COUNT)] = ()


class Recipe(_Value, frozen=True, kw_only=True, omit_defaults=True):
    """Everything that decides pixels, and nothing else. A recipe without newer features is readable to version 1.

    What calibration measured (`dtype`, default `steps`) is frozen here when the recipe is made, so load never changes
    pixels.

    - `seed`: image `i` draws its noise from `torch.Generator().manual_seed(seed + i)`, as a diffusers user would; an
      interpolation differs (`stream`).
    - `lineage`: the noise streams of a variation's ancestors, oldest first. Every draw (initial and per step) is the
      spherical interpolation along that chain, which ends in the recipe's own stream.
    - `bucket`: pins the batch shape (`exact` mode).
    - `guidance_start`, `guidance_stop`: guidance holds between them, as fractions of the steps. Outside, the prompt
      alone is predicted, which takes fewer rows (Kynkäänniemi et al. 2024; fractions as in diffusers' guiders).
    - `guides`: how the model takes guidance.
    - `start`: what replaces the initial noise.
    - `until`: the fraction of the steps after which it stops and returns the x0 of that step.
    - `tile`: opposite edges match.
    - `mixed`: the concepts become one text, the weighted mean of their embeddings, in place of a composition of
      predictions; all weights are above 0.
    - `chaos`: how far apart the images' guidance scales lie (`of_image`).
    - `walk`: the interpolation that the images belong to (`of_image`).
    """

    concepts: Annotated[tuple[Concept, ...], Meta(min_length=1, max_length=MAX_CONCEPTS)]
    negative: Text = ""
    model: Name
    revision: Annotated[str, Meta(max_length=64)] = ""
    sampler: Sampler
    steps: Annotated[int, Meta(ge=1, le=MAX_STEPS)]
    eta: Annotated[float, Meta(ge=0, le=1)] = 0.0
    seed: Seed
    guidance: Annotated[float, Meta(ge=1, le=30)]
    width: Side
    height: Side
    count: Annotated[int, Meta(ge=1, le=MAX_COUNT)] = 4
    dtype: Dtype
    bucket: Annotated[int, Meta(ge=1, le=256)] | None = None
    lineage: Annotated[tuple[NoiseAncestor, ...], Meta(max_length=8)] = ()
    guidance_start: Fraction = 0.0
    guidance_stop: Fraction = 1.0
    guides: GuidanceKind = "rows"
    loras: Annotated[tuple[Lora, ...], Meta(max_length=MAX_LORAS)] = ()
    start: ImageToImage | Branch | None = None
    until: Annotated[float, Meta(gt=0, le=1)] = 1.0
    tile: bool = False
    mixed: bool = False
    chaos: Fraction = 0.0
    walk: Interpolation | None = None

    def __post_init__(self) -> None:
        if self.start or self.until != 1.0 or self.tile or self.mixed or self.chaos or self.walk:
            msgspec.structs.force_setattr(self, "v", max(self.v, INIT_IMAGES_VERSION))
        if (
            self.guidance_interval != FULL_INTERVAL
            or self.loras
            or self.guides != "rows"
            or self.sampler not in VERSION_1_SAMPLERS
        ):
            msgspec.structs.force_setattr(self, "v", max(self.v, MODELS_VERSION))

    @property
    def guidance_interval(self) -> tuple[float, float]:
        """The fractions of the steps between which guidance holds."""
        return self.guidance_start, self.guidance_stop

    @property
    def first_step(self) -> int:
        """The first step that runs."""
        if isinstance(self.start, Branch):
            return self.start.step
        if isinstance(self.start, ImageToImage):
            return self.steps - min(self.steps, max(1, int(self.steps * self.start.strength)))
        return 0

    @property
    def end_step(self) -> int:
        """The step before which it ends: `steps`, unless `until` stops it earlier."""
        return max(1, round(self.steps * self.until))

    @property
    def required_blobs(self) -> tuple[str, ...]:
        """The SHA-256 of each blob that the recipe needs."""
        if isinstance(self.start, Branch):
            return (self.start.ladder,)
        if isinstance(self.start, ImageToImage):
            return (*(image.sha256 for image in self.start.pictures), *filter(None, (self.start.mask,)))
        return ()


class UpscaleTask(_Value, frozen=True, kw_only=True, tag="Enlarge"):
    """Upscale one finished picture, named by its SHA-256 in the blob bucket.

    A worker without a super-resolver uses Lanczos where "gan" is requested; its `Picture` says which method it used. A
    worker of version 2 cannot read "gan": see `readable`.
    """

    source: Sha256
    factor: Annotated[int, Meta(ge=2, le=8)] = 4
    method: UpscaleMethod = "lanczos"

    def __post_init__(self) -> None:
        if self.method == "gan" and self.v < SUPER_RESOLVER_VERSION:
            msgspec.structs.force_setattr(self, "v", SUPER_RESOLVER_VERSION)


Task = Recipe | UpscaleTask


def required_blobs(task: Task) -> tuple[str, ...]:
    """Return the SHA-256 of each blob that a worker needs for the task."""
    return (task.source,) if isinstance(task, UpscaleTask) else task.required_blobs


class BillingKey(Struct, frozen=True, forbid_unknown_fields=True):
    """Who a job's cost is charged to. The same four fields decide the fair order in the queue and in the batch."""

    tier: Account
    guild: Account
    user: Account
    weight: Annotated[float, Meta(gt=0, le=1000)] = 1.0


class Job(_Value, frozen=True, kw_only=True):
    """A task with an id and an owner. `cost` is in calibrated device-seconds, `deadline` in seconds since 1970.

    `check`: a worker with a picture check classifies the finished pictures, and previews once they show enough.
    """

    v: Version = PICTURE_CHECK_VERSION
    id: Id
    task: Task
    share: BillingKey
    cost: Seconds
    pool: Name = "default"
    attempt: Annotated[int, Meta(ge=1, le=1_000_000)] = 1
    deadline: UnixSeconds
    ladder: bool = True
    check: bool = False


class Frame(_Value, frozen=True, kw_only=True):
    """A live preview of one image: the model's x0 at step `step` of `of`."""

    v: Version = PICTURE_CHECK_VERSION
    job: Id
    image: Index
    epoch: Epoch
    step: Step
    of: Step
    picture: Annotated[bytes, Meta(max_length=MAX_FRAME_BYTES)]  # JPEG
    seconds_left: Seconds
    verdict: Verdict = "unchecked"  # of the image's single early check, not of this frame


class PictureReady(_Value, frozen=True, kw_only=True, tag="Picture"):
    """One finished output, one message each. Its bytes lie in the blob bucket under `sha256`.

    `width` and `height` are the picture's own: `Warm.enlargement` times its recipe's. For a ladder they are the
    recipe's. `verdict` is about the finished picture; a ladder has none. `method` is the method that an `Enlarge` job
    really used.
    """

    v: Version = SUPER_RESOLVER_VERSION
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


class JobStarted(_Value, frozen=True, kw_only=True, tag="Started"):
    """A worker claimed the job and begins, or continues, at `step`. The epoch is the claim's revision."""

    job: Id
    epoch: Epoch
    worker: Name
    step: Step = 0


class JobModelLoading(_Value, frozen=True, kw_only=True, tag="Loading"):
    """A worker loads the job's model into memory: how far it is. Published now and then while loading lasts."""

    v: Version = MODELS_VERSION
    job: Id
    epoch: Epoch
    model: Name
    done: Fraction


class ModelProgress(_Value, frozen=True, kw_only=True):
    """What a worker does before it can use a model. The message's subject names worker and pool.

    `model` is None while the worker looks for the model's files. `size` is the model's size in bytes; 0: unknown.
    """

    v: Version = INIT_IMAGES_VERSION
    model: Name | None = None
    phase: Literal["prepare", "load", "measure", "ready"] = "prepare"
    done: Fraction = 0.0
    size: ByteCount = 0


class ControlMessage(_Value, frozen=True, kw_only=True, tag="Steer"):
    """A control message to the worker that runs a job. It is not stored, and losing one does no harm.

    A paused job resumes by itself after a while. A job that moves to another worker is neither paused nor weighted
    there. `weight`: the job gets so many times the rows of its user's other jobs of weight 1.
    """

    v: Version = MODELS_VERSION
    job: Id
    deed: Literal["pause", "resume", "weigh"]
    weight: Annotated[float, Meta(gt=0, le=1000)] = 1.0


class JobFinished(_Value, frozen=True, kw_only=True, tag="Finished"):
    """The job is done; all of its pictures were published before. `cost` is its admission cost in device-seconds."""

    job: Id
    epoch: Epoch
    cost: Seconds
    seconds: Seconds
    ms_per_step: Milliseconds


class JobFailed(_Value, frozen=True, kw_only=True, tag="Failed"):
    """The job failed. `blame` decides the refund and the sentence: only a member's fault is charged."""

    job: Id
    epoch: Epoch
    reason: Sentence
    blame: Blame
    retry: bool = False  # True: this worker could not, another may


class JobCancelled(_Value, frozen=True, kw_only=True, tag="Cancelled"):
    """The job was cancelled and its rows are free. `steps` ran and are charged."""

    job: Id
    epoch: Epoch
    steps: Step
    cost: Seconds


class JobHandedBack(_Value, frozen=True, kw_only=True, tag="Returned"):
    """The worker shuts down in order and hands the job back, for another to continue. No attempt is counted."""

    v: Version = MODELS_VERSION
    job: Id
    epoch: Epoch


Result = JobStarted | PictureReady | JobFinished | JobFailed | JobCancelled | JobHandedBack


class Keyframe(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """One keyframe: an x0 thumbnail (JPEG, WebP); at every fourth also the latents to continue from (fp32, C-order).

    A stopped picture also keeps latents at its last keyframe. `history` is x0 as latents; before version 5 workers kept
    it only for multistep samplers. `drawn`, since version 5: how many noise draws came before. `estimate`, since
    version 6: x0 in float16 where a linear map made the thumbnail, to decode it on request.
    """

    step: Step
    thumbnail: Annotated[bytes, Meta(max_length=MAX_FRAME_BYTES)]
    latent: Annotated[bytes, Meta(max_length=4 * 1024 * 1024)] | None = None
    history: Annotated[bytes, Meta(max_length=4 * 1024 * 1024)] | None = None
    drawn: Annotated[int, Meta(ge=1, le=2 * MAX_STEPS)] | None = None
    estimate: Annotated[bytes, Meta(max_length=MAX_ESTIMATE_BYTES)] | None = None


class Ladder(_Value, frozen=True, kw_only=True):
    """All keyframes of one image: at most 48, evenly spaced in log-SNR; deterministic, part of the result.

    A ladder whose keyframes have no `estimate` is readable to bots of version 5.
    """

    v: Version = INIT_IMAGES_VERSION
    job: Id
    image: Index
    of: Step
    shape: Annotated[tuple[TensorSide, ...], Meta(max_length=4)]
    rungs: Annotated[tuple[Keyframe, ...], Meta(max_length=MAX_KEYFRAMES)]

    def __post_init__(self) -> None:
        if any(rung.estimate is not None for rung in self.rungs):
            msgspec.structs.force_setattr(self, "v", max(self.v, X0_ESTIMATES_VERSION))


class Snapshot(_Value, frozen=True, kw_only=True):
    """An unfinished image, enough to continue elsewhere: next step `k`, latents `x`, history `h` (fp32, C-order).

    It holds no noise: that is a function of the recipe and the step. `rungs` holds the x0 latents (fp32) of the
    keyframes so far, each with its step.
    """

    job: Id
    image: Index
    epoch: Epoch
    k: Step
    shape: Annotated[tuple[TensorSide, ...], Meta(max_length=4)]
    x: LatentBytes
    h: LatentBytes
    rungs: Annotated[tuple[tuple[Step, LatentBytes], ...], Meta(max_length=MAX_KEYFRAMES)] = ()


class ModelProfile(Struct, frozen=True, forbid_unknown_fields=True):
    """One model that a worker offers, with its calibration on that device."""

    name: Name
    revision: Annotated[str, Meta(max_length=64)]
    dtype: Dtype
    size: Side  # native width and height in pixels
    multiple: Annotated[int, Meta(ge=1, le=256)]  # sides must be multiples of this
    max_pixels: Annotated[int, Meta(ge=256, le=4096 * 4096)]
    tokens: Annotated[int, Meta(ge=1, le=4096)]  # how many the text encoder reads
    steps: Annotated[int, Meta(ge=1, le=MAX_STEPS)]  # default, by calibration
    sampler: Sampler  # default
    guidance: Annotated[float, Meta(ge=1, le=30)]  # default
    row_ms: Milliseconds  # milliseconds a row-step at native size, at the calibrated batch limit
    encode_ms: Milliseconds
    decode_ms: Milliseconds  # a finished picture, upscaling included
    enlargement: Annotated[int, Meta(ge=1, le=8)] = 1  # upscaling factor of finished pictures
    samplers: Annotated[tuple[Sampler, ...], Meta(max_length=32)] = VERSION_1_SAMPLERS
    guides: GuidanceKind = "rows"
    guidance_start: Fraction = 0.0  # defaults
    guidance_stop: Fraction = 1.0
    loras: Annotated[tuple[Lora, ...], Meta(max_length=256)] = ()  # LoRAs that fit it, each with its usual weight
    loaded: bool = True  # False: the worker loads it when a job needs it


class Presence(_Value, frozen=True, kw_only=True):
    """What a live worker announces every few seconds."""

    v: Version = VERSION
    worker: Name
    pools: Annotated[tuple[Name, ...], Meta(min_length=1, max_length=16)]
    models: Annotated[tuple[ModelProfile, ...], Meta(max_length=64)]
    device: Annotated[str, Meta(max_length=128)]
    rows: Annotated[int, Meta(ge=0, le=MAX_ROWS)]  # rows it runs at once
    free: Annotated[int, Meta(ge=0, le=MAX_ROWS)]  # of these, still free
    build: Annotated[str, Meta(max_length=128)]
    checks: bool = False  # whether it has a picture check
    enlarge_ms: Milliseconds = 0.0  # per megapixel of a picture for its super-resolver; 0: it has none


class EmbedRequest(_Value, frozen=True, kw_only=True):
    texts: Annotated[tuple[Text, ...], Meta(min_length=1, max_length=64)]


class EmbedReply(_Value, frozen=True, kw_only=True):
    """Unit vectors, one per text (mean-pooled, L2-normalised), or the reason why there are none."""

    vectors: Annotated[tuple[Annotated[tuple[Coordinate, ...], Meta(max_length=4096)], ...], Meta(max_length=64)] = ()
    error: Sentence = ""


class DescribeRequest(_Value, frozen=True, kw_only=True):
    """Ask how well a model predicts an image's noise under each text (Li et al. 2023, arXiv 2303.16203).

    `revision`: the model's; empty: the one that the worker has, as in a recipe. `picture`: a PNG; the model sees its
    middle square at the native size. Each text is tried with the same `draws` noisings, from number `first` on of one
    fixed sequence.
    """

    v: Version = INIT_IMAGES_VERSION
    model: Name
    revision: Annotated[str, Meta(max_length=64)] = ""
    picture: Annotated[bytes, Meta(min_length=1, max_length=MAX_FRAME_BYTES)]
    texts: Annotated[tuple[CandidateText, ...], Meta(min_length=1, max_length=MAX_CANDIDATES)]
    first: Annotated[int, Meta(ge=0, le=1000)] = 0
    draws: Annotated[int, Meta(ge=1, le=MAX_NOISINGS)] = 1


class DescribeReply(_Value, frozen=True, kw_only=True):
    """For each text the mean squared error of the noise at each draw, or the reason why there is none.

    `elsewhere`: this worker cannot answer now, another may.
    """

    v: Version = INIT_IMAGES_VERSION
    errors: Annotated[
        tuple[Annotated[tuple[SquaredError, ...], Meta(max_length=MAX_NOISINGS)], ...], Meta(max_length=MAX_CANDIDATES)
    ] = ()
    error: Sentence = ""
    elsewhere: bool = False


class DecodeRequest(_Value, frozen=True, kw_only=True):
    """Decode the x0 of a ladder's keyframes into thumbnails, with the model revision that made them.

    `width`, `height` and `tile` are the recipe's. Each of `latents` is float16, C-order, in the shape that follows from
    them.
    """

    v: Version = X0_ESTIMATES_VERSION
    model: Name
    revision: Annotated[str, Meta(min_length=1, max_length=64)]
    width: Side
    height: Side
    tile: bool = False
    latents: Annotated[
        tuple[Annotated[bytes, Meta(min_length=2, max_length=MAX_ESTIMATE_BYTES)], ...],
        Meta(min_length=1, max_length=MAX_KEYFRAMES),
    ]


class DecodeReply(_Value, frozen=True, kw_only=True):
    """One JPEG for each of the latents, or the reason why there are none."""

    v: Version = X0_ESTIMATES_VERSION
    thumbnails: Annotated[
        tuple[Annotated[bytes, Meta(min_length=1, max_length=MAX_THUMBNAIL_BYTES)], ...], Meta(max_length=MAX_KEYFRAMES)
    ] = ()
    error: Sentence = ""


class MalformedMessage(ValueError):
    """Bytes from outside break the contract; the text names the first violation."""


class NewerVersion(MalformedMessage):
    """The bytes are of a later contract version: this process needs an update to read them."""


class _VersionHeader(Struct):
    """The fields that are read from bytes that this process cannot decode."""

    v: int = 0
    worker: str = ""
    task: _VersionHeader | None = None


T = TypeVar("T")


def encode(value: object) -> bytes:
    """Return a contract value as MessagePack."""
    return msgspec.msgpack.encode(value)


def decode(payload: bytes, message_type: type[T]) -> T:
    """Return bytes as a value of `kind` (a struct or a union of structs). Raises only `Malformed` or `Newer`."""
    try:
        return msgspec.msgpack.decode(payload, type=message_type, strict=True)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise _decode_error(payload, str(error)) from error


def _decode_error(payload: bytes, reason: str) -> MalformedMessage:
    try:
        header = msgspec.msgpack.decode(payload, type=_VersionHeader)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError):
        return MalformedMessage(reason)
    newest_version = max(header.v, header.task.v if header.task else 0)
    if newest_version <= VERSION:
        return MalformedMessage(reason)
    sender = f"the worker {header.worker[:64]!r} says" if header.worker else "it is"
    return NewerVersion(
        f"{sender} version {newest_version} of the contract, and this process reads up to {VERSION}: update it"
    )


def downgrade_job(job: Job, version: int) -> Job:
    """Return the job as a worker of this version can read it: before the super-resolver, all upscaling was Lanczos."""
    if version < SUPER_RESOLVER_VERSION and isinstance(job.task, UpscaleTask) and job.task.method == "gan":
        return msgspec.structs.replace(job, task=UpscaleTask(source=job.task.source, factor=job.task.factor))
    return job


def recipe_for_image(recipe: Recipe, image: int) -> Recipe:
    """Return the recipe of one of its images.

    With chaos, each image has its own guidance scale, evenly spaced in octaves. At a chaos of 1 they go from half the
    recipe's (measured from 1, where guidance begins) to twice that. In an interpolation, each image has its own mix of
    both prompts, or its own noise between two seeds. The first and last frame, and a frame that falls on a given seed,
    have that prompt or seed alone.
    """
    if recipe.walk is not None:
        return _interpolated_recipe(recipe, recipe.walk, image)
    if not recipe.chaos or recipe.count == 1:
        return recipe
    octaves = recipe.chaos * (2 * image / (recipe.count - 1) - 1)
    guidance = min(30.0, 1.0 + (recipe.guidance - 1.0) * 2.0**octaves)
    return msgspec.structs.replace(recipe, guidance=guidance)


def _interpolated_recipe(recipe: Recipe, interpolation: Interpolation, image: int) -> Recipe:
    last_frame = interpolation.of - 1
    frame = min(interpolation.first + image, last_frame)
    if interpolation.to is not None:
        end_concepts = (
            Concept(recipe.concepts[0].text, 1.0 - frame / last_frame),
            Concept(interpolation.to, frame / last_frame),
        )
        concepts = tuple(concept for concept in end_concepts if concept.weight)
        recipe = msgspec.structs.replace(recipe, concepts=concepts, mixed=len(concepts) > 1)
    if not interpolation.noises:
        return recipe
    segment, offset = divmod(frame * (len(interpolation.noises) - 1), last_frame)
    start_seed = interpolation.noises[segment]
    if not offset:
        return msgspec.structs.replace(recipe, seed=start_seed, lineage=())
    return msgspec.structs.replace(
        recipe,
        seed=interpolation.noises[segment + 1],
        lineage=(NoiseAncestor(seed=start_seed, index=0, strength=offset / last_frame),),
    )


def noise_seed(recipe: Recipe, image: int) -> int:
    """Return the seed of an image's noise, from its own recipe (`of_image`)."""
    return recipe.seed if recipe.walk is not None else recipe.seed + image


def map_step(keyframe_step: int, keyframe_steps: int, steps: int) -> int:
    """Map keyframe step `rung` of `of` to the same share of `steps`, rounded up; `steps` where none is left.

    Schedules spread their noise levels by the share of the steps. `Beginning.at` makes up for the remaining difference.
    """
    return -(-keyframe_step * steps // keyframe_steps)


def is_guided(recipe: Recipe, step: int) -> bool:
    """Return whether guidance holds at step `k`."""
    return is_in_interval(recipe.guidance_interval, step, recipe.steps)


def count_guided_steps(recipe: Recipe) -> int:
    """Return at how many of the executed steps guidance holds."""
    first_step, end_step = _interval_steps(recipe.guidance_interval, recipe.steps)
    return max(0, min(end_step, recipe.end_step) - max(first_step, recipe.first_step))


def is_in_interval(interval: tuple[float, float], step: int, steps: int) -> bool:
    """Return whether step `k` of `steps` lies between these fractions, counted as diffusers' guiders do."""
    first_step, end_step = _interval_steps(interval, steps)
    return first_step <= step < end_step


def _interval_steps(interval: tuple[float, float], steps: int) -> tuple[int, int]:
    return int(interval[0] * steps), int(interval[1] * steps)


def needs_unconditional_row(recipe: Recipe, is_guidance_on: bool = True) -> bool:
    """Return whether the empty or negative text u needs a row.

    The prediction u + guidance·Σ wᵢ(cᵢ - u) lacks u where guidance·Σ wᵢ = 1. Where guidance is not `held`, its scale is
    1/Σ wᵢ, so that u cancels. If a concept has a weight of 0 or less, the scale is 1 and u stays: a sum near 0 would
    blow everything up.
    """
    if recipe.guides == "network":
        return False
    if not is_guidance_on:
        return has_negative_weight(recipe)
    return recipe.guidance * (1.0 if recipe.mixed else sum(concept.weight for concept in recipe.concepts)) != 1.0


def has_negative_weight(recipe: Recipe) -> bool:
    return any(concept.weight <= 0.0 for concept in recipe.concepts)


def count_rows(recipe: Recipe, is_guidance_on: bool = True) -> int:
    """Return network rows a step: per image one for each concept, plus the empty or negative text unless it cancels."""
    return recipe.count * (
        (1 if recipe.mixed else len(recipe.concepts)) + needs_unconditional_row(recipe, is_guidance_on)
    )


def pinned_bucket(recipe: Recipe, is_guidance_on: bool = True) -> int | None:
    """Return the pinned batch shape; without guidance it shrinks with the rows of an image."""
    return recipe.bucket and max(1, recipe.bucket * count_rows(recipe, is_guidance_on) // count_rows(recipe))


def count_row_steps(recipe: Recipe) -> int:
    """Return the rows of all steps that are paid for: a pinned batch shape is paid in full, padding included."""
    guided_steps, all_steps = count_guided_steps(recipe), max(0, recipe.end_step - recipe.first_step)
    return guided_steps * _padded_rows(recipe, True) + (all_steps - guided_steps) * _padded_rows(recipe, False)


def _padded_rows(recipe: Recipe, is_guidance_on: bool) -> int:
    row_count, bucket = count_rows(recipe, is_guidance_on), pinned_bucket(recipe, is_guidance_on)
    return row_count + (-row_count % bucket if bucket else 0)


def estimate_cost(recipe: Recipe, model: ModelProfile) -> float:
    """Return calibrated device-seconds: row-steps × time a row-step at this size + encode + decode.

    Encoding an init image takes about as long as decoding one.
    """
    area = recipe.width * recipe.height / (model.size * model.size)
    step_ms = count_row_steps(recipe) * model.row_ms * area
    text_ms = (len(recipe.concepts) + 1 + bool(recipe.walk and recipe.walk.to)) * model.encode_ms
    init_image_count = len(recipe.start.pictures) if isinstance(recipe.start, ImageToImage) else 0
    return (step_ms + text_ms + (recipe.count + init_image_count) * model.decode_ms * area) / 1000.0


def estimate_decode_ms(model: ModelProfile, width: int, height: int, count: int) -> float:
    """Return calibrated milliseconds of `count` decodes at this size; the calibrated time includes upscaling."""
    return count * model.decode_ms * width * height / (model.size * model.size)

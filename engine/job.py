"""The wire contract: every value that crosses a process boundary.

Knows how a value looks and how large it may be; knows nothing of NATS, torch, SQL or Discord. Everything here is
frozen, tagged (`type`), versioned (`v`), strict (unknown fields are refused), and every string, list and number is
bounded: what comes from another process is untrusted until it has passed `decode`.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Annotated, Literal, TypeVar

import msgspec
from msgspec import Meta, Struct

# The versions that brought the picture check, the super-resolver, other models, pictures to begin with, and
# estimates in every rung.
CHECKING, RESOLVING, MODELS, STARTS, ESTIMATES = 2, 3, 4, 5, 6
VERSION = ESTIMATES
MAX_STEPS = 1000
MAX_COUNT = 4
MAX_CONCEPTS = 8
MAX_FRAME_BYTES = 256 * 1024
MAX_RUNGS = 48
MAX_ESTIMATE_BYTES = 128 * 1024  # of a rung: 4 × 128 × 128 half floats, SDXL's at 1024 × 1024
MAX_THUMBNAIL_BYTES = 64 * 1024  # of a rung that is decoded on request
MAX_LORAS = 4
MAX_SOURCES = 5
MAX_FRAMES = 16  # of a walk, which is as many jobs as it takes
MAX_ROWS = 1024  # of a worker at once: four times the most that calibration tries
MAX_CANDIDATES = 64  # texts that a picture is held against in one request
MAX_DRAWS = 16  # noisings of it that each of them is tried with there

# \Z, not $: that would let a trailing newline through, into a subject or a file name.
Id = Annotated[str, Meta(pattern=r"^[0-9A-HJKMNP-TV-Z]{26}\Z")]  # a ULID (github.com/ulid/spec)
Sha256 = Annotated[str, Meta(pattern=r"^[0-9a-f]{64}\Z")]
Name = Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}\Z")]  # safe as a file name; `subjects.token`
Text = Annotated[str, Meta(max_length=2000)]
Sentence = Annotated[str, Meta(max_length=500)]
Index = Annotated[int, Meta(ge=0, lt=MAX_COUNT)]
Step = Annotated[int, Meta(ge=0, le=MAX_STEPS)]
Seed = Annotated[int, Meta(ge=0, lt=2**32)]
# A lower bound refuses NaN, an upper one infinity: so every float here has both.
Seconds = Annotated[float, Meta(ge=0, le=1e9)]
Milliseconds = Annotated[float, Meta(ge=0, le=1e9)]
Moment = Annotated[float, Meta(ge=0, le=1e12)]  # seconds since 1970
Coordinate = Annotated[float, Meta(ge=-1.01, le=1.01)]  # of a unit vector
Candidate = Annotated[str, Meta(max_length=200)]  # a text that may describe a picture
Discrepancy = Annotated[float, Meta(ge=0, le=1e9)]  # a mean squared error
Latent = Annotated[bytes, Meta(max_length=8 * 1024 * 1024)]
Extent = Annotated[int, Meta(ge=1, le=65_536)]  # one dimension of a tensor
Side = Annotated[int, Meta(ge=16, le=4096)]
Epoch = Annotated[int, Meta(ge=0, le=2**62)]
Account = Annotated[str, Meta(max_length=64)]
Version = Annotated[int, Meta(ge=1, le=VERSION)]
Fraction = Annotated[float, Meta(ge=0, le=1)]
Bytes = Annotated[int, Meta(ge=0, le=10**15)]

Dtype = Literal["float32", "bfloat16", "float16"]
Sampler = Literal[
    "ddpm", "ddim", "euler", "euler_karras", "euler_ancestral", "dpmpp_2m", "dpmpp_2m_karras", "dpmpp_2m_sde", "lcm",
    "heun", "unipc", "kdpm2", "dpmpp_3m", "native",
]  # fmt: skip
FIRST_SAMPLERS: tuple[Sampler, ...] = ("ddpm", "ddim", "euler", "dpmpp_2m")  # what workers before version 4 have
# More than one linear evaluation a step, or the model's own scheduler as it comes: the whole picture goes through the
# unmodified pipeline. It shares forwards, and cannot go on elsewhere midway.
WHOLE_SAMPLERS: tuple[Sampler, ...] = ("heun", "unipc", "kdpm2", "dpmpp_3m", "native")
# As AUTOMATIC1111's web UI writes them, where it has them: pictures carry their recipe in its form.
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
ALL_ALONG = (0.0, 1.0)  # an interval: guidance holds at every step
Guides = Literal["rows", "network"]  # guidance by a row without the words, or as a number that the network takes
Blame = Literal["member", "model", "worker", "us"]
Method = Literal["gan", "lanczos"]  # how a picture is enlarged: by the super-resolver, or without new detail
Verdict = Literal["unchecked", "passed", "flagged"]  # of a picture check; unchecked also where the check failed


class _Value(Struct, frozen=True, kw_only=True, tag=True, forbid_unknown_fields=True):
    """A reader takes every version up to its own: a field that came later has a default, and raised `VERSION`.

    `v` is the version in which the kind last changed, not the writer's: so a reader of an older version still takes
    what it can understand. Only `Presence` says `VERSION` always: it tells the bot what its worker can read.
    """

    v: Version = 1


class Concept(Struct, frozen=True, forbid_unknown_fields=True):
    """One weighted part of a prompt; a negative weight steers away (Liu et al. 2022, composable diffusion)."""

    text: Text
    weight: Annotated[float, Meta(ge=-10, le=10)] = 1.0


class Ancestor(Struct, frozen=True, forbid_unknown_fields=True):
    """A noise stream that a variation started from; `strength` is how far the next generation moved away from it."""

    seed: Seed
    index: Index
    strength: Fraction


class Lora(Struct, frozen=True, forbid_unknown_fields=True):
    """A small addition to a model's weights (Hu et al. 2021), by its name on the workers, and how strongly.

    `revision` changes with its weights; empty: whichever the worker has.
    """

    name: Name
    weight: Annotated[float, Meta(ge=-4, le=4)] = 1.0
    revision: Annotated[str, Meta(max_length=64)] = ""


class Source(Struct, frozen=True, forbid_unknown_fields=True):
    """A picture to begin with, by its SHA-256 in the blob bucket, and how much it weighs beside others."""

    sha256: Sha256
    weight: Annotated[float, Meta(gt=0, le=100)] = 1.0


class Forward(Struct, frozen=True, tag=True, forbid_unknown_fields=True):
    """Begin with pictures, part of the way into noise: x = alpha·z + sigma·noise (Ho et al. 2020, equation 4).

    z is the autoencoder's mean of a picture; of several, their spherical interpolation by weight. `strength` is the
    fraction of the steps that are left to run, as in diffusers' image-to-image pipelines: 1 keeps nothing. `mask`: a
    grey PNG of any size; what is white is drawn anew, what is black stays, after every step (Lugmayr et al. 2022).
    """

    pictures: Annotated[tuple[Source, ...], Meta(min_length=1, max_length=MAX_SOURCES)]
    strength: Annotated[float, Meta(gt=0, le=1)]
    mask: Sha256 | None = None


class Branch(Struct, frozen=True, tag=True, forbid_unknown_fields=True):
    """Go on from a rung of another image's ladder, which keeps its latents (`Ladder`, by its SHA-256).

    `step` counts the recipe's steps; `rung` the ladder's, where these are another number (`onto`). The noise of the
    steps to come is the recipe's own. `fresh`: the noise within the latents is drawn anew as well, x = alpha·x0 +
    sigma·noise, since many samplers draw none in their steps.
    """

    ladder: Sha256
    step: Annotated[int, Meta(ge=1, lt=MAX_STEPS)]
    fresh: bool = False
    rung: Annotated[int, Meta(ge=1, lt=MAX_STEPS)] | None = None

    @property
    def left(self) -> int:
        """The step at which it leaves the picture that it branches from, counted there."""
        return self.step if self.rung is None else self.rung


class Walk(Struct, frozen=True, forbid_unknown_fields=True):
    """The images are stations of a way: image `i` is station `first + i` of `of`, evenly spaced (`of_image`).

    `to`: the way goes through what the text encoder makes of words, from the recipe's to these. `noises`: it goes from
    seed to seed, on an arc from each to the next; without them all stations share the recipe's noise.
    """

    to: Text | None
    first: Annotated[int, Meta(ge=0, lt=MAX_FRAMES)]
    of: Annotated[int, Meta(ge=2, le=MAX_FRAMES)]
    noises: Annotated[tuple[Seed, ...], Meta(max_length=MAX_COUNT)] = ()


class Recipe(_Value, frozen=True, kw_only=True, omit_defaults=True):
    """Everything that decides pixels, and nothing else. One that uses nothing new is readable to workers of version 1.

    What warm-up measured (`dtype`, default `steps`) is frozen here when the recipe is made: load never changes pixels.
    Image `i` draws its noise from `torch.Generator().manual_seed(seed + i)`, as a diffusers user would, but for a walk
    (`stream`). `lineage` lists the noise streams of a variation's ancestors, oldest first: every draw (initial and per
    step) is the spherical interpolation along that chain, ending in the recipe's own stream. `bucket` pins the batch
    shape (`exact` mode). Guidance holds from `guidance_start` to `guidance_stop`, as fractions of the steps; outside,
    the words speak alone, which takes fewer rows (Kynkäänniemi et al. 2024; the fractions are those of diffusers'
    guiders). `guides` is the model's. `start`: what it begins with in place of noise. `until`: the fraction of the
    steps after which it ends, with the estimate of that moment. `tile`: its edges fit each other. `mixed`: the concepts
    are one text, as a weighted mean of their embeddings, in place of a composition of predictions; all weigh more than
    0. `chaos`: how far apart the images' guidance lies, `walk`: from what to what they lead (`of_image`).
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
    lineage: Annotated[tuple[Ancestor, ...], Meta(max_length=8)] = ()
    guidance_start: Fraction = 0.0
    guidance_stop: Fraction = 1.0
    guides: Guides = "rows"
    loras: Annotated[tuple[Lora, ...], Meta(max_length=MAX_LORAS)] = ()
    start: Forward | Branch | None = None
    until: Annotated[float, Meta(gt=0, le=1)] = 1.0
    tile: bool = False
    mixed: bool = False
    chaos: Fraction = 0.0
    walk: Walk | None = None

    def __post_init__(self) -> None:
        if self.start or self.until != 1.0 or self.tile or self.mixed or self.chaos or self.walk:
            msgspec.structs.force_setattr(self, "v", max(self.v, STARTS))
        if self.interval != ALL_ALONG or self.loras or self.guides != "rows" or self.sampler not in FIRST_SAMPLERS:
            msgspec.structs.force_setattr(self, "v", max(self.v, MODELS))

    @property
    def interval(self) -> tuple[float, float]:
        """The fractions of the steps between which guidance holds."""
        return self.guidance_start, self.guidance_stop

    @property
    def first(self) -> int:
        """The step that it begins with."""
        if isinstance(self.start, Branch):
            return self.start.step
        if isinstance(self.start, Forward):
            return self.steps - min(self.steps, max(1, int(self.steps * self.start.strength)))
        return 0

    @property
    def last(self) -> int:
        """The step that it ends before: `steps`, unless it is stopped."""
        return max(1, round(self.steps * self.until))

    @property
    def sources(self) -> tuple[str, ...]:
        """The blobs that it needs, by their SHA-256."""
        if isinstance(self.start, Branch):
            return (self.start.ladder,)
        if isinstance(self.start, Forward):
            return (*(one.sha256 for one in self.start.pictures), *filter(None, (self.start.mask,)))
        return ()


class Enlarge(_Value, frozen=True, kw_only=True):
    """Enlarge one finished picture, named by its SHA-256 in the blob bucket.

    A worker without a super-resolver takes Lanczos where "gan" is asked for; its `Picture` says what it was. One of
    version 2 cannot read "gan": see `readable`.
    """

    source: Sha256
    factor: Annotated[int, Meta(ge=2, le=8)] = 4
    method: Method = "lanczos"

    def __post_init__(self) -> None:
        if self.method == "gan" and self.v < RESOLVING:
            msgspec.structs.force_setattr(self, "v", RESOLVING)


Task = Recipe | Enlarge


def sources(task: Task) -> tuple[str, ...]:
    """The blobs that a worker needs for it, by their SHA-256."""
    return (task.source,) if isinstance(task, Enlarge) else task.sources


class Share(Struct, frozen=True, forbid_unknown_fields=True):
    """Who a job's cost is charged to; the same four fields decide the fair order in the queue and in the batch."""

    tier: Account
    guild: Account
    user: Account
    weight: Annotated[float, Meta(gt=0, le=1000)] = 1.0


class Job(_Value, frozen=True, kw_only=True):
    """A task with an id and an owner. `cost` is in calibrated device-seconds; `deadline` in seconds since 1970.

    `check`: a worker with a picture check shall look at what comes out, and at the previews once it can tell.
    """

    v: Version = CHECKING
    id: Id
    task: Task
    share: Share
    cost: Seconds
    pool: Name = "default"
    attempt: Annotated[int, Meta(ge=1, le=1_000_000)] = 1
    deadline: Moment
    ladder: bool = True
    check: bool = False


class Frame(_Value, frozen=True, kw_only=True):
    """A live preview of one image: the model's estimate of the finished picture (x0) at step `step` of `of`."""

    v: Version = CHECKING
    job: Id
    image: Index
    epoch: Epoch
    step: Step
    of: Step
    picture: Annotated[bytes, Meta(max_length=MAX_FRAME_BYTES)]  # JPEG
    seconds_left: Seconds
    verdict: Verdict = "unchecked"  # of the image's one early look, not of this frame alone


class Picture(_Value, frozen=True, kw_only=True):
    """One finished output, one message each; its bytes lie in the blob bucket under `sha256`.

    `width` and `height` are the picture's own, `Warm.enlargement` times its recipe's; of a ladder, the recipe's.
    `verdict` is of the finished picture itself; a ladder has none of its own. `method` is how an `Enlarge` job was
    really done.
    """

    v: Version = RESOLVING
    job: Id
    image: Index
    epoch: Epoch
    kind: Literal["image", "ladder"]
    sha256: Sha256
    bytes: Annotated[int, Meta(ge=1, le=256 * 1024 * 1024)]
    width: Side
    height: Side
    verdict: Verdict = "unchecked"
    method: Method | None = None


class Started(_Value, frozen=True, kw_only=True):
    """A worker claimed the job and begins (or goes on) at `step`. The epoch is the claim's revision."""

    job: Id
    epoch: Epoch
    worker: Name
    step: Step = 0


class Loading(_Value, frozen=True, kw_only=True):
    """A worker fetches the job's model into memory, and how far it is; said now and then, and only while it lasts."""

    v: Version = MODELS
    job: Id
    epoch: Epoch
    model: Name
    done: Fraction


class ModelProgress(_Value, frozen=True, kw_only=True):
    """What a worker does before it can draw with a model. Its subject names worker and pool.

    `model` is None while it looks for its files. `size`: bytes that the model takes; 0: unknown.
    """

    v: Version = STARTS
    model: Name | None = None
    phase: Literal["prepare", "load", "measure", "ready"] = "prepare"
    done: Fraction = 0.0
    size: Bytes = 0


class Steer(_Value, frozen=True, kw_only=True):
    """What the worker that runs a job shall do with it, if it hears of it: nothing is kept, and a lost one is no harm.

    A job that is paused ends its pause by itself, and one that goes on elsewhere is neither paused nor weighed there.
    `weight`: of its user's rows it gets so many times those of a job of weight 1.
    """

    v: Version = MODELS
    job: Id
    deed: Literal["pause", "resume", "weigh"]
    weight: Annotated[float, Meta(gt=0, le=1000)] = 1.0


class Finished(_Value, frozen=True, kw_only=True):
    """Every picture of the job was published before this. `cost` is the price it was accepted at, in device-seconds."""

    job: Id
    epoch: Epoch
    cost: Seconds
    seconds: Seconds
    ms_per_step: Milliseconds


class Failed(_Value, frozen=True, kw_only=True):
    """`blame` decides the refund and the sentence: only a member's fault is charged."""

    job: Id
    epoch: Epoch
    reason: Sentence
    blame: Blame
    retry: bool = False  # True: the worker could not, another may


class Cancelled(_Value, frozen=True, kw_only=True):
    """The rows are free; `steps` were run and are charged."""

    job: Id
    epoch: Epoch
    steps: Step
    cost: Seconds


class Returned(_Value, frozen=True, kw_only=True):
    """Its worker ends in order and lets the job go, for another to go on with: no attempt that failed."""

    v: Version = MODELS
    job: Id
    epoch: Epoch


Result = Started | Picture | Finished | Failed | Cancelled | Returned


class Rung(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """One x0 thumbnail of the ladder (JPEG, WebP) and, at every fourth rung, the latent to go on from (fp32, C-order).

    A picture that was stopped keeps them at its last rung, too. `history` is the estimate x0 as latents; workers before
    version 5 kept it only where the sampler looks back. `drawn`: how many draws of noise came before, since version 5.
    `estimate`: x0 in float16, since version 6, where the thumbnail is a linear map's: to decode it on request.
    """

    step: Step
    thumbnail: Annotated[bytes, Meta(max_length=MAX_FRAME_BYTES)]
    latent: Annotated[bytes, Meta(max_length=4 * 1024 * 1024)] | None = None
    history: Annotated[bytes, Meta(max_length=4 * 1024 * 1024)] | None = None
    drawn: Annotated[int, Meta(ge=1, le=2 * MAX_STEPS)] | None = None
    estimate: Annotated[bytes, Meta(max_length=MAX_ESTIMATE_BYTES)] | None = None


class Ladder(_Value, frozen=True, kw_only=True):
    """How one image came to be: at most 48 rungs, evenly spaced in log-SNR; deterministic, part of the result.

    One whose rungs have no estimate is readable to bots of version 5.
    """

    v: Version = STARTS
    job: Id
    image: Index
    of: Step
    shape: Annotated[tuple[Extent, ...], Meta(max_length=4)]
    rungs: Annotated[tuple[Rung, ...], Meta(max_length=MAX_RUNGS)]

    def __post_init__(self) -> None:
        if any(rung.estimate is not None for rung in self.rungs):
            msgspec.structs.force_setattr(self, "v", max(self.v, ESTIMATES))


class Snapshot(_Value, frozen=True, kw_only=True):
    """One image midway, enough to go on elsewhere: the next step `k`, latents `x`, history `h` (fp32, C-order).

    Noise needs no state here: it is a function of the recipe and the step. `rungs` holds the x0 latents (fp32) that the
    ladder has gathered so far, each with its step.
    """

    job: Id
    image: Index
    epoch: Epoch
    k: Step
    shape: Annotated[tuple[Extent, ...], Meta(max_length=4)]
    x: Latent
    h: Latent
    rungs: Annotated[tuple[tuple[Step, Latent], ...], Meta(max_length=MAX_RUNGS)] = ()


class Warm(Struct, frozen=True, forbid_unknown_fields=True):
    """One model a worker has ready, with what calibration measured of it on that device."""

    name: Name
    revision: Annotated[str, Meta(max_length=64)]
    dtype: Dtype
    size: Side  # native width and height in pixels
    multiple: Annotated[int, Meta(ge=1, le=256)]  # sides must be multiples of this
    max_pixels: Annotated[int, Meta(ge=256, le=4096 * 4096)]
    tokens: Annotated[int, Meta(ge=1, le=4096)]  # the text encoder reads this many
    steps: Annotated[int, Meta(ge=1, le=MAX_STEPS)]  # default, by calibration
    sampler: Sampler  # default
    guidance: Annotated[float, Meta(ge=1, le=30)]  # default
    row_ms: Milliseconds  # milliseconds a row-step at native size, at the calibrated row cap
    encode_ms: Milliseconds
    decode_ms: Milliseconds  # of a finished picture, its enlargement included
    enlargement: Annotated[int, Meta(ge=1, le=8)] = 1  # finals are so many times as wide and high as their recipe
    samplers: Annotated[tuple[Sampler, ...], Meta(max_length=32)] = FIRST_SAMPLERS
    guides: Guides = "rows"
    guidance_start: Fraction = 0.0  # defaults
    guidance_stop: Fraction = 1.0
    loras: Annotated[tuple[Lora, ...], Meta(max_length=256)] = ()  # what may be added to it, each at its usual weight
    loaded: bool = True  # False: the worker fetches it into memory when a job asks for it


class Presence(_Value, frozen=True, kw_only=True):
    """What a live worker says of itself every few seconds."""

    v: Version = VERSION
    worker: Name
    pools: Annotated[tuple[Name, ...], Meta(min_length=1, max_length=16)]
    models: Annotated[tuple[Warm, ...], Meta(max_length=64)]
    device: Annotated[str, Meta(max_length=128)]
    rows: Annotated[int, Meta(ge=0, le=MAX_ROWS)]  # rows it takes at once
    free: Annotated[int, Meta(ge=0, le=MAX_ROWS)]  # of these, still free
    build: Annotated[str, Meta(max_length=128)]
    checks: bool = False  # it has a picture check
    enlarge_ms: Milliseconds = 0.0  # a megapixel of a picture that its super-resolver enlarges; 0: it has none


class EmbedRequest(_Value, frozen=True, kw_only=True):
    texts: Annotated[tuple[Text, ...], Meta(min_length=1, max_length=64)]


class EmbedReply(_Value, frozen=True, kw_only=True):
    """Unit vectors, one a text (mean-pooled, L2-normalised), or the reason why there are none."""

    vectors: Annotated[tuple[Annotated[tuple[Coordinate, ...], Meta(max_length=4096)], ...], Meta(max_length=64)] = ()
    error: Sentence = ""


class DescribeRequest(_Value, frozen=True, kw_only=True):
    """Under which of these texts does a model best predict the noise in a picture? (Li et al. 2023, arXiv 2303.16203)

    `revision`: of the model; empty: whichever the worker has, as in a recipe.
    `picture`: a PNG; its middle square is looked at, at the model's native size. Each text is tried with the same
    `draws` noisings of it, of one fixed sequence those from `first` on.
    """

    v: Version = STARTS
    model: Name
    revision: Annotated[str, Meta(max_length=64)] = ""
    picture: Annotated[bytes, Meta(min_length=1, max_length=MAX_FRAME_BYTES)]
    texts: Annotated[tuple[Candidate, ...], Meta(min_length=1, max_length=MAX_CANDIDATES)]
    first: Annotated[int, Meta(ge=0, le=1000)] = 0
    draws: Annotated[int, Meta(ge=1, le=MAX_DRAWS)] = 1


class DescribeReply(_Value, frozen=True, kw_only=True):
    """For each text the mean squared error of the noise at each draw, or the reason why there is none.

    `elsewhere`: this worker cannot say just now, another may.
    """

    v: Version = STARTS
    errors: Annotated[
        tuple[Annotated[tuple[Discrepancy, ...], Meta(max_length=MAX_DRAWS)], ...], Meta(max_length=MAX_CANDIDATES)
    ] = ()
    error: Sentence = ""
    elsewhere: bool = False


class DecodeRequest(_Value, frozen=True, kw_only=True):
    """Decode the estimates of a ladder's rungs into thumbnails, with the model at the revision that drew them.

    `width`, `height`, `tile`: of their recipe. Each of `latents` is float16, C-order, of the shape that follows.
    """

    v: Version = ESTIMATES
    model: Name
    revision: Annotated[str, Meta(min_length=1, max_length=64)]
    width: Side
    height: Side
    tile: bool = False
    latents: Annotated[
        tuple[Annotated[bytes, Meta(min_length=2, max_length=MAX_ESTIMATE_BYTES)], ...],
        Meta(min_length=1, max_length=MAX_RUNGS),
    ]


class DecodeReply(_Value, frozen=True, kw_only=True):
    """A JPEG for each of the latents, or the reason why there are none."""

    v: Version = ESTIMATES
    thumbnails: Annotated[
        tuple[Annotated[bytes, Meta(min_length=1, max_length=MAX_THUMBNAIL_BYTES)], ...], Meta(max_length=MAX_RUNGS)
    ] = ()
    error: Sentence = ""


class Malformed(ValueError):
    """Bytes from outside that are not what the contract says; the text names the first thing that is wrong."""


class Newer(Malformed):
    """They are of a later version of the contract: whoever has been updated can read them."""


class _Said(Struct):
    """What is looked at of bytes that nobody here can read."""

    v: int = 0
    worker: str = ""
    task: _Said | None = None


T = TypeVar("T")


def encode(value: object) -> bytes:
    """A contract value as MessagePack."""
    return msgspec.msgpack.encode(value)


def decode(payload: bytes, kind: type[T]) -> T:
    """Bytes as a value of `kind` (a struct or a union of them). Raises `Malformed` or `Newer`, never anything else."""
    try:
        return msgspec.msgpack.decode(payload, type=kind, strict=True)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise _unread(payload, str(error)) from error


def _unread(payload: bytes, why: str) -> Malformed:
    try:
        said = msgspec.msgpack.decode(payload, type=_Said)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError):
        return Malformed(why)
    newest = max(said.v, said.task.v if said.task else 0)
    if newest <= VERSION:
        return Malformed(why)
    who = f"the worker {said.worker[:64]!r} says" if said.worker else "it is"
    return Newer(f"{who} version {newest} of the contract, and this process reads up to {VERSION}: update it")


def readable(job: Job, version: int) -> Job:
    """The job as a worker of this version can read it: before the super-resolver, every enlargement was by Lanczos."""
    if version < RESOLVING and isinstance(job.task, Enlarge) and job.task.method == "gan":
        return msgspec.structs.replace(job, task=Enlarge(source=job.task.source, factor=job.task.factor))
    return job


def of_image(recipe: Recipe, image: int) -> Recipe:
    """The recipe of one of its images.

    With chaos, each has a guidance of its own, evenly spaced in octaves: at a chaos of 1 from half the recipe's (its
    distance from 1, where guidance begins) to twice that. On a walk each has a text of its own, of both ends by its
    share of the way, or a noise of its own; the ends, and where the noise is one of those given, have that alone.
    """
    if recipe.walk is not None:
        return _station(recipe, recipe.walk, image)
    if not recipe.chaos or recipe.count == 1:
        return recipe
    octaves = recipe.chaos * (2 * image / (recipe.count - 1) - 1)
    guidance = min(30.0, 1.0 + (recipe.guidance - 1.0) * 2.0**octaves)
    return msgspec.structs.replace(recipe, guidance=guidance)


def _station(recipe: Recipe, walk: Walk, image: int) -> Recipe:
    last = walk.of - 1
    place = min(walk.first + image, last)
    if walk.to is not None:
        ends = Concept(recipe.concepts[0].text, 1.0 - place / last), Concept(walk.to, place / last)
        passed = tuple(one for one in ends if one.weight)
        recipe = msgspec.structs.replace(recipe, concepts=passed, mixed=len(passed) > 1)
    if not walk.noises:
        return recipe
    leg, beyond = divmod(place * (len(walk.noises) - 1), last)
    left = walk.noises[leg]
    if not beyond:
        return msgspec.structs.replace(recipe, seed=left, lineage=())
    return msgspec.structs.replace(
        recipe, seed=walk.noises[leg + 1], lineage=(Ancestor(seed=left, index=0, strength=beyond / last),)
    )


def stream(recipe: Recipe, image: int) -> int:
    """The seed that an image's noise is drawn from, by its own recipe (`of_image`)."""
    return recipe.seed if recipe.walk is not None else recipe.seed + image


def onto(rung: int, of: int, steps: int) -> int:
    """The step of `steps` that comes where step `rung` of `of` came, or the first after it: `steps` where none does.

    Schedules spread their noise levels by the share of the steps; what is left of a difference, `Beginning.at` makes
    up for.
    """
    return -(-rung * steps // of)


def guided(recipe: Recipe, k: int) -> bool:
    """Whether guidance holds at step `k`."""
    return within(recipe.interval, k, recipe.steps)


def guided_steps(recipe: Recipe) -> int:
    """At how many of the steps that are run it holds."""
    first, end = _span(recipe.interval, recipe.steps)
    return max(0, min(end, recipe.last) - max(first, recipe.first))


def within(interval: tuple[float, float], k: int, steps: int) -> bool:
    """Whether step `k` of `steps` lies in these fractions of them, counted as diffusers' guiders do."""
    first, end = _span(interval, steps)
    return first <= k < end


def _span(interval: tuple[float, float], steps: int) -> tuple[int, int]:
    return int(interval[0] * steps), int(interval[1] * steps)


def unconditional(recipe: Recipe, held: bool = True) -> bool:
    """Whether the empty or negative text u needs a row: u + guidance·Σ wᵢ(cᵢ - u) lacks it where guidance·Σ wᵢ = 1.

    Where guidance is not `held`, it is 1/Σ wᵢ, so that u cancels; or 1, with u, where a concept is steered away from:
    a sum near 0 would blow everything up.
    """
    if recipe.guides == "network":
        return False
    if not held:
        return steers_away(recipe)
    return recipe.guidance * (1.0 if recipe.mixed else sum(one.weight for one in recipe.concepts)) != 1.0


def steers_away(recipe: Recipe) -> bool:
    return any(concept.weight <= 0.0 for concept in recipe.concepts)


def rows(recipe: Recipe, held: bool = True) -> int:
    """Network rows a step: per image one for each concept, and one for the empty or negative text unless it cancels."""
    return recipe.count * ((1 if recipe.mixed else len(recipe.concepts)) + unconditional(recipe, held))


def pinned(recipe: Recipe, held: bool = True) -> int | None:
    """The pinned batch shape: where an image takes fewer rows than with guidance, so does the batch."""
    return recipe.bucket and max(1, recipe.bucket * rows(recipe, held) // rows(recipe))


def row_steps(recipe: Recipe) -> int:
    """Rows of all steps that are paid for: a pinned batch shape runs as a whole, whatever fills it."""
    held, run = guided_steps(recipe), max(0, recipe.last - recipe.first)
    return held * _padded(recipe, True) + (run - held) * _padded(recipe, False)


def _padded(recipe: Recipe, held: bool) -> int:
    taken, size = rows(recipe, held), pinned(recipe, held)
    return taken + (-taken % size if size else 0)


def cost(recipe: Recipe, warm: Warm) -> float:
    """Calibrated device-seconds: row-steps × time a row-step at this size + encode + decode (`Recipe`, `Warm`).

    To read a picture into latents takes about as long as to decode one.
    """
    area = recipe.width * recipe.height / (warm.size * warm.size)
    steps = row_steps(recipe) * warm.row_ms * area
    texts = (len(recipe.concepts) + 1 + bool(recipe.walk and recipe.walk.to)) * warm.encode_ms
    pictures = len(recipe.start.pictures) if isinstance(recipe.start, Forward) else 0
    return (steps + texts + (recipe.count + pictures) * warm.decode_ms * area) / 1000.0


def decode_ms(warm: Warm, width: int, height: int, count: int) -> float:
    """Calibrated milliseconds of so many decodes at this size; the calibrated one includes the enlargement."""
    return count * warm.decode_ms * width * height / (warm.size * warm.size)

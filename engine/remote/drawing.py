"""What a worker asks a backend for and what it answers: its models and their names, one picture, its progress."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from engine.contract import Feature, Lora, ModelProfile, Sampler
from engine.picture_files import MAX_PIXELS

MAX_PICTURE_SECONDS = 3600.0  # of one picture, with its wait in the backend's own queue


class BackendUnreachable(ConnectionError):
    """The backend did not answer at all; the text is one sentence."""


class KeyRefused(BackendUnreachable):
    """The backend answers, but not to this worker's key: it draws nothing for us until its operator acts."""


class BackendBusy(BackendUnreachable):
    """The backend asks to come again after `wait_seconds`: it limits how much it draws."""

    def __init__(self, sentence: str, wait_seconds: float) -> None:
        super().__init__(sentence)
        self.wait_seconds = wait_seconds


@dataclass(frozen=True)
class BackendModel:
    """One model of a backend, as it can be offered.

    `name` is its name here, `title` the backend's own. `version` changes with what is known of its weights or workflow.
    `is_priced_by_steps`: whether steps decide how long it draws, else a picture takes what it takes.
    """

    name: str
    title: str
    size: int
    multiple: int
    max_pixels: int
    samplers: tuple[Sampler, ...]
    steps: int
    guidance: float
    lacks: tuple[Feature, ...] = ()
    version: str = ""
    is_priced_by_steps: bool = True
    edits: bool = False
    needs_picture: bool = False
    loras: tuple[Lora, ...] = ()
    max_clip_skip: int = 0


@dataclass(frozen=True)
class DrawRequest:
    """One picture. `picture` and `mask` are PNGs of its size; white in the mask is painted anew. `strength`: 0 to 1."""

    model: BackendModel
    prompt: str
    negative: str
    seed: int
    steps: int
    guidance: float
    sampler: Sampler
    width: int
    height: int
    picture: bytes | None = None
    mask: bytes | None = None
    strength: float = 1.0
    tile: bool = False
    clip_skip: int = 0
    loras: tuple[Lora, ...] = field(default=())


@dataclass(frozen=True)
class DrawProgress:
    """How far a picture is, 0 to 1, and a preview of it as the backend sent it (a file), if any.

    `begins`: it begins now; until then it waited in the backend's queue.
    """

    fraction: float
    preview: bytes | None = None
    begins: bool = False


OnProgress = Callable[[DrawProgress], None]


class Backend(Protocol):
    """A server that draws. `concurrency`: how many pictures it is asked for at once."""

    concurrency: int

    async def list_models(self) -> tuple[BackendModel, ...]:
        """Return its models as they are now. Raises `BackendUnreachable` or `JobRejected`."""
        ...

    async def draw(self, request: DrawRequest, on_progress: OnProgress) -> bytes:
        """Return a picture, as a file. If the call is cancelled, the backend stops drawing.

        Raises `BackendUnreachable` or `JobRejected`.
        """
        ...

    async def close(self) -> None:
        """Close its connections."""
        ...


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


MAX_MODELS = 64  # a worker's presence has no more
LARGE = 1024
SMALL = 512
LARGE_MARKS = re.compile(r"xl|flux|sd3|sd_3|pony|illustrious|qwen|z[-_]?image|hidream|chroma|sana", re.IGNORECASE)


def name_models(titles: Iterable[str]) -> dict[str, str]:
    """Return name → title: the file's name without folder signs and suffix. Names differ in more than case."""
    named: dict[str, str] = {}
    for title in titles:
        name = make_name(title)
        number = 2
        base = name[:60]
        while name.lower() in {other.lower() for other in named}:
            name = f"{base}-{number}"
            number = number + 1
        named[name] = title
        if len(named) == MAX_MODELS:
            break
    return named


def make_name(title: str) -> str:
    """Return a title as `Name` allows it."""
    stem = re.sub(r"\.(safetensors|sft|ckpt|pt|gguf)\b.*$", "", title, flags=re.IGNORECASE)
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", stem).strip("._-")[:64]
    return name or "model"


def choose_multiple(size: int) -> int:
    """Return what sides are multiples of, for a native side in pixels: no API says it."""
    return 64 if size % 64 == 0 and size > 64 else 8


def guess_size(title: str) -> int:
    """Return the native side in pixels that a model's name suggests: servers do not say it."""
    return LARGE if LARGE_MARKS.search(title) else SMALL


KARRAS = "karras"


class BackendSampler(NamedTuple):
    """A backend's sampler, and its scheduler of noise levels; "" where the backend has none to choose."""

    name: str
    scheduler: str = ""


PREFERRED: tuple[Sampler, ...] = ("dpmpp_2m_karras", "dpmpp_2m", "euler", "ddim")


def sort_samplers(samplers: Collection[Sampler]) -> tuple[Sampler, ...]:
    """Return them with the best default first: few steps, no noise of its own."""
    preferred: list[Sampler] = [sampler for sampler in PREFERRED if sampler in samplers]
    others: list[Sampler] = [sampler for sampler in samplers if sampler not in preferred]
    return (*preferred, *others)

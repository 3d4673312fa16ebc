"""Names of a backend's models and samplers: as members type them, and which is which of ours. Pure."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from typing import NamedTuple

from engine.contract import Sampler

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
    """Return a title as `engine.contract.Name` allows it."""
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

"""LoRAs in a prompt: `--lora name:0.8` and `<lora:name:0.8>`, parsed and matched to those of a model."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rapidfuzz import fuzz, process

from bot.refused import Refused
from bot.sentences import shortened
from engine.job import MAX_LORAS, Lora

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from engine.job import Warm

STRONGEST = 4.0  # as in `engine.job.Lora`
NONE = "none"  # removes the LoRAs of a remixed job
RANGE = f"a name, or name:weight from -{STRONGEST:g} to {STRONGEST:g}, at most {MAX_LORAS} of them, or {NONE}"
ENDING = ".safetensors"

_TAG = re.compile(r"<lora:([^<>]{0,200})>", re.IGNORECASE)
_COMMAS = re.compile(r"\s*,(?:\s*,)*")  # left over from "fox, <lora:a>, <lora:b>, cute"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")  # as `engine.job.Name`
_WEIGHT = re.compile(r"[+-]?(?:[0-9]{1,3}(?:\.[0-9]{0,6})?|\.[0-9]{1,6})")
_DASHES = str.maketrans("–—−", "---")


@dataclass(frozen=True)
class Addition:
    """A requested LoRA; without a `weight`, its default weight applies."""

    name: str
    weight: float | None = None


def untagged(text: str) -> tuple[str, tuple[str, ...]]:
    """Return `text` without its tags, and the content of each tag: "name:0.8"."""
    tags = tuple(match[1].strip() for match in _TAG.finditer(text))
    return (_COMMAS.sub(",", _TAG.sub(" ", text)).strip(" ,"), tags) if tags else (text, ())


def read(written: Sequence[str]) -> tuple[Addition, ...]:
    """Parse "name" or "name:0.8"; the last weight of a name counts. Empty for "none". Raises `Refused` for all else."""
    if [one.strip().lower() for one in written] == [NONE]:
        return ()
    return merged(_read(one) for one in written)


def merged(additions: Iterable[Addition]) -> tuple[Addition, ...]:
    """Return each name once, in order; of several with one name the last. Raises `Refused` for more than four."""
    found = tuple({one.name.lower(): one for one in additions}.values())
    if len(found) > MAX_LORAS:
        raise Refused(f"--lora may stand for {MAX_LORAS} LoRAs at once; these are {len(found)}.")
    return found


def _read(written: str) -> Addition:
    name, colon, weight = (part.strip() for part in written.partition(":"))
    name = name.removesuffix(ENDING)
    weight = weight.translate(_DASHES)
    strange = not _NAME.fullmatch(name) or bool(colon and not _WEIGHT.fullmatch(weight))
    if strange or (colon and abs(float(weight)) > STRONGEST):
        begins = f"--lora {shortened(written, 40)} is not possible" if written.strip() else "--lora needs a value"
        raise Refused(f"{begins}: it takes {RANGE}.")
    return Addition(name, float(weight) if colon else None)


def matched(additions: Iterable[Addition], warm: Warm) -> tuple[Lora, ...]:
    """Return the model's LoRAs with their revisions, without those of weight 0. Raises `Refused` for a missing one."""
    known = {one.name.lower(): one for one in warm.loras}
    found: list[Lora] = []
    for one in additions:
        if (lora := known.get(one.name.lower())) is None:
            raise Refused(_missing(one.name, warm))
        weight = lora.weight if one.weight is None else one.weight
        if not math.isclose(weight, 0.0, abs_tol=1e-9):
            found.append(Lora(lora.name, weight, lora.revision))
    return tuple(found)


def _missing(name: str, warm: Warm) -> str:
    if not warm.loras:
        return (
            f"There is no LoRA for {warm.name}: this bot's operator can put one, as {ENDING}, "
            "into loras/ in the worker's data folder."
        )
    nearest = process.extractOne(name.lower(), {one.name: one.name.lower() for one in warm.loras}, scorer=fuzz.ratio)
    return f"There is no LoRA {shortened(name, 40)} for {warm.name}; the nearest is {nearest[2]}."

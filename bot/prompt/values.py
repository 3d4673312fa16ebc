"""Parsers for the values of our flags, from text or a front end's options; what is out of range is refused."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from rapidfuzz import fuzz, process

from bot.prompt import loras, samplers
from bot.prompt.concepts import MAX_CHARACTERS
from bot.prompt.flags import about
from bot.prompt.permutations import MAX_JOBS
from bot.prompt.request import MAX_RATIO
from bot.refused import Refused
from bot.sentences import plain, shortened
from engine.job import MAX_COUNT, MAX_FRAMES, MAX_STEPS

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from engine.job import Sampler

LEAST_STRENGTH, LEAST_FRAMES = 0.05, 4
WEIGHED = "A walk goes from one text to another: leave out the weights (::)."
_WHOLE = re.compile(r"[+-]?[0-9]{1,20}")
_DECIMAL = re.compile(r"[+-]?(?:[0-9]{1,9}(?:\.[0-9]{0,9})?|\.[0-9]{1,9})")
_SHAPE = re.compile(r"([0-9]{1,5})[:x×/]([0-9]{1,5})")
_INTERVAL = re.compile(r"([0-9]?\.?[0-9]{1,9}|[0-9]\.)(?:-|:|to)([0-9]?\.?[0-9]{1,9}|[0-9]\.)")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")  # as `engine.job.Name`

_DASHES = str.maketrans("–—−", "---")


def read(name: str, value: object, models: Sequence[str]) -> object:
    """Return the value of our flag `name` as a Request holds it. `value` is text, or already a number, pair or bool.

    `models` are the known names; if there are none, any well-formed name is accepted. Raises `Refused`, naming flag,
    value and range.
    """
    if name == "model":
        return _model(str(value), models)
    return READERS[name](value)


def _out_of_range(name: str, value: object) -> Refused:
    written = shortened(str(value), 40)
    missing = f"--{name} needs a value" if not written else f"--{name} {written} is not possible"
    return Refused(f"{missing}: it takes {about(name)}.")


def _whole(name: str, least: int, most: int) -> Callable[[object], int]:
    def reader(value: object) -> int:
        text = str(value).translate(_DASHES)
        if isinstance(value, bool) or not _WHOLE.fullmatch(text) or not least <= int(text) <= most:
            raise _out_of_range(name, value)
        return int(text)

    return reader


def _decimal(name: str, least: float, most: float, scale: float = 1.0) -> Callable[[object], float]:
    """Return a parser of a number within range, times `scale`."""

    def reader(value: object) -> float:
        text = repr(value) if isinstance(value, float) else str(value).translate(_DASHES)
        if isinstance(value, bool) or not _DECIMAL.fullmatch(text) or not least <= float(text) <= most:
            raise _out_of_range(name, value)
        return float(text) * scale

    return reader


def _image_weight(value: object) -> float:
    """Convert Midjourney's image weight to the strength that keeps about as much of the init image."""
    return max(LEAST_STRENGTH, 1.0 - 0.4 * _decimal("iw", 0, 3)(value))


def _shape(value: object) -> tuple[int, int]:
    text = ":".join(str(side) for side in value) if isinstance(value, tuple | list) else str(value)
    found = _SHAPE.fullmatch(text)
    sides = (int(found[1]), int(found[2])) if found else (0, 0)
    if not min(sides) or max(sides) > MAX_RATIO * min(sides):
        raise _out_of_range("ar", text)
    return sides


def _sampler(value: object) -> Sampler:
    if (sampler := samplers.named(str(value))) is None:
        raise _out_of_range("sampler", value)
    return sampler


def _interval(value: object) -> tuple[float, float]:
    """Return where guidance begins and where it ends, as fractions of the steps."""
    text = "-".join(map(str, value)) if isinstance(value, tuple | list) else str(value)
    found = _INTERVAL.fullmatch(text.translate(_DASHES).replace(" ", ""))
    start, stop = (float(found[1]), float(found[2])) if found else (0.0, 0.0)
    if not 0 <= start < stop <= 1:
        raise _out_of_range("interval", text)
    return start, stop


def _loras(value: object) -> tuple[loras.Addition, ...]:
    """Parse LoRAs, one after another in a list, or in a text with commas between them."""
    written = [str(one) for one in value] if isinstance(value, tuple | list) else str(value).split(",")
    return loras.read(written)


def _negative(value: object) -> str:
    text = plain(str(value)).strip(" ,")
    if not text:
        raise _out_of_range("no", "")
    if len(text) > MAX_CHARACTERS:
        raise Refused(f"--no takes up to {MAX_CHARACTERS} characters; this has {len(text)}.")
    return text


def _walk(value: object) -> str:
    """Return the prompt at the end of a walk: one text, without weights."""
    text = plain(str(value)).strip(" ,")
    if not text:
        raise _out_of_range("walk", "")
    if len(text) > MAX_CHARACTERS:
        raise Refused(f"--walk takes up to {MAX_CHARACTERS} characters; this has {len(text)}.")
    if "::" in text:
        raise Refused(WEIGHED)
    return text


def _bare(name: str) -> Callable[[object], bool]:
    def reader(value: object) -> bool:
        if not isinstance(value, bool) and value != "":
            raise _out_of_range(name, value)
        return value is not False

    return reader


def _model(value: str, models: Sequence[str]) -> str:
    names = {name.lower(): name for name in models}
    if value.lower() in names:
        return names[value.lower()]
    if not _NAME.fullmatch(value):
        raise _out_of_range("model", value)
    if not models:
        return value
    nearest = process.extractOne(value.lower(), sorted(names), scorer=fuzz.ratio)
    raise Refused(f"There is no model {shortened(value, 40)}; the nearest is {names[nearest[0]]}.")


READERS: dict[str, Callable[[object], object]] = {
    "steps": _whole("steps", 1, MAX_STEPS),
    "seed": _whole("seed", 0, 2**32 - 1),
    "count": _whole("count", 1, MAX_COUNT),
    "guidance": _decimal("guidance", 1, 30),
    "strength": _decimal("strength", LEAST_STRENGTH, 1),
    "iw": _image_weight,
    "stop": _decimal("stop", 10, 100, 0.01),
    "chaos": _decimal("chaos", 0, 100, 0.01),
    "quality": _decimal("quality", 0.25, 4),
    "repeat": _whole("repeat", 1, MAX_JOBS),
    "ar": _shape,
    "interval": _interval,
    "sampler": _sampler,
    "lora": _loras,
    "frames": _whole("frames", LEAST_FRAMES, MAX_FRAMES),
    "no": _negative,
    "walk": _walk,
    "fast": _bare("fast"),
    "relax": _bare("relax"),
    "tile": _bare("tile"),
    "mix": _bare("mix"),
}

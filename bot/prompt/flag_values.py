"""Parsers for the values of our flags, from text or a front end's options; they refuse values out of range."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, cast

from rapidfuzz import fuzz, process

from bot.domain.errors import UserError
from bot.domain.texts import clean_text, shorten
from bot.prompt import flags, part_flags
from bot.prompt.concepts import MAX_CHARACTERS, MAX_JOBS
from bot.prompt.flags import describe_values
from bot.prompt.parsed_prompt import AUTO_EVALUATIONS, MAX_RATIO
from engine.contract import MAX_COUNT, MAX_INTERPOLATION_FRAMES, MAX_STEPS, MIN_EVALUATIONS

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from engine.contract import Sampler

MIN_STRENGTH = 0.05
MIN_FRAMES = 4
MAX_CLIP_LAYER = 12
MAX_INTEGER = 10**20
WEIGHTS_IN_WALK = "A walk goes from one text to another: leave out the weights (::)."
_INTEGER = re.compile(r"[+-]?[0-9]{1,20}")
_DECIMAL = re.compile(r"[+-]?(?:[0-9]{1,9}(?:\.[0-9]{0,9})?|\.[0-9]{1,9})")
_SHAPE = re.compile(r"([0-9]{1,5})[:x×/]([0-9]{1,5})")
_INTERVAL = re.compile(r"([0-9]?\.?[0-9]{1,9}|[0-9]\.)(?:-|:|to)([0-9]?\.?[0-9]{1,9}|[0-9]\.)")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")  # as `engine.contract.Name`

_DASHES = str.maketrans("–—−", "---")


def parse_value(name: str, value: object, models: Sequence[str]) -> object:
    """Return the value of our flag `name` as a `ParsedPrompt` holds it. `value` is text, or already a number, pair or
    bool.

    `models` are the known names; if there are none, any well-formed name is accepted. Raises `UserError`, naming flag,
    value and range.
    """
    if name == "model":
        return _parse_model(str(value), models)
    return PARSERS[name](value)


def _out_of_range(name: str, value: object) -> UserError:
    excerpt = shorten(str(value), 40)
    problem = f"--{name} needs a value" if not excerpt else f"--{name} {excerpt} is not possible"
    return UserError(f"{problem}: it takes {describe_values(name)}.")


def _integer_parser(name: str, minimum: int, maximum: int) -> Callable[[object], int]:
    def parse(value: object) -> int:
        if isinstance(value, int) and abs(value) > MAX_INTEGER:  # Python refuses to write the longest
            raise _out_of_range(name, f"with {value.bit_length()} bits")
        text = str(value).translate(_DASHES)
        if isinstance(value, bool) or not _INTEGER.fullmatch(text) or not minimum <= int(text) <= maximum:
            raise _out_of_range(name, value)
        return int(text)

    return parse


def _decimal_parser(name: str, minimum: float, maximum: float, scale: float = 1.0) -> Callable[[object], float]:
    """Return a parser of a number within range, times `scale`."""

    def parse(value: object) -> float:
        text = repr(value) if isinstance(value, float) else str(value).translate(_DASHES)
        if isinstance(value, bool) or not _DECIMAL.fullmatch(text) or not minimum <= float(text) <= maximum:
            raise _out_of_range(name, value)
        return float(text) * scale

    return parse


def _parse_image_weight(value: object) -> float:
    """Convert Midjourney's image weight to the strength that keeps about as much of the init image."""
    return max(MIN_STRENGTH, 1.0 - 0.4 * _decimal_parser("iw", 0, 3)(value))


def _join_parts(separator: str, value: object) -> str:
    """Return the text of a value; that of a tuple or list is its parts with `separator` between them."""
    return separator.join(map(str, cast("Sequence[object]", value))) if isinstance(value, tuple | list) else str(value)


def _parse_shape(value: object) -> tuple[int, int]:
    text = _join_parts(":", value)
    match = _SHAPE.fullmatch(text)
    sides = (int(match[1]), int(match[2])) if match else (0, 0)
    if not min(sides) or max(sides) > MAX_RATIO * min(sides):
        raise _out_of_range("ar", text)
    return sides


def _parse_sampler(value: object) -> Sampler:
    if (sampler := flags.find_sampler(str(value))) is None:
        raise _out_of_range("sampler", value)
    return sampler


def _parse_evaluations(value: object) -> int:
    """Return how many steps have an evaluation; 0 for all, and `AUTO_EVALUATIONS` for the usual number."""
    words = {"all": 0, "auto": AUTO_EVALUATIONS}
    word = value.lower() if isinstance(value, str) else ""
    return words[word] if word in words else _integer_parser("evaluations", MIN_EVALUATIONS, MAX_STEPS)(value)


def _parse_interval(value: object) -> tuple[float, float]:
    """Return where guidance begins and where it ends, as fractions of the steps."""
    text = _join_parts("-", value)
    match = _INTERVAL.fullmatch(text.translate(_DASHES).replace(" ", ""))
    start, stop = (float(match[1]), float(match[2])) if match else (0.0, 0.0)
    if not 0 <= start < stop <= 1:
        raise _out_of_range("interval", text)
    return start, stop


def _split_list(value: object) -> list[str]:
    """Return the parts of a list, or of a text with commas between them."""
    return list(map(str, cast("Sequence[object]", value))) if isinstance(value, tuple | list) else str(value).split(",")


def _parse_autoencoder(value: object) -> str:
    name = str(value).removesuffix(".safetensors")
    if not _NAME.fullmatch(name):
        raise _out_of_range("vae", value)
    return name


def _text_parser(name: str) -> Callable[[object], str]:
    def parse(value: object) -> str:
        text = clean_text(str(value)).strip(" ,")
        if not text:
            raise _out_of_range(name, "")
        if len(text) > MAX_CHARACTERS:
            raise UserError(f"--{name} takes up to {MAX_CHARACTERS} characters; this has {len(text)}.")
        if name == "walk" and "::" in text:
            raise UserError(WEIGHTS_IN_WALK)
        return text

    return parse


def _switch_parser(name: str) -> Callable[[object], bool]:
    def parse(value: object) -> bool:
        if not isinstance(value, bool) and value != "":
            raise _out_of_range(name, value)
        return value is not False

    return parse


def _parse_model(value: str, models: Sequence[str]) -> str:
    names = {name.lower(): name for name in models}
    if value.lower() in names:
        return names[value.lower()]
    if not _NAME.fullmatch(value):
        raise _out_of_range("model", value)
    if not models:
        return value
    nearest_match = process.extractOne(value.lower(), sorted(names), scorer=fuzz.ratio)
    raise UserError(f"There is no model {shorten(value, 40)}; the nearest is {names[nearest_match[0]]}.")


PARSERS: dict[str, Callable[[object], object]] = {
    "steps": _integer_parser("steps", 1, MAX_STEPS),
    "evaluations": _parse_evaluations,
    "seed": _integer_parser("seed", 0, 2**32 - 1),
    "count": _integer_parser("count", 1, MAX_COUNT),
    "guidance": _decimal_parser("guidance", 1, 30),
    "strength": _decimal_parser("strength", MIN_STRENGTH, 1),
    "iw": _parse_image_weight,
    "stop": _decimal_parser("stop", 10, 100, 0.01),
    "chaos": _decimal_parser("chaos", 0, 100, 0.01),
    "quality": _decimal_parser("quality", 0.25, 4),
    "repeat": _integer_parser("repeat", 1, MAX_JOBS),
    "ar": _parse_shape,
    "interval": _parse_interval,
    "sampler": _parse_sampler,
    "lora": lambda value: part_flags.parse_loras(_split_list(value)),
    "control": lambda value: part_flags.parse_controls(_split_list(value)),
    "reference": lambda value: part_flags.parse_references(_split_list(value)),
    "vae": _parse_autoencoder,
    "clip-skip": _integer_parser("clip-skip", 1, MAX_CLIP_LAYER),
    "frames": _integer_parser("frames", MIN_FRAMES, MAX_INTERPOLATION_FRAMES),
    "no": _text_parser("no"),
    "walk": _text_parser("walk"),
    **{
        name: _switch_parser(name) for name in ("best", "fast", "turbo", "relax", "draft", "edit", "tile", "raw", "mix")
    },
}
